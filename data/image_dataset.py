"""Any pictures as training data: crops of images from a folder or from a Hugging Face dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.aspect_buckets import BucketedOrder, Shape, bucket_of, bucket_shapes, covering_short_side
from data.crops import Crops, bucket_note, count_problems, refuse_settings
from data.dataset import Sample
from data.errors import DataError, SettingsError
from data.faults import Fault, sentences
from data.gathered_images import EncodedImage, GatheredImages, group_note
from data.hub_images import survey_rows
from data.image_files import survey_folder
from data.image_splits import SplitBy, split_group, split_images
from data.images import WHITE, decode_image, resized
from data.metadata_rows import CAPTION_KEY
from data.slices import evenly_spaced
from data.transforms import Flip, center_crop_origin, crop
from data.usable_images import (
    OWN_CAPTIONS,
    CaptionPolicy,
    CheckedImage,
    UsableImages,
    check_images,
    find_usable,
    size_faults,
)
from data.whole_images import WholeImage, WholeImages

CACHE_BYTES = 2**30  # of resized images that a process keeps; further ones are decoded anew each time
_Item = TypeVar("_Item")
NO_CAPTIONS = (
    "no image has a caption. Give one prompt for all (--instance_prompt), or captions beside the images (NAME.txt, "
    "metadata.jsonl, or a folder for each class)."
)
_FLIPS: tuple[Flip, ...] = ("left-right",)


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
        skipped: Sequence[Fault] = (),
    ) -> None:
        """held_out may be empty; training images of the same content as one of them are left out, and counted.

        split: how the sides were chosen, in words. remarks: lines that `notes` begins with. skipped: why images that
        cannot be used were left out, where that was asked for.
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
        too_large = [fault for image in checked for fault in size_faults(image, image.shape_px, crops.resolution)]
        if too_large:
            raise DataError("images too large at this resolution", *sentences(too_large, name))
        self.crops, self.name, self.split, self.remarks = crops, name, split, tuple(remarks)
        self.skipped = tuple(skipped)
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
            *_skipped_note(self.skipped),
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
            **(
                {"skipped": [{"where": fault.where, "reason": fault.reason} for fault in self.skipped]}
                if self.skipped
                else {}
            ),
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
    caption_key: str = CAPTION_KEY,
    captions: CaptionPolicy = OWN_CAPTIONS,
    skip_bad: bool = False,
    images_per_class: int | None = None,
    held_out_fraction: float = 0.2,
    split_by: SplitBy = "group",
) -> ImageDataset:
    """Return the pictures of a folder as training data; its layouts are those of `image_files.survey_folder`.

    caption_key: of metadata.jsonl. captions: what becomes of pictures without one. skip_bad: leave out what cannot be
    used, and keep a list of it, instead of refusing all. images_per_class: at most so many training images of each
    class, evenly spaced. held_out_fraction: see `split_images`. split_by: what stays whole on one side of the split:
    the images of a `group` of metadata.jsonl (each image, where none is named), of the folder they lie in, or of a
    label.
    Raises DataError with every picture or caption that cannot be used, SettingsError for values out of range.
    """
    refuse_settings(crops, *count_problems(images_per_class), *_fraction_problems(held_out_fraction))
    found = survey_folder(folder, caption_key)
    ignored = [path.relative_to(folder).as_posix() for path in found.ignored]
    remark = f"ignored     files that are neither images nor captions ({len(ignored)}): {some(ignored)}"
    return _split_dataset(
        found,
        crops,
        captions,
        skip_bad=skip_bad,
        where=str(folder),
        name=folder.resolve().name,
        split_by=split_by,
        images_per_class=images_per_class,
        held_out_fraction=held_out_fraction,
        remarks=[remark] if ignored else [],
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
    captions: CaptionPolicy = OWN_CAPTIONS,
    skip_bad: bool = False,
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
    return _split_dataset(
        survey_rows(name, config, split, *columns, allow_outside_files=allow_outside_files),
        crops,
        captions,
        skip_bad=skip_bad,
        where=f"{name} ({split})",
        name=name if config is None else f"{name} {config}",
        split_by=split_by,
        images_per_class=images_per_class,
        held_out_fraction=held_out_fraction,
    )


def _split_dataset(
    gathered: GatheredImages,
    crops: Crops,
    captions: CaptionPolicy,
    *,
    skip_bad: bool,
    where: str,
    name: str,
    split_by: SplitBy,
    images_per_class: int | None,
    held_out_fraction: float,
    remarks: Sequence[str] = (),
) -> ImageDataset:
    """Return the pictures, at most images_per_class of each label on the training side, and a split by groups."""
    found = find_usable(gathered, captions, crops.resolution)
    refuse_faults(found, where, skip_bad=skip_bad, needs_captions=captions.needed)
    groups = [split_group(image, split_by) for image in found.images]
    if split_by != "group" and len(set(groups)) < 2:
        raise SettingsError(
            f"--split_by {split_by}",
            f"all images of {where} have the same {split_by}, so that none could be held out. Leave it out.",
        )
    # a whole folder or label on one side leaves no share of each label to hold out
    training, held_out = split_images(found.images, held_out_fraction, groups, by_label=split_by == "group")
    if images_per_class is not None:
        kept = {
            id(image)
            for label in dict.fromkeys(image.label for image in training)
            for image in evenly([image for image in training if image.label == label], images_per_class)
        }
        training = [image for image in training if id(image) in kept]
    num_groups = len(set(groups) - {""})
    by_what = f"by {split_by}, {num_groups} of them" if num_groups else "each image by itself, equal ones together"
    told = [*remarks, *gathered.notes, *(group_note(found.images) if split_by == "group" else [])]
    if found.num_filled:
        told.append(
            f"captions    {found.num_filled} of {len(found.images)} images have none of their own, and take "
            f"--default_caption {captions.default!r}"
        )
    skipped = found.faults if skip_bad else ()
    return ImageDataset(training, held_out, crops, name=name, split=f"random, {by_what}", remarks=told, skipped=skipped)


def refuse_faults(found: UsableImages, where: str, *, skip_bad: bool, needs_captions: bool) -> None:
    """Raise DataError with everything that is wrong."""
    faults = found.refused(skip_bad=skip_bad)
    if not faults:
        return
    problems = sentences(faults, where)
    if needs_captions and found.is_uncaptioned:
        problems.append(NO_CAPTIONS)
    num_refused = found.num_found - len(found.images)
    raise DataError(
        f"{where}: {num_refused} of {found.num_found} images cannot be used" if num_refused else where, *problems
    )


def _skipped_note(skipped: Sequence[Fault]) -> list[str]:
    if not skipped:
        return []
    names = list(dict.fromkeys(fault.where for fault in skipped))
    return [f"skipped     {len(names)} that cannot be used, as --skip_bad asks: {some(names)}"]


def _fraction_problems(held_out_fraction: float) -> list[str]:
    if 0 <= held_out_fraction < 1:
        return []
    return [f"--held_out_fraction: found {held_out_fraction}, expected 0 to less than 1."]


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
