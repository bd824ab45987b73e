"""Digits and their like in the IDX files of MNIST (LeCun et al. 1998, appendix of the data's page), read strictly.

    train-images-idx3-ubyte   train-labels-idx1-ubyte        60,000 pictures of 28 x 28 px
    t10k-images-idx3-ubyte    t10k-labels-idx1-ubyte         10,000 to judge by

The last dash may be a dot, and each file may be compressed (.gz). Fashion-MNIST and KMNIST have the same layout.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.images import read_content
from data.labelled.pictures import LabelledPictures

NUM_CLASSES = 10
_UNSIGNED_BYTE = 0x08
_LARGEST_BYTES = 2**32  # of one file unpacked; a compressed one may promise anything
_COPY_AGAIN = "Copy the file again from its source"


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Return the bytes of an IDX file as an array of num_axes axes, uint8, not writeable.

    The format: two zero bytes, one for the kind of number (8: unsigned bytes), one for the number of axes, the length
    of each axis as four bytes, most significant first, then the numbers.
    Raises DataError for a file that is missing, is not of this format, or is shorter or longer than it says.
    """
    content = _unpacked(path, read_content(path))
    size = 4 + 4 * num_axes
    expected = bytes([0, 0, _UNSIGNED_BYTE, num_axes])
    if content[:4] != expected:
        raise DataError(
            str(path),
            f"begins with the bytes {content[:4].hex(' ')}, expected {expected.hex(' ')} (IDX, unsigned bytes, "
            f"{num_axes} axes). {_COPY_AGAIN}.",
        )
    if len(content) < size:
        raise DataError(str(path), f"ends after {len(content)} bytes, in its head. {_COPY_AGAIN}.")
    shape = struct.unpack(f">{num_axes}I", content[4:size])
    if len(content) != size + math.prod(shape):
        raise DataError(
            str(path),
            f"says {' x '.join(map(str, shape))}, which is {math.prod(shape):,} bytes, and holds "
            f"{len(content) - size:,}. {_COPY_AGAIN}.",
        )
    return np.frombuffer(content, np.uint8, offset=size).reshape(shape)


def read_mnist(folder: Path) -> tuple[LabelledPictures, LabelledPictures]:
    """Return the training and the held-out pictures of a folder, each (N, H, W, 1), labelled "0" to "9".

    Raises DataError with everything that is wrong in the four files.
    """
    problems: list[str] = []
    sides = [_side(folder, stem, problems) for stem in ("train", "t10k")]
    training, held_out = sides
    if training is None or held_out is None:
        raise DataError(str(folder), *problems)
    if training.size_px != held_out.size_px:
        raise DataError(str(folder), f"train has pictures of {training.size_px} px, t10k of {held_out.size_px} px.")
    return training, held_out


def _side(folder: Path, stem: str, problems: list[str]) -> LabelledPictures | None:
    arrays, digests = [], {}
    for kind, num_axes in (("images", 3), ("labels", 1)):
        try:
            path = _find(folder, f"{stem}-{kind}", f"idx{num_axes}-ubyte")
            arrays.append(read_idx(path, num_axes))
            digests[path.name] = LabelledPictures.digest(path)
        except DataError as error:
            problems += [f"{error.where}: {problem}" for problem in error.problems]
    if len(arrays) < 2:
        return None
    pictures, labels = arrays
    found = []
    if len(pictures) != len(labels):
        found.append(f"{stem}: {len(pictures)} pictures and {len(labels)} labels, expected one for each.")
    if not len(pictures):
        found.append(f"{stem}: holds no picture.")
    elif pictures.shape[1] != pictures.shape[2]:
        found.append(f"{stem}: pictures of {pictures.shape[1]} x {pictures.shape[2]} px, expected squares.")
    if labels.size and labels.max() >= NUM_CLASSES:
        found.append(f"{stem}: a label is {labels.max()}, expected 0 to {NUM_CLASSES - 1}.")
    problems += found
    names = tuple(map(str, range(NUM_CLASSES)))
    return None if found else LabelledPictures(stem, pictures[..., None], labels, names, digests)


def _find(folder: Path, stem: str, ending: str) -> Path:
    names = [f"{stem}{joint}{ending}{packed}" for joint in "-." for packed in ("", ".gz")]
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise DataError(str(folder / names[0]), "the file is missing (it may end in .gz).")
    if len(found) > 1:
        raise DataError(str(folder), f"holds {' and '.join(path.name for path in found)}. Keep one of them.")
    return found[0]


def _unpacked(path: Path, content: bytes) -> bytes:
    if path.suffix != ".gz":
        return content
    try:
        unpacker = zlib.decompressobj(wbits=31)  # a gzip head
        plain = unpacker.decompress(content, _LARGEST_BYTES)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise gzip.BadGzipFile("it ends before its own end" if not unpacker.unconsumed_tail else "too large")
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(str(path), f"cannot be unpacked: {error}. {_COPY_AGAIN}.") from error
    return plain
