"""Classes of DTD as training data, on the sides of one of its official splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.concepts import texture_caption
from data.crops import Crops, count_problems, refuse_settings
from data.dtd import read_dtd
from data.errors import DataError
from data.faults import faults_of
from data.gathered_images import GatheredImages
from data.image_dataset import ImageDataset, evenly, refuse_faults, some
from data.image_files import ImageFile
from data.usable_images import CaptionPolicy, find_usable

_CAPTIONS = CaptionPolicy(needed=False)  # each class has its words


def survey_textures(root: Path, classes: Sequence[str], split_number: int) -> tuple[GatheredImages, frozenset[str]]:
    """Return the pictures of some classes, whatever is wrong with them, and the names of those that are held out.

    Where the split cannot be read, all that lies in the folders of the classes, and nothing is held out.
    """
    try:
        split = read_dtd(root, classes, split_number)
    except DataError as error:
        place = root if (root / "images").is_dir() else root / "dtd"
        files = [
            ImageFile(path, texture_caption(name), name, root)
            for name in classes
            for path in sorted((place / "images" / name).glob("[!.]*"))
            if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()
        ]
        return GatheredImages(tuple(files), faults_of(error)), frozenset()
    sides = [
        [
            ImageFile(path, texture_caption(name), name, root)
            for name in classes
            for path, label in side
            if label == name
        ]
        for side in (split.training, split.held_out)
    ]
    gathered = GatheredImages((*sides[0], *sides[1]), ignored=tuple(split.ignored))
    return gathered, frozenset(image.name for image in sides[1])


def build_texture_dataset(
    root: Path,
    classes: Sequence[str],
    split_number: int,
    crops: Crops,
    *,
    images_per_class: int | None = None,
    skip_bad: bool = False,
) -> ImageDataset:
    """Return classes of DTD in one of its official splits: train and val to train on, test held out.

    images_per_class, skip_bad: see `build_image_dataset`. Raises DataError with everything that cannot be used.
    """
    refuse_settings(crops, *count_problems(images_per_class))
    gathered, names = survey_textures(root, classes, split_number)
    found = find_usable(gathered, _CAPTIONS, crops.resolution)
    refuse_faults(found, str(root), skip_bad=skip_bad, needs_captions=False)
    training = [image for image in found.images if image.name not in names]
    if images_per_class is not None:
        by_class = ([image for image in training if image.label == name] for name in classes)
        training = [image for images in by_class for image in evenly(images, images_per_class)]
    strays = [path.relative_to(root).as_posix() for path in gathered.ignored]
    remark = f"ignored     files in the folders of the classes that are no images ({len(strays)}): {some(strays)}"
    return ImageDataset(
        training,
        [image for image in found.images if image.name in names],
        crops,
        name="DTD",
        split=f"DTD's official split {split_number}",
        remarks=[remark] if strays else [],
        skipped=found.faults if skip_bad else (),
    )
