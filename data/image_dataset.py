"""Any pictures as training data: square crops of images from a folder or from a Hugging Face dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from data.captions import is_dropped
from data.dataset import Sample, evenly_spaced
from data.errors import DataError, SettingsError
from data.exits import DISK_ERRORS
from data.image_files import find_images, text_problems
from data.images import MAX_PIXELS, WHITE, decode_image, read_content, resized, resized_shape
from data.randomness import derive, permuted_index
from data.transforms import Flip, center_crop_origin, crop, flipped, random_crop_origin

CACHE_BYTES = 2**30  # of resized images that a process keeps; further ones are decoded anew each time
SMALLEST_SPLIT_LABEL = 5  # a class with fewer different images has none to spare for judging
_SPLIT_SEED = 0  # the same for every run: what one run holds out, no other trains on
_Item = TypeVar("_Item")
_FLIPS: tuple[Flip, ...] = ("left-right",)


class EncodedImage(Protocol):
    """A picture as it was encoded, wherever it is kept, with its words."""

    @property
    def name(self) -> str:
        """What reports and errors call it."""

    @property
    def caption(self) -> str:
        """Its words; "" for none."""

    @property
    def label(self) -> str:
        """The name of its class; "" for none."""

    def content(self) -> bytes:
        """Return its bytes. Raises DataError for a picture that cannot be reached."""


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

    def content(self) -> bytes:
        """Return its bytes. Raises DataError where they are no longer those that were checked."""
        content = self.source.content()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(self.name, "has changed since it was checked. Restore it, or start anew with it.")
        return content


def check_images(sources: Sequence[EncodedImage]) -> list[CheckedImage]:
    """Return the pictures after decoding each of them whole; one that was checked before is not decoded again.

    Raises DataError that names every picture that cannot be used, and why.
    """
    checked: list[CheckedImage] = []
    problems: list[str] = []
    for source in sources:
        if isinstance(source, CheckedImage):
            checked.append(source)
            continue
        try:
            content = source.content()
            rows, columns, _ = decode_image(content, source.name).shape
        except DataError as error:
            problems += [f"{source.name}: {problem}" for problem in error.problems]
        else:
            checked.append(CheckedImage(source, hashlib.sha256(content).hexdigest(), (rows, columns)))
    if problems:
        raise DataError(f"{len(problems)} of {len(sources)} images cannot be used", *problems)
    return checked


class ImageDataset:
    """Square crops of images: each image once in an epoch, in an order of the epoch's own; held-out ones never."""

    def __init__(
        self,
        training: Sequence[EncodedImage],
        held_out: Sequence[EncodedImage],
        *,
        resolution: int,
        seed: int,
        random_flip: bool = False,
        center_crop: bool = False,
        proportion_empty_prompts: float = 0.0,
        name: str = "images",
    ) -> None:
        """resolution: side of a crop in px; the short side of every image is brought to it, up or down.

        random_flip: mirror each image left-right, or not, by chance. center_crop: crop the middle, not a random place.
        proportion_empty_prompts: of the samples lose their caption. held_out may be empty.
        Raises DataError for images that cannot be decoded, SettingsError for values out of range.
        """
        assert training, "a dataset has at least one image"
        _check_settings(resolution=resolution, proportion_empty_prompts=proportion_empty_prompts)
        checked = check_images([*training, *held_out])
        self.training, self.held_out = tuple(checked[: len(training)]), tuple(checked[len(training) :])
        problems = [problem for image in checked for problem in _size_problems(image, resolution)]
        if problems:
            raise DataError("images too large at this resolution", *problems)
        self.resolution = resolution
        self.seed = seed
        self.random_flip = random_flip
        self.center_crop = center_crop
        self.proportion_empty_prompts = proportion_empty_prompts
        self.name = name
        self._kept: dict[str, np.ndarray] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.training)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the images that are kept: a process that receives the dataset decodes its own."""
        return {**self.__dict__, "_kept": {}, "_room": CACHE_BYTES}

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions of the training images, in their order; a dropped caption is none of them."""
        return tuple(dict.fromkeys(image.caption for image in self.training))

    @property
    def um_per_px(self) -> None:
        """None: pictures have no pixel scale."""
        return None

    @property
    def grey_values(self) -> dict[str, dict[str, object]]:
        """Nothing: the levels of a picture stand for no native grey values."""
        return {}

    @property
    def num_enlarged(self) -> int:
        """How many images, of both sides, are smaller than a crop and had to be enlarged."""
        return sum(min(image.shape_px) < self.resolution for image in (*self.training, *self.held_out))

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs; a pure function of it.

        Its source is the image and the (row, column) of the crop's first pixel in the resized image.
        """
        image = self.training[permuted_index(self.seed, position, len(self))]
        pixels = self._pixels(image)
        shape = pixels.shape[0], pixels.shape[1]
        if self.center_crop:
            origin = center_crop_origin(shape, self.resolution)
        else:
            origin = random_crop_origin(shape, self.resolution, seed=self.seed, position=position)
        pixels = crop(pixels, origin, self.resolution)
        if self.random_flip:
            pixels = flipped(pixels, _FLIPS, seed=self.seed, position=position)
        left_out = is_dropped(proportion=self.proportion_empty_prompts, seed=self.seed, position=position)
        caption = "" if left_out else image.caption
        return Sample(_model_pixels(pixels), caption, False, source=f"{image.name} @ {origin}", is_dropped=left_out)

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return the middle of at most num_images held-out images, by caption: float32 (N, 3, H, W) in [-1, 1].

        Evenly spaced in the order of the images, never mirrored; captions that no held-out image has are not there.
        """
        return self._even_crops(self.held_out, num_images)

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return training images like those of `held_out_pixels`; their difference is a metric's floor."""
        return self._even_crops(self.training, num_images)

    def manifest(self) -> dict[str, object]:
        """Return files with their sha256, split, settings and counts, as JSON can hold them."""
        everything = (*self.training, *self.held_out)
        labels = dict.fromkeys(image.label for image in everything)
        counts = {
            side: Counter(image.label for image in images)
            for side, images in (("training", self.training), ("held_out", self.held_out))
        }
        return {
            "name": self.name,
            "resolution_px": self.resolution,
            "um_per_px": self.um_per_px,
            "num_images": len(self),
            "seed": self.seed,
            "random_flip": self.random_flip,
            "center_crop": self.center_crop,
            "proportion_empty_prompts": self.proportion_empty_prompts,
            "background": list(WHITE),
            "num_enlarged": self.num_enlarged,
            "num_without_caption": sum(not image.caption for image in everything),
            "num_duplicates": len(everything) - len({image.sha256 for image in everything}),
            "labels": {label: {side: counts[side][label] for side in counts} for label in labels},
            "training": [_image_manifest(image) for image in self.training],
            "held_out": [_image_manifest(image) for image in self.held_out],
        }

    def _pixels(self, image: CheckedImage) -> np.ndarray:
        """Return an image with its short side at the resolution, float32 (row, column, 3) in [0, 1]."""
        if image.sha256 in self._kept:
            return self._kept[image.sha256]
        pixels = resized(decode_image(image.content(), image.name), self.resolution)
        if pixels.nbytes <= self._room:
            pixels.flags.writeable = False
            self._kept[image.sha256] = pixels
            self._room -= pixels.nbytes
        return pixels

    def _even_crops(self, images: Sequence[CheckedImage], num_images: int) -> dict[str, np.ndarray]:
        by_caption: dict[str, list[CheckedImage]] = {}
        for image in images:
            by_caption.setdefault(image.caption, []).append(image)
        return {
            caption: np.stack([self._middle(image) for image in evenly(chosen, num_images)])
            for caption, chosen in by_caption.items()
        }

    def _middle(self, image: CheckedImage) -> np.ndarray:
        pixels = self._pixels(image)
        origin = center_crop_origin((pixels.shape[0], pixels.shape[1]), self.resolution)
        return _model_pixels(crop(pixels, origin, self.resolution))


def build_image_dataset(
    folder: Path,
    *,
    resolution: int,
    seed: int,
    images_per_class: int | None = None,
    random_flip: bool = False,
    center_crop: bool = False,
    proportion_empty_prompts: float = 0.0,
    held_out_fraction: float = 0.2,
) -> ImageDataset:
    """Return the pictures of a folder as training data; its layouts are those of `image_files.read_folder`.

    images_per_class: at most so many training images of each class, evenly spaced. held_out_fraction: see
    `split_images`. For the rest see `ImageDataset`.
    Raises DataError with every picture or caption that cannot be used, SettingsError for values out of range.
    """
    _check_settings(
        resolution=resolution,
        proportion_empty_prompts=proportion_empty_prompts,
        images_per_class=images_per_class,
        held_out_fraction=held_out_fraction,
    )
    training, held_out = _prepared(find_images(folder), str(folder), images_per_class, held_out_fraction)
    return ImageDataset(
        training,
        held_out,
        resolution=resolution,
        seed=seed,
        random_flip=random_flip,
        center_crop=center_crop,
        proportion_empty_prompts=proportion_empty_prompts,
        name=folder.resolve().name,
    )


def build_hub_dataset(
    name: str,
    *,
    config: str | None,
    split: str,
    image_column: str,
    caption_column: str,
    resolution: int,
    seed: int,
    images_per_class: int | None = None,
    random_flip: bool = False,
    center_crop: bool = False,
    proportion_empty_prompts: float = 0.0,
    held_out_fraction: float = 0.2,
) -> ImageDataset:
    """Return the pictures of a Hugging Face dataset as training data.

    name: of a dataset on the hub, or a folder that `datasets.load_dataset` understands. config, split: of the
    dataset; split may be a slice such as "train[:100]". caption_column: text, or a class, whose name is then caption
    and label. For the rest see `build_image_dataset`.
    Raises SettingsError for a dataset, split or column that is not there and for a hub that cannot be reached,
    DataError with every row that cannot be used.
    """
    _check_settings(
        resolution=resolution,
        proportion_empty_prompts=proportion_empty_prompts,
        images_per_class=images_per_class,
        held_out_fraction=held_out_fraction,
    )
    sources = _hub_images(name, config, split, image_column, caption_column)
    training, held_out = _prepared(sources, f"{name} ({split})", images_per_class, held_out_fraction)
    return ImageDataset(
        training,
        held_out,
        resolution=resolution,
        seed=seed,
        random_flip=random_flip,
        center_crop=center_crop,
        proportion_empty_prompts=proportion_empty_prompts,
        name=name if config is None else f"{name} {config}",
    )


def split_images(
    images: Sequence[CheckedImage], held_out_fraction: float
) -> tuple[list[CheckedImage], list[CheckedImage]]:
    """Return training and held-out images, each in the order given; identical files are on the same side.

    Of each label with n different images, n x held_out_fraction (rounded, 1 to n - 1) are held out where n is at
    least SMALLEST_SPLIT_LABEL, none where it is less or the fraction is 0. Which ones depends on their content alone,
    not on names, order or seed. An image under several labels is held out only where each of them has one to give.
    """
    labels: dict[str, set[str]] = {}
    for image in images:
        labels.setdefault(image.sha256, set()).add(image.label)
    num_different = Counter(label for owners in labels.values() for label in owners)
    left = {label: _num_held_out(number, held_out_fraction) for label, number in num_different.items()}
    chosen = set()
    for content in sorted(labels, key=lambda content: (derive(_SPLIT_SEED, "held-out", content), content)):
        if all(left[label] > 0 for label in labels[content]):
            chosen.add(content)
            for label in labels[content]:
                left[label] -= 1
    return (
        [image for image in images if image.sha256 not in chosen],
        [image for image in images if image.sha256 in chosen],
    )


def _num_held_out(num_different: int, fraction: float) -> int:
    if num_different < SMALLEST_SPLIT_LABEL or fraction == 0:
        return 0
    return min(max(1, round(num_different * fraction)), num_different - 1)


def _prepared(
    sources: Sequence[EncodedImage], where: str, images_per_class: int | None, held_out_fraction: float
) -> tuple[list[CheckedImage], list[CheckedImage]]:
    """Return the training images, at most images_per_class of each label, and the held-out images."""
    try:
        checked = check_images(sources)
    except DataError as error:
        raise DataError(f"{where}: {error.where}", *error.problems) from error
    training, held_out = split_images(checked, held_out_fraction)
    if images_per_class is not None:
        kept = {
            id(image)
            for label in dict.fromkeys(image.label for image in training)
            for image in evenly([image for image in training if image.label == label], images_per_class)
        }
        training = [image for image in training if id(image) in kept]
    return training, held_out


@dataclass(frozen=True, eq=False)
class _HubImage:
    """One row of a Hugging Face dataset whose image column is not decoded by it."""

    rows: Any
    index: int
    column: str
    name: str
    caption: str
    label: str

    def content(self) -> bytes:
        """Return the bytes that the row holds, or those of the file it names."""
        image = self.rows[self.index][self.column]
        if image is None or not (image["bytes"] or image["path"]):
            raise DataError(self.name, f"has no image in the column {self.column}. Fill it, or leave the row out.")
        return image["bytes"] or read_content(Path(image["path"]))


def _hub_images(name: str, config: str | None, split: str, image_column: str, caption_column: str) -> list[_HubImage]:
    """Return the rows of a dataset as pictures; none is decoded."""
    import datasets

    rows = _load(name, config, split)
    _check_columns(name, rows.features, image_column, caption_column)
    if not len(rows):
        raise DataError(name, f"the split {split} has no rows. Choose another split.")
    rows = rows.select_columns([image_column, caption_column])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    kind = rows.features[caption_column]
    is_class = isinstance(kind, datasets.ClassLabel)
    images, problems = [], []
    for index, caption in enumerate(rows[caption_column]):
        where = f"{split}[{index}]"
        if caption is None or (is_class and caption < 0) or (not is_class and not caption.strip()):
            problems.append(f"{where}: has no {caption_column}. Fill it, or leave the row out.")
            continue
        text = kind.int2str(caption) if is_class else caption.strip()
        problems += [f"{where}: {problem}" for problem in text_problems(text, caption_column)]
        images.append(_HubImage(rows, index, image_column, where, text, text if is_class else ""))
    if problems:
        raise DataError(name, *problems)
    return images


def _load(name: str, config: str | None, split: str) -> Any:
    import datasets

    where = f"{name} (configuration {config}, split {split})"
    try:
        return datasets.load_dataset(name, config, split=split)
    except MemoryError:
        raise
    except (ConnectionError, TimeoutError) as error:
        raise SettingsError(
            where,
            f"could not be fetched: {_first_line(error)}. Check its name, the network and HF_HUB_OFFLINE, or give a "
            "folder on this machine.",
        ) from error
    except Exception as error:  # of the library, of the hub's client and of every reader below them
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise SettingsError(where, f"cannot be used: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _check_columns(name: str, features: Any, image_column: str, caption_column: str) -> None:
    import datasets

    problems = []
    for option, column, kinds, expected in (
        ("--image_column", image_column, (datasets.Image,), "images"),
        ("--caption_column", caption_column, (datasets.ClassLabel, datasets.Value), "text or a class"),
    ):
        columns = f"Its columns: {', '.join(features)}."
        if column not in features:
            problems.append(f"{option}: {name} has no column {column!r}. {columns}")
        elif not isinstance(features[column], kinds) or _is_number(features[column]):
            problems.append(f"{option}: the column {column!r} holds {features[column]}, expected {expected}. {columns}")
    if problems:
        raise SettingsError("dataset columns", *problems)


def _is_number(kind: Any) -> bool:
    """Return whether a column holds plain values that are no text; a class has a number too, but also a name."""
    import datasets

    return isinstance(kind, datasets.Value) and "string" not in kind.dtype


def _check_settings(
    *,
    resolution: int,
    proportion_empty_prompts: float,
    images_per_class: int | None = None,
    held_out_fraction: float = 0.0,
) -> None:
    problems = []
    if resolution < 1:
        problems.append(f"--resolution: found {resolution}, expected at least 1 px.")
    if not 0 <= proportion_empty_prompts <= 1:
        problems.append(f"--proportion_empty_prompts: found {proportion_empty_prompts}, expected 0 to 1.")
    if images_per_class is not None and images_per_class < 1:
        problems.append(f"--images_per_class: found {images_per_class}, expected at least 1.")
    if not 0 <= held_out_fraction < 1:
        problems.append(f"--held_out_fraction: found {held_out_fraction}, expected 0 to less than 1.")
    if problems:
        raise SettingsError("data settings", *problems)


def _size_problems(image: CheckedImage, resolution: int) -> list[str]:
    """Return what to tell the user of a long strip: with its short side at the resolution it fills the memory."""
    rows, columns = resized_shape(image.shape_px, resolution)
    if rows * columns <= MAX_PIXELS:
        return []
    return [
        f"{image.name}: its {image.shape_px[0]} x {image.shape_px[1]} px would become {rows} x {columns} px at "
        f"--resolution {resolution}, at most {MAX_PIXELS:,} pixels are allowed. Cut it into shorter pieces."
    ]


def evenly(items: Sequence[_Item], num_chosen: int) -> list[_Item]:
    """Return at most a number of items, evenly spaced and in order."""
    return [items[place] for place in evenly_spaced(len(items), min(num_chosen, len(items)))]


def _model_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return an image in [0, 1] (row, column, 3) as float32 (3, row, column) in [-1, 1], a copy."""
    return np.ascontiguousarray((pixels * np.float32(2) - np.float32(1)).transpose(2, 0, 1))


def _image_manifest(image: CheckedImage) -> dict[str, object]:
    return {"file": image.name, "sha256": image.sha256, "caption": image.caption, "label": image.label}
