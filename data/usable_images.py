"""Which gathered pictures a run may use: what is wrong with any of them is told together, on whichever side it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from data.checks.decode import Refused, decode_images
from data.checks.facts import ImageFacts
from data.errors import DataError
from data.faults import Fault
from data.gathered_images import EncodedImage, GatheredImages
from data.images import MAX_PIXELS, resized_shape


@dataclass(frozen=True)
class CaptionPolicy:
    """What becomes of pictures without a caption, where others have one.

    default: the caption that they take; None: they are faults. needed: False where the run says other words anyway.
    """

    default: str | None = None
    needed: bool = True


OWN_CAPTIONS = CaptionPolicy()


@dataclass(frozen=True)
class CheckedImage:
    """A picture that was decoded once without complaint: its content, and its size upright, in px (row, column)."""

    source: EncodedImage
    sha256: str
    shape_px: tuple[int, int]

    @property
    def name(self) -> str:
        """What reports and errors call it."""
        return self.source.name

    @property
    def caption(self) -> str:
        """Its words; "" for none."""
        return self.source.caption

    @property
    def label(self) -> str:
        """The name of its class; "" for none."""
        return self.source.label

    @property
    def group(self) -> str:
        """What it has in common with those that a split keeps on its side; "" for nothing."""
        return self.source.group

    def content(self) -> bytes:
        """Return its bytes. Raises DataError where they are no longer those that were checked."""
        content = self.source.content()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(self.name, "has changed since it was checked. Restore it, or start anew with it.")
        return content


@dataclass(frozen=True)
class UsableImages:
    """Pictures that a run may use, and all that is wrong with the others.

    images: decoded, with words where words are needed. facts: what was found in each of them. faults: of the layout,
    of words and of pixels. decoded: every picture that could be decoded with what was found in it, for a report.
    num_found: pictures that there are. num_filled: of images, those that took the default caption. is_uncaptioned:
    whether no picture has a caption at all.
    """

    images: tuple[CheckedImage, ...]
    faults: tuple[Fault, ...]
    decoded: tuple[tuple[EncodedImage, ImageFacts], ...]
    num_found: int
    num_filled: int
    is_uncaptioned: bool

    def refused(self, *, skip_bad: bool) -> tuple[Fault, ...]:
        """Return the faults that stand in the way of a run.

        skip_bad: leave out single pictures that cannot be used, as long as one is left.
        """
        if not skip_bad or not self.images:
            return self.faults
        return tuple(fault for fault in self.faults if not fault.of_one)


def find_usable(
    gathered: GatheredImages, policy: CaptionPolicy, resolution: int, *, num_workers: int | None = None
) -> UsableImages:
    """Return which of the pictures can be used; each is decoded whole. num_workers: see `decode_images`.

    resolution: short side in px to which a run brings them.
    """
    outcomes = decode_images(gathered.images, num_workers=num_workers)
    images: list[CheckedImage] = []
    decoded: list[tuple[EncodedImage, ImageFacts]] = []
    faults = list(gathered.faults)
    num_filled = 0
    is_bare = not any(image.caption or image.lacks for image in gathered.images)
    for image, outcome in zip(gathered.images, outcomes, strict=True):
        own: list[Fault] = []
        is_filled = policy.default is not None and (image.lacks is not None or is_bare)
        if is_filled:
            assert policy.default is not None, "there is a caption to fill in"
            image = image.captioned(policy.default)
        elif image.lacks is not None and policy.needed:
            own.append(image.lacks)
        if isinstance(outcome, Refused):
            own += [Fault(image.name, problem, of_one=True) for problem in outcome.problems]
        else:
            decoded.append((image, outcome))
            own += size_faults(image, outcome.shape_px, resolution)
            if not own and image.name not in gathered.faulty:
                images.append(CheckedImage(image, outcome.sha256, outcome.shape_px))
                num_filled += is_filled
        faults += own
    return UsableImages(
        tuple(images),
        tuple(dict.fromkeys(faults)),
        tuple(decoded),
        len(gathered.images),
        num_filled,
        is_uncaptioned=is_bare and policy.default is None and bool(gathered.images),
    )


def check_images(sources: Sequence[EncodedImage]) -> list[CheckedImage]:
    """Return the pictures after decoding each of them whole; one that was checked before is not decoded again.

    See `data.checks.decode.decode_images`: in parallel, and kept in a cache by content.
    Raises DataError that names every picture that cannot be used, and why.
    """
    unchecked = [source for source in sources if not isinstance(source, CheckedImage)]
    outcomes = iter(decode_images(unchecked))
    checked: list[CheckedImage] = []
    problems: list[str] = []
    num_refused = 0
    for source in sources:
        if isinstance(source, CheckedImage):
            checked.append(source)
            continue
        outcome = next(outcomes)
        if isinstance(outcome, Refused):
            num_refused += 1
            problems += [f"{source.name}: {problem}" for problem in outcome.problems]
        else:
            checked.append(CheckedImage(source, outcome.sha256, outcome.shape_px))
    if problems:
        raise DataError(f"{num_refused} of {len(sources)} images cannot be used", *problems)
    return checked


def size_faults(image: EncodedImage, shape_px: tuple[int, int], resolution: int) -> list[Fault]:
    """Return what to tell the user of a long strip: with its short side at the resolution it fills the memory."""
    rows, columns = resized_shape(shape_px, resolution)
    if rows * columns <= MAX_PIXELS:
        return []
    told = (
        f"its {shape_px[0]} x {shape_px[1]} px would become {rows} x {columns} px at --resolution {resolution}, at "
        f"most {MAX_PIXELS:,} pixels are allowed. Cut it into shorter pieces."
    )
    return [Fault(image.name, told, of_one=True)]
