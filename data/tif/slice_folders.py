"""A stack of grey slices in a folder, one tif file for each slice, in the order of the numbers in their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.tif.layout import by
from data.tif.stacks import TIF_SUFFIXES, Stack, checked_series, decoded_slices, opened
from data.tif.voxel_sizes import tif_voxel_size_um
from data.volume_specs import VolumeError

_NAMED = 5  # files are named one by one up to this number, then counted


@dataclass(frozen=True)
class _Slice:
    """What one file says before its voxels are read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    voxel_size_um: tuple[float, float, float] | None
    warnings: tuple[str, ...]


def open_slice_folder(folder: Path, *, accept_warnings: bool = False) -> Stack:
    """Return the stack of slices in a folder.

    All tif files of the folder are slices; their names differ in one number, which counts up by 1. Hidden files are
    left out, other files too, and noted. accept_warnings: see `open_stack`.
    Raises VolumeError with all files that are damaged, missing in the count, or of another size or type than most.
    """
    files, notes = _find_slices(folder)
    slices, problems = [], []
    for file in files:
        try:
            slices.append(_open_slice(file, accept_warnings=accept_warnings))
        except VolumeError as error:
            problems += [f"{file.name}: {problem}" for problem in error.problems]
    problems += _unequal(files, slices) if len(slices) == len(files) else []
    if problems:
        raise VolumeError(str(folder), *problems)
    rows, columns = slices[0].shape
    warned = [(file.name, one.warnings[0]) for file, one in zip(files, slices, strict=True) if one.warnings]
    if warned:
        notes.append(f"tifffile warns about {len(warned)} files, first {warned[0][0]}: {warned[0][1]}")

    def decode() -> Iterator[np.ndarray]:
        for file in files:
            with opened(file, accept_warnings=accept_warnings) as (tif, _):
                yield from decoded_slices(checked_series(tif, file), file)

    shape = (len(files), rows, columns)
    return Stack(folder, files, shape, slices[0].dtype, _common_size(slices, notes), None, decode, tuple(notes))


def _find_slices(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Return the files of the slices in order, and what to say about the folder."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if path.suffix.lower() in TIF_SUFFIXES]
    others = [path.name for path in visible if path not in files]
    if len(files) < 2:
        found = f"{len(visible)} other files" if not files else f"only {files[0].name}"
        raise VolumeError(
            str(folder), f"found {found}, expected a folder with one tif for each slice; name the tif or its folder"
        )
    numbers, problems = _slice_numbers(files)
    if problems:
        raise VolumeError(str(folder), *problems)
    order = np.argsort(numbers)
    first, last = min(numbers), max(numbers)
    notes = [f"its slices are numbered {first} to {last}"] if first not in (0, 1) else []
    if others:
        notes.append(f"{len(others)} files beside the slices are left out: {_named(others)}")
    return tuple(files[position] for position in order), notes


def _slice_numbers(files: Sequence[Path]) -> tuple[list[int], list[str]]:
    """Return the number of each slice, from its name, and what is wrong with the names."""
    parts = [re.split("([0-9]+)", path.stem) for path in files]
    pattern, _ = Counter("#".join(words[::2]) for words in parts).most_common(1)[0]
    strangers = [path.name for path, words in zip(files, parts, strict=True) if "#".join(words[::2]) != pattern]
    if strangers:
        alike = next(path.name for path, words in zip(files, parts, strict=True) if "#".join(words[::2]) == pattern)
        return [], [f"{_named(strangers)}: named unlike the other slices, such as {alike}; move it away or rename it"]
    values = np.array([[int(word) for word in words[1::2]] for words in parts], dtype=object)
    varying = [column for column in range(values.shape[1]) if len(set(values[:, column])) > 1]
    if len(varying) != 1:
        found = f"{len(varying)} numbers vary" if varying else "no number varies"
        return [], [
            f"{found} in the names of the slices ({_named([path.name for path in files])}), expected one that counts "
            "them; rename them, as slice_0001.tif"
        ]
    numbers = [int(number) for number in values[:, varying[0]]]
    return numbers, _count_problems(numbers, files)


def _count_problems(numbers: Sequence[int], files: Sequence[Path]) -> list[str]:
    problems = []
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        names = [path.name for path, number in zip(files, numbers, strict=True) if number in twice]
        problems.append(f"{_named(names)}: two files have the same number; remove one of them")
    span = max(numbers) - min(numbers) + 1
    if span > len(set(numbers)):
        # a span of timestamps is too long to be listed
        missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers)) if span < 1_000_000 else []
        which = f": {_named([str(number) for number in missing])}" if missing else ""
        problems.append(
            f"slices are missing, {span - len(set(numbers))} of {min(numbers)} to {max(numbers)}{which}; bring them, "
            "or number the slices without holes if none was left out"
        )
    return problems


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _open_slice(file: Path, *, accept_warnings: bool) -> _Slice:
    """Return what a file says of its slice. Raises VolumeError for one that is damaged or holds anything else."""
    with opened(file, accept_warnings=accept_warnings) as (tif, warnings):
        series = checked_series(tif, file)
        lengths = [length for axis, length in zip(series.axes, series.shape, strict=True) if axis not in "CS"]
        shape = tuple(length for length in lengths if length > 1)
        if len(shape) != 2:
            raise VolumeError(str(file), f"holds {by(series.shape)} ({series.axes}), expected one slice in each file")
        size = tif_voxel_size_um(tif)
    return _Slice(shape, series.dtype.newbyteorder("="), size, tuple(warnings))


def _unequal(files: Sequence[Path], slices: Sequence[_Slice]) -> list[str]:
    """Return a sentence for each slice that has another size or type than most."""
    kinds = [(one.shape, one.dtype) for one in slices]
    (shape, dtype), count = Counter(kinds).most_common(1)[0]
    return [
        f"{file.name}: is {by(kind[0])} {kind[1]}, {count} of {len(files)} slices are {by(shape)} {dtype}; every slice "
        "must have the same size and type"
        for file, kind in zip(files, kinds, strict=True)
        if kind != (shape, dtype)
    ]


def _common_size(slices: Sequence[_Slice], notes: list[str]) -> tuple[float, float, float] | None:
    """Return the voxel size that all slices say; None, with a note, where they contradict each other."""
    sizes = {one.voxel_size_um for one in slices}
    if len(sizes) > 1:
        notes.append("its slices say different voxel sizes; give voxel_size_um in volumes.yaml")
        return None
    return sizes.pop()
