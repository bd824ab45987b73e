"""The pictures that a run would see, with everything that is wrong about where they lie and what they are called.

Where training would stop at a caption that cannot be read, the pictures are still found: they are to be looked at too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.checks.report import Fault
from data.concepts import texture_caption
from data.dtd import read_dtd
from data.errors import DataError
from data.hub_images import hub_images
from data.image_files import METADATA_FILE, SUFFIXES, ImageFile, read_folder

if TYPE_CHECKING:
    from data.image_dataset import EncodedImage

_NAME = re.compile(r"[./\[]")
TRAINING, HELD_OUT, UNUSED = "training", "held out", ""


@dataclass(frozen=True)
class Gathered:
    """Pictures with the side of the split they are on (UNUSED where that is not known yet), what is wrong, the rest."""

    images: tuple[EncodedImage, ...]
    sides: tuple[str, ...]
    faults: tuple[Fault, ...] = ()
    ignored: tuple[Path, ...] = ()


def faults_of(error: DataError, folder: Path | None = None) -> tuple[Fault, ...]:
    """Return the problems of an error; one that begins with a file's name stands there, the others at the error's.

    folder: names of files in it count from there.
    """
    faults = []
    for problem in error.problems:
        name, _, reason = problem.partition(": ")
        # a path, a file with its line, or a row as "train[4]"; not the beginning of a sentence
        where, told = (name, reason) if reason and _NAME.search(name) and ", " not in name else (error.where, problem)
        if folder is not None and Path(where).is_relative_to(folder) and Path(where) != folder:
            where = Path(where).relative_to(folder).as_posix()
        faults.append(Fault(where, told))
    return tuple(faults)


def gather_folder(folder: Path) -> Gathered:
    """Return the pictures of a folder; sides are not known before their content is."""
    try:
        found = read_folder(folder)
    except DataError as error:
        images, ignored = _any_pictures(folder)
        return Gathered(images, (UNUSED,) * len(images), faults_of(error), ignored)
    return Gathered(found.images, (UNUSED,) * len(found.images), (), found.skipped)


def gather_rows(
    name: str,
    config: str | None,
    image_column: str,
    caption_column: str,
    group_column: str | None,
    *,
    allow_outside_files: bool = False,
) -> Gathered:
    """Return the pictures of a Hugging Face dataset; where rows have no caption, only what is wrong with them."""
    columns = image_column, caption_column, group_column
    try:
        rows = hub_images(name, config, "train", *columns, allow_outside_files=allow_outside_files)
    except DataError as error:
        return Gathered((), (), faults_of(error))
    return Gathered(tuple(rows), (UNUSED,) * len(rows))


def gather_textures(root: Path, classes: Sequence[str], split_number: int) -> Gathered:
    """Return the pictures of some classes of DTD, on the sides of one of its official splits."""
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
        return Gathered(tuple(files), (UNUSED,) * len(files), faults_of(error))
    members = [(*member, TRAINING) for member in split.training] + [(*member, HELD_OUT) for member in split.held_out]
    return Gathered(
        tuple(ImageFile(path, texture_caption(name), name, root) for path, name, _ in members),
        tuple(side for _, _, side in members),
        (),
        tuple(split.ignored),
    )


def _any_pictures(folder: Path) -> tuple[tuple[ImageFile, ...], tuple[Path, ...]]:
    """Return every picture below a folder whose layout is in doubt, with the captions that can be read, and the rest.

    The layout is refused anyway: nothing of this is trained on.
    """
    paths: list[Path] = []
    others: list[Path] = []
    for path in _files(folder):
        is_picture = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        (paths if is_picture else others).append(path)
    rows = _metadata(folder)
    images = []
    for path in paths:
        parts = path.relative_to(folder).parts
        label = parts[0] if len(parts) > 1 else ""
        images.append(ImageFile(path, rows.get(path) or _beside(path) or label, label, folder))
    words = {path.with_suffix("") for path in paths}
    ignored = [
        path
        for path in others
        if path.name != METADATA_FILE and not (path.suffix.lower() == ".txt" and path.with_suffix("") in words)
    ]
    return tuple(images), tuple(ignored)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if Path(place, name).is_file())


def _metadata(folder: Path) -> dict[Path, str]:
    """Return the captions of the rows of the metadata file that can be read."""
    captions = {}
    for root in (folder, folder / "train"):
        with suppress(OSError):
            for line in (root / METADATA_FILE).read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    row = json.loads(line.decode("utf-8-sig"))
                    captions[root / row["file_name"]] = row["text"].strip()
    return captions


def _beside(path: Path) -> str:
    """Return the caption of the .txt file beside a picture, "" where none can be read."""
    with suppress(OSError, UnicodeDecodeError):
        return path.with_suffix(".txt").read_bytes().decode("utf-8-sig").strip()
    return ""
