"""Pictures in the binary files of CIFAR-10 (Krizhevsky 2009), read strictly.

    data_batch_1.bin ... data_batch_5.bin   10,000 records each: one byte of label, then 32 x 32 red, green, blue
    test_batch.bin                          10,000 to judge by
    batches.meta.txt                        the names of the classes, one a line

The folder may be the one that `cifar-10-batches-bin` stands in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.errors import DataError
from data.images import read_content
from data.labelled.pictures import LabelledPictures

SIZE_PX = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
HELD_OUT = ("test_batch.bin",)
NAMES = "batches.meta.txt"
_RECORD_BYTES = 1 + 3 * SIZE_PX**2
_COPY_AGAIN = "Copy the file again from its source"


def read_cifar10(folder: Path) -> tuple[LabelledPictures, LabelledPictures]:
    """Return the training and the held-out pictures of a folder, each (N, 32, 32, 3), labelled by class.

    Raises DataError with everything that is wrong in the files.
    """
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    problems: list[str] = []
    names = _names(folder, problems)
    sides = [_side(folder, name, files, names, problems) for name, files in (("train", TRAINING), ("test", HELD_OUT))]
    if problems:
        raise DataError(str(folder), *problems)
    training, held_out = sides
    return training, held_out


def _side(
    folder: Path, name: str, files: tuple[str, ...], names: tuple[str, ...], problems: list[str]
) -> LabelledPictures:
    records, digests = [np.empty((0, _RECORD_BYTES), np.uint8)], {}
    for file in files:
        try:
            records.append(_records(folder / file))
            digests[file] = LabelledPictures.digest(folder / file)
        except DataError as error:
            problems += [f"{error.where}: {problem}" for problem in error.problems]
    every = np.concatenate(records)
    pictures = every[:, 1:].reshape(-1, 3, SIZE_PX, SIZE_PX).transpose(0, 2, 3, 1)
    return LabelledPictures(name, pictures, every[:, 0], names, digests)


def _records(path: Path) -> np.ndarray:
    content = read_content(path)
    if len(content) % _RECORD_BYTES:
        raise DataError(
            str(path),
            f"holds {len(content):,} bytes, expected a multiple of {_RECORD_BYTES:,} (a label and 3 x 32 x 32 values). "
            f"{_COPY_AGAIN}.",
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
    if records[:, 0].max() >= len(CLASSES):
        raise DataError(str(path), f"a label is {records[:, 0].max()}, expected 0 to 9. {_COPY_AGAIN}.")
    return records


def _names(folder: Path, problems: list[str]) -> tuple[str, ...]:
    """Return the names of the classes: those of the file where there is one."""
    if not (folder / NAMES).exists():
        return CLASSES
    try:
        names = tuple(read_content(folder / NAMES).decode("ascii").split())
    except (DataError, UnicodeDecodeError) as error:
        problems.append(f"{NAMES}: cannot be read: {error}.")
        return CLASSES
    if len(set(names)) != len(CLASSES) or len(names) != len(CLASSES):
        problems.append(f"{NAMES}: names {len(set(names))} different classes, expected {len(CLASSES)}.")
    return names
