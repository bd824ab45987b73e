"""Any pictures as training data: crops of images from a folder or from a Hugging Face dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from data.aspect_buckets import BucketedOrder, Shape, bucket_of, bucket_shapes, covering_short_side
from data.checks.decode import Refused, decode_images
from data.crops import Crops, bucket_note, count_problems, refuse_settings
from data.dataset import Sample
from data.errors import DataError, SettingsError
from data.hub_images import hub_images
from data.image_files import read_folder
from data.image_splits import SplitBy, split_group, split_images
from data.images import MAX_PIXELS, WHITE, decode_image, resized, resized_shape
from data.slices import evenly_spaced
from data.transforms import Flip, center_crop_origin, crop
from data.whole_images import WholeImage, WholeImages

CACHE_BYTES = 2**30  # of resized images that a process keeps; further ones are decoded anew each time
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

    @property
    def group(self) -> str:
        """What it has in common with those that a split keeps on its side; "" for nothing."""

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


def check_images(sources: Sequence[EncodedImage]) -> list[CheckedImage]:
    """Return the pictures after decoding each of them whole; one that was checked before is not decoded again.

    See `data.checks.decode.decode_images`: in parallel, and kept in a cache by content.
    Raises DataError that names every picture that cannot be used, and why.
    """
    unchecked = [source for source in sources if not isinstance(source, CheckedImage)]
    outcomes = iter(decode_images(unchecked))
    checked: list[CheckedImage] = []
    problems: list[str] = []
    for source in sources:
        if isinstance(source, CheckedImage):
            checked.append(source)
            continue
        outcome = next(outcomes)
        if isinstance(outcome, Refused):
            problems += [f"{source.name}: {problem}" for problem in outcome.problems]
        else:
            checked.append(CheckedImage(source, outcome.sha256, outcome.shape_px))
    if problems:
        raise DataError(f"{len(problems)} of {len(sources)} images cannot be used", *problems)
    return checked


class ImageDataset:
    """Crops of images: each image once in an epoch, in an order of the epoch's own; held-out ones never.

    Square crops, whose side is every image's short side; with aspect buckets, each image is brought to the least size
    that covers its bucket, and the images of a batch are of one bucket.
    """

    def __init__(
        self,
        training: Sequence[EncodedImage],
        held_out: Sequence[EncodedImage],
        crops: Crops,
        *,
        name: str = "images",
        split: str = "as given",
        remarks: Sequence[str] = (),
    ) -> None:
        """held_out may be empty; training images of the same content as one of them are left out, and counted.

        split: how the sides were chosen, in words. remarks: lines that `notes` begins with.
        Raises DataError for images that cannot be decoded, SettingsError for values out of range.
        """
        assert training, "a dataset has at least one image"
        refuse_settings(crops)
        checked = check_images([*training, *held_out])
        self.held_out = tuple(checked[len(training) :])
        withheld = {image.sha256 for image in self.held_out}
        self.training = tuple(image for image in checked[: len(training)] if image.sha256 not in withheld)
        self.num_withheld = len(training) - len(self.training)
        if not self.training:
            raise DataError(name, "every training image is held out too, under the same or another name.")
        problems = [problem for image in checked for problem in _size_problems(image, crops.resolution)]
        if problems:
            raise DataError("images too large at this resolution", *problems)
        self.crops, self.name, self.split, self.remarks = crops, name, split, tuple(remarks)
        shapes = (crops.square,) if crops.bucket_batch is None else bucket_shapes(crops.resolution)
        self._shapes = [bucket_of(image.shape_px, shapes) for image in self.training]
        self._order = crops.order(self._shapes)
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self._order)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the images that are kept: a process that receives the dataset decodes its own."""
        return {**self.__dict__, "_kept": {}, "_room": CACHE_BYTES}

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions of the training images, in their order; a dropped caption is none of them."""
        return tuple(dict.fromkeys(image.caption for image in self.training))

    @property
    def resolution(self) -> int:
        """The side, in px, of the square images that a run is judged by."""
        return self.crops.resolution

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
        """How many images, of both sides, are smaller than their crop and have to be enlarged."""
        shapes = [*self._shapes, *[self.crops.square] * len(self.held_out)]
        return sum(
            covering_short_side(image.shape_px, shape) > min(image.shape_px)
            for image, shape in zip((*self.training, *self.held_out), shapes, strict=True)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, the split, images that are enlarged, and buckets, in lines."""
        withheld = f", {self.num_withheld} training images left out as copies of held-out ones"
        notes = [
            *self.remarks,
            f"split       {self.split}: {len(self.training)} images are trained on, {len(self.held_out)} held out"
            + (withheld if self.num_withheld else ""),
            bucket_note(self._order, len(self.training), self.resolution),
        ]
        if self.num_enlarged:
            notes.append(f"enlarged    {self.num_enlarged} images are smaller than their crop, and are enlarged")
        return tuple(filter(None, notes))

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs; a pure function of it.

        Its source is the image and the (row, column) of the crop's first pixel in the resized image.
        """
        item = self._order.item(position)
        image, shape = self.training[item], self._shapes[item]
        pixels, origin = self.crops.cut(self._pixels(image, shape), shape, _FLIPS, position)
        left_out = self.crops.is_dropped(position)
        caption = "" if left_out else image.caption
        return Sample(_model_pixels(pixels), caption, False, source=f"{image.name} @ {origin}", is_dropped=left_out)

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return the middle of at most num_images held-out images, by caption: float32 (N, 3, H, W) in [-1, 1].

        Squares of the resolution, whatever the run trains on: pictures are compared at one size. Evenly spaced in the
        order of the images, never mirrored; captions that no held-out image has are not there.
        """
        return self._even_crops(self.held_out, num_images)

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return training images like those of `held_out_pixels`; their difference is a metric's floor."""
        return self._even_crops(self.training, num_images)

    def whole_images(self) -> WholeImages:
        """Return all training images whole, at the size from which squares of the resolution are cut."""
        return WholeImages(len(self.training), self._whole)

    def _whole(self, place: int) -> WholeImage:
        image = self.training[place]
        return WholeImage(_model_pixels(self._pixels(image, self.crops.square)), image.caption, image.name)

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
            **self.crops.manifest(),
            "um_per_px": self.um_per_px,
            "num_images": len(self.training),
            "aspect_buckets": self._order.manifest() if isinstance(self._order, BucketedOrder) else None,
            "background": list(WHITE),
            "split": self.split,
            "num_withheld": self.num_withheld,
            "num_enlarged": self.num_enlarged,
            "num_without_caption": sum(not image.caption for image in everything),
            "num_duplicates": len(everything) - len({image.sha256 for image in everything}),
            "labels": {label: {side: counts[side][label] for side in counts} for label in labels},
            "training": [_image_manifest(image) for image in self.training],
            "held_out": [_image_manifest(image) for image in self.held_out],
        }

    def _pixels(self, image: CheckedImage, shape: Shape) -> np.ndarray:
        """Return an image at the least size that covers a shape, float32 (row, column, 3) in [0, 1]."""
        short_side_px = covering_short_side(image.shape_px, shape)
        key = image.sha256, short_side_px
        if key in self._kept:
            return self._kept[key]
        pixels = resized(decode_image(image.content(), image.name), short_side_px)
        if pixels.nbytes <= self._room:
            pixels.flags.writeable = False
            self._kept[key] = pixels
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
        pixels = self._pixels(image, self.crops.square)
        origin = center_crop_origin((pixels.shape[0], pixels.shape[1]), self.crops.square)
        return _model_pixels(crop(pixels, origin, self.crops.square))


def build_image_dataset(
    folder: Path,
    crops: Crops,
    *,
    images_per_class: int | None = None,
    held_out_fraction: float = 0.2,
    split_by: SplitBy = "group",
) -> ImageDataset:
    """Return the pictures of a folder as training data; its layouts are those of `image_files.read_folder`.

    images_per_class: at most so many training images of each class, evenly spaced. held_out_fraction: see
    `split_images`. split_by: what stays whole on one side of the split: the images of a `group` of metadata.jsonl
    (each image, where none is named), of the folder they lie in, or of a label.
    Raises DataError with every picture or caption that cannot be used, SettingsError for values out of range.
    """
    refuse_settings(crops, *count_problems(images_per_class), *_fraction_problems(held_out_fraction))
    found = read_folder(folder)
    skipped = [path.relative_to(folder).as_posix() for path in found.skipped]
    return _split_dataset(
        found.images,
        crops,
        [split_group(image, split_by) for image in found.images],
        where=str(folder),
        name=folder.resolve().name,
        split_by=split_by,
        images_per_class=images_per_class,
        held_out_fraction=held_out_fraction,
        remarks=[f"ignored     files that are neither images nor captions ({len(skipped)}): {some(skipped)}"]
        if skipped
        else [],
    )


def build_hub_dataset(
    name: str,
    crops: Crops,
    *,
    config: str | None,
    split: str,
    image_column: str,
    caption_column: str,
    group_column: str | None = None,
    images_per_class: int | None = None,
    held_out_fraction: float = 0.2,
    split_by: SplitBy = "group",
    allow_outside_files: bool = False,
) -> ImageDataset:
    """Return the pictures of a Hugging Face dataset as training data.

    name: of a dataset on the hub, or a folder that `datasets.load_dataset` understands. config, split: of the
    dataset; split may be a slice such as "train[:100]". caption_column: text, or a class, whose name is then caption
    and label. group_column: what rows that stay on one side of the split have in common. allow_outside_files: whether
    a row may name a file that is no part of the dataset. For the rest see `build_image_dataset`; rows have no folder.
    Raises SettingsError for a dataset, split or column that is not there and for a hub that cannot be reached,
    DataError with every row that cannot be used.
    """
    refuse_settings(crops, *count_problems(images_per_class), *_fraction_problems(held_out_fraction))
    assert split_by != "folder", "rows have no folder"
    columns = image_column, caption_column, group_column
    images = hub_images(name, config, split, *columns, allow_outside_files=allow_outside_files)
    return _split_dataset(
        images,
        crops,
        [split_group(image, split_by) for image in images],
        where=f"{name} ({split})",
        name=name if config is None else f"{name} {config}",
        split_by=split_by,
        images_per_class=images_per_class,
        held_out_fraction=held_out_fraction,
    )


def _split_dataset(
    sources: Sequence[EncodedImage],
    crops: Crops,
    groups: Sequence[str],
    *,
    where: str,
    name: str,
    split_by: SplitBy,
    images_per_class: int | None,
    held_out_fraction: float,
    remarks: Sequence[str] = (),
) -> ImageDataset:
    """Return the pictures, at most images_per_class of each label on the training side, and a split by groups."""
    if split_by != "group" and len(set(groups)) < 2:
        raise SettingsError(
            f"--split_by {split_by}",
            f"all images of {where} have the same {split_by}, so that none could be held out. Leave it out.",
        )
    try:
        checked = check_images(sources)
    except DataError as error:
        raise DataError(f"{where}: {error.where}", *error.problems) from error
    # a whole folder or label on one side leaves no share of each label to hold out
    training, held_out = split_images(checked, held_out_fraction, groups, by_label=split_by == "group")
    if images_per_class is not None:
        kept = {
            id(image)
            for label in dict.fromkeys(image.label for image in training)
            for image in evenly([image for image in training if image.label == label], images_per_class)
        }
        training = [image for image in training if id(image) in kept]
    num_groups = len(set(groups) - {""})
    by_what = f"by {split_by}, {num_groups} of them" if num_groups else "each image by itself, equal ones together"
    return ImageDataset(training, held_out, crops, name=name, split=f"random, {by_what}", remarks=remarks)


def _fraction_problems(held_out_fraction: float) -> list[str]:
    if 0 <= held_out_fraction < 1:
        return []
    return [f"--held_out_fraction: found {held_out_fraction}, expected 0 to less than 1."]


def _size_problems(image: CheckedImage, resolution: int) -> list[str]:
    """Return what to tell the user of a long strip: with its short side at the resolution it fills the memory."""
    rows, columns = resized_shape(image.shape_px, resolution)
    if rows * columns <= MAX_PIXELS:
        return []
    return [
        f"{image.name}: its {image.shape_px[0]} x {image.shape_px[1]} px would become {rows} x {columns} px at "
        f"--resolution {resolution}, at most {MAX_PIXELS:,} pixels are allowed. Cut it into shorter pieces."
    ]


def some(names: Sequence[str]) -> str:
    """Return the first ten names, and how many others there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def evenly(items: Sequence[_Item], num_chosen: int) -> list[_Item]:
    """Return at most a number of items, evenly spaced and in order."""
    return [items[place] for place in evenly_spaced(len(items), min(num_chosen, len(items)))]


def _model_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return an image in [0, 1] (row, column, 3) as float32 (3, row, column) in [-1, 1], a copy."""
    return np.ascontiguousarray((pixels * np.float32(2) - np.float32(1)).transpose(2, 0, 1))


def _image_manifest(image: CheckedImage) -> dict[str, object]:
    return {"file": image.name, "sha256": image.sha256, "caption": image.caption, "label": image.label}
