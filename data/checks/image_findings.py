"""What a set of pictures is like: classes, sizes, light and colour, and which pictures show the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from data.checks.captions_findings import whole_number_histogram
from data.checks.duplicates import ASPECT_TOLERANCE, COARSE, DETAIL, MOST_PAIRS, Pair, equal_groups, near_duplicates
from data.checks.facts import NUM_BINS, ImageFacts
from data.checks.gathering import HELD_OUT, TRAINING
from data.checks.pictures import thumbnails
from data.checks.report import Chart, Gallery, Mark, Picture, Section, Table, counted

if TYPE_CHECKING:
    from data.gathered_images import EncodedImage

BLANK_CONTRAST = 1 / 255  # a picture whose brightness varies by less than a grey level shows nothing
_MOST_CLASSES = 60  # of which pictures are shown
_MOST_PAIRS_SHOWN = 12
_MOST_ROWS = 60
_SHOWN_IN_ALL = 96
_BINS = 24


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture that was decoded: its words, what was found in it, and the side of the split it is on."""

    source: EncodedImage
    facts: ImageFacts
    side: str


@dataclass(frozen=True)
class Findings:
    """A section, the sentences that belong at the top of the page, and the figures."""

    section: Section
    warnings: tuple[str, ...]
    numbers: dict[str, Any]


def find_classes(images: Sequence[Seen], num_workers: int) -> Findings:
    """Return the counts of each class on both sides of the split, and an even sample of its pictures."""
    labels = list(dict.fromkeys(image.source.label for image in images))
    counts = {label: Counter(image.side for image in images if image.source.label == label) for label in labels}
    rows = [
        (
            label or "(no class)",
            *(f"{number:,}" for number in (counts[label].total(), counts[label][TRAINING], counts[label][HELD_OUT])),
        )
        for label in labels
    ]
    shown = labels[:: -(-len(labels) // _MOST_CLASSES)]
    notes = [] if len(shown) == len(labels) else [f"Pictures of {len(shown)} of the {len(labels)} classes are shown."]
    warnings = []
    if all(image.side == TRAINING for image in images):
        warnings.append("No image is held out: a class is split where it has at least 5 different images.")
    return Findings(
        Section(
            "Images",
            tuple(notes),
            (Table(("class", "images", "training", "held out"), tuple(rows)),),
            galleries=tuple(_sheet(images, shown, num_workers)),
        ),
        tuple(warnings),
        {
            "classes": {
                label: {
                    "images": counts[label].total(),
                    TRAINING: counts[label][TRAINING],
                    HELD_OUT: counts[label][HELD_OUT],
                }
                for label in labels
            }
        },
    )


def _sheet(images: Sequence[Seen], labels: Sequence[str], num_workers: int) -> list[Gallery]:
    """Return an even sample of each class, as pictures."""
    from data.image_dataset import evenly

    each = max(4, min(24, _SHOWN_IN_ALL // max(1, len(labels))))
    chosen = [evenly([image for image in images if image.source.label == label], each) for label in labels]
    flat = [image for group in chosen for image in group]
    made = iter(thumbnails([image.source for image in flat], [image.source.name for image in flat], num_workers))
    galleries = []
    for label, group in zip(labels, chosen, strict=True):
        pictures = [one for one in (next(made) for _ in group) if one is not None]
        galleries.append(Gallery(label, tuple(pictures)))
    return galleries


def find_sizes(images: Sequence[Seen], resolution: int) -> Findings:
    """Return widths, heights and aspects, and how many pictures are enlarged to the run's resolution."""
    heights, widths = (np.array([image.facts.shape_px[axis] for image in images]) for axis in (0, 1))
    aspects = widths / heights
    enlarged = int((np.minimum(heights, widths) < resolution).sum())
    rows = [
        (name, *(form(value) for value in (values.min(), np.median(values), values.max())))
        for name, values, form in (
            ("width in px", widths, _whole),
            ("height in px", heights, _whole),
            ("width / height", aspects, _two_places),
        )
    ]
    warnings = []
    if enlarged:
        warnings.append(
            f"{counted(enlarged, 'image')} of {len(images):,} ({enlarged / len(images):.1%}) "
            f"{'is' if enlarged == 1 else 'are'} smaller than {resolution} px and would be enlarged: blur is learnt "
            "too."
        )
    mark = (Mark(resolution, f"{resolution} px"),)
    return Findings(
        Section(
            "Sizes",
            (f"The short side of every image is brought to {resolution} px.",),
            (Table(("", "least", "median", "most"), tuple(rows)),),
            (
                whole_number_histogram("Width", widths.tolist(), "px", "images", mark),
                whole_number_histogram("Height", heights.tolist(), "px", "images", mark),
                _aspect_chart(aspects),
            ),
        ),
        tuple(warnings),
        {
            "resolution_px": resolution,
            "num_enlarged": enlarged,
            "width_px": _spread(widths),
            "height_px": _spread(heights),
            "aspect": _spread(aspects),
        },
    )


def _aspect_chart(aspects: np.ndarray) -> Chart:
    low, high = min(0.5, float(aspects.min())), max(2.0, float(aspects.max()))
    heights, _ = np.histogram(aspects, _BINS, (low, high))
    return Chart(
        "Aspect", tuple(map(float, heights)), (low, high), "width / height", "images", marks=(Mark(1, "square"),)
    )


def find_light(images: Sequence[Seen]) -> Findings:
    """Return the histograms of brightness and saturation over all pictures, and the shares that say nothing."""
    # every picture counts alike, whatever its size
    brightness, saturation = (
        np.mean([np.array(counts) / sum(counts) for counts in per_image], axis=0)
        for per_image in ([image.facts.brightness for image in images], [image.facts.saturation for image in images])
    )
    clipped = float(np.mean([image.facts.clipped_share for image in images]))
    grey = sum(image.facts.mean_saturation == 0 for image in images)
    blank = [image.source.name for image in images if image.facts.contrast < BLANK_CONTRAST]
    warnings = []
    if blank:
        names = ", ".join(blank[:3]) + (f" and {len(blank) - 3} more" if len(blank) > 3 else "")
        warnings.append(f"{counted(len(blank), 'image')} {'is' if len(blank) == 1 else 'are'} of one colour: {names}.")
    share = "% of the pixels"
    return Findings(
        Section(
            "Light and colour",
            (
                f"{clipped:.2%} of the pixels are pure black or pure white. "
                f"{grey:,} of {counted(len(images), 'image')} {'is' if grey == 1 else 'are'} without colour.",
            ),
            charts=tuple(
                Chart(title, tuple(100 * values), (0.0, 1.0), f"{title.lower()}, 0 to 1", share)
                for title, values in (("Brightness", brightness), ("Saturation", saturation))
            ),
        ),
        tuple(warnings),
        {
            "brightness": [round(float(value), 5) for value in brightness],
            "saturation": [round(float(value), 5) for value in saturation],
            "num_bins": NUM_BINS,
            "clipped_share": clipped,
            "num_grey": grey,
            "blank": blank,
        },
    )


def find_duplicates(images: Sequence[Seen], num_workers: int) -> Findings:
    """Return which pictures are equal or nearly so, those on both sides of the split first, with their pictures."""
    facts = [image.facts for image in images]
    groups = equal_groups(facts)
    equal = [Pair(first, second, 1.0, is_equal=True) for group in groups for first, second in pairwise(group)]
    near = near_duplicates(facts)
    across = [pair for pair in (*equal, *near) if _crosses(images, pair)]
    shown = sorted([*near, *equal], key=lambda pair: (not _crosses(images, pair), pair.is_equal))
    most = "at least " if len(near) == MOST_PAIRS else ""
    notes = (
        f"{counted(len(equal), 'image')} {'repeats' if len(equal) == 1 else 'repeat'} another byte for byte; "
        f"{most}{counted(len(near), 'pair')} of other images {'is' if len(near) == 1 else 'are'} nearly the same, "
        f"{len([pair for pair in across if not pair.is_equal]):,} of them across the split.",
        f"Near-duplicates agree in their light (16 x 16, correlation {COARSE} or more), in their detail (64 x 64, "
        f"{DETAIL} or more) and in their aspect ({ASPECT_TOLERANCE:.0%}).",
    )
    galleries = _pairs(images, shown[:_MOST_PAIRS_SHOWN], num_workers)
    return Findings(
        Section("Duplicates", notes, _pairs_table(images, shown), galleries=tuple(galleries)),
        (*_leak_warnings(across), *_word_warnings(images, groups)),
        {
            "equal": [[images[place].source.name for place in group] for group in groups],
            "near": [
                {
                    "images": [images[pair.first].source.name, images[pair.second].source.name],
                    "correlation": round(pair.correlation, 4),
                    "across_the_split": _crosses(images, pair),
                }
                for pair in near
            ],
            "num_across_the_split": len(across),
        },
    )


def _crosses(images: Sequence[Seen], pair: Pair) -> bool:
    """Return whether training would see one picture of a pair and be judged on the other."""
    return {images[pair.first].side, images[pair.second].side} == {TRAINING, HELD_OUT}


def _pairs_table(images: Sequence[Seen], pairs: Sequence[Pair]) -> tuple[Table, ...]:
    if not pairs:
        return ()
    rows = [
        (
            images[pair.first].source.name,
            images[pair.second].source.name,
            "equal" if pair.is_equal else f"{pair.correlation:.2f}",
            "across the split" if _crosses(images, pair) else images[pair.first].side,
        )
        for pair in pairs[:_MOST_ROWS]
    ]
    return (Table(("image", "shows the same as", "detail", "where"), tuple(rows), "", len(pairs) - len(rows)),)


def _leak_warnings(across: Sequence[Pair]) -> list[str]:
    if not across:
        return []
    lie = "pair of images that show the same lies" if len(across) == 1 else "pairs of images that show the same lie"
    return [
        f"{len(across):,} {lie} across the split: training would see what it is judged on. Look at them below, and "
        "remove one image of each that is a copy."
    ]


def _word_warnings(images: Sequence[Seen], groups: Sequence[Sequence[int]]) -> list[str]:
    """Return what to say of equal pictures under different words."""
    differ = [
        group
        for group in groups
        if len({(images[place].source.caption, images[place].source.label) for place in group}) > 1
    ]
    if not differ:
        return []
    example = " and ".join(images[place].source.name for place in differ[0][:2])
    stand = "image stands" if len(differ) == 1 else "images stand"
    return [f"{len(differ):,} {stand} under different words or classes, such as {example}. Keep one."]


def _pairs(images: Sequence[Seen], pairs: Sequence[Pair], num_workers: int) -> list[Gallery]:
    both = [images[place] for pair in pairs for place in (pair.first, pair.second)]
    words = [f"{image.source.name} ({image.side or 'not split'})" for image in both]
    made = thumbnails([image.source for image in both], words, num_workers)
    galleries = []
    for number, pair in enumerate(pairs):
        shown: list[Picture] = [one for one in made[2 * number : 2 * number + 2] if one is not None]
        label = "equal" if pair.is_equal else f"detail {pair.correlation:.2f}"
        galleries.append(Gallery(label, tuple(shown), captioned=True))
    return galleries


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"least": float(values.min()), "median": float(np.median(values)), "most": float(values.max())}


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _two_places(value: float) -> str:
    return f"{value:.2f}"
