"""Volumes of grey slices, read-only: planes by name, a window in native grey values. Axes are (Z, Y, X)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.plain_text import plain
from data.tif.decoded import decoded
from data.tif.layout import by
from data.tif.slice_folders import open_slice_folder
from data.tif.stacks import Stack, map_voxels, open_stack
from data.volume_specs import SPECS_FILE, VolumeError, VolumeSpec
from data.windows import find_window

SIZE_TOLERANCE = 0.02  # by which a declared voxel size may differ from the file's own without a word


@dataclass(frozen=True, eq=False)
class Volume:
    """An opened volume.

    voxels: (Z, Y, X), native dtype, not writeable. voxel_size_um: (Z, Y, X), or None where nobody said it.
    window: (low, high) native grey values, low < high. notes: what was said about it when it was opened.
    """

    spec: VolumeSpec
    voxels: np.ndarray
    voxel_size_um: tuple[float, float, float] | None
    window: tuple[float, float]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """The length of the axes (Z, Y, X)."""
        num_z, num_y, num_x = self.voxels.shape
        return num_z, num_y, num_x

    def num_slices(self, plane: str) -> int:
        """Return how many slices the volume has in a plane."""
        return self.voxels.shape[self._axis(plane)]

    def plane(self, name: str, index: int) -> np.ndarray:
        """Return one slice: (row, column), native dtype, a view that cannot be written to.

        name: one of PLANES. index: 0 to num_slices(name) - 1. Rows and columns are the two other axes in file order.
        """
        axis = self._axis(name)
        assert 0 <= index < self.voxels.shape[axis], f"slice {index} of {self.voxels.shape[axis]}"
        whole = slice(None)
        return self.voxels[(whole,) * axis + (index,)]

    def content_hash(self) -> str:
        """Return the sha256 of shape, dtype and voxels, as hexadecimal digits: the same for every encoding of them."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        little = self.voxels.dtype.newbyteorder("<")
        digest = hashlib.sha256(f"{self.shape} {self.voxels.dtype.name}".encode())
        for plane in self.voxels:
            digest.update(plane.astype(little).tobytes())
        return digest.hexdigest()

    def _axis(self, plane: str) -> int:
        assert plane in self.spec.planes, f"unknown plane {plane!r}"
        return self.spec.planes[plane]


def open_volume(spec: VolumeSpec) -> Volume:
    """Return the volume: memory-mapped where its voxels lie contiguously in one file, else decoded once to a cache.

    spec.path: a tif file, or a folder of single slices. What a user should know is printed and kept as the volume's
    notes. Raises VolumeError when a file is missing, damaged or cut short, holds no stack of grey slices, differs from
    what it or the spec declares, cannot be held, or has no grey values to make a window of.
    """
    open_it = open_slice_folder if spec.path.is_dir() else open_stack
    stack = open_it(spec.path, accept_warnings=spec.accept_warnings)
    if spec.shape is not None and spec.shape != stack.shape:
        found = f"declared {by(spec.shape)}, the file holds {by(stack.shape)} (slices x rows x columns)"
        raise VolumeError(str(spec.path), f"{found}; correct the shape in {SPECS_FILE} or bring the right file")
    if stack.offset is None:
        voxels, told = decoded(stack)
    else:
        voxels, told = map_voxels(stack.path, stack.offset, stack.dtype, stack.shape), ()
    window = find_window(voxels, spec.window, str(spec.path))
    notes = (*stack.notes, *_contradiction(spec, stack), *_no_numbers(voxels), *told)
    for note in notes:
        print(plain(f"{spec.path}: {note}"), file=sys.stderr)
    return Volume(spec, voxels, spec.voxel_size_um or stack.voxel_size_um, window, notes)


def _no_numbers(voxels: np.ndarray) -> tuple[str, ...]:
    """Return how many voxels are no finite number, and what becomes of them; nothing where there are none."""
    if voxels.dtype.kind != "f":
        return ()
    num_nan = sum(int(np.isnan(plane).sum()) for plane in voxels)
    num_infinite = sum(int(np.isinf(plane).sum()) for plane in voxels)
    told = [f"{num_nan:,} are NaN and show as black"] if num_nan else []
    told += [f"{num_infinite:,} are infinite and show as black or white"] if num_infinite else []
    return (f"of its {voxels.size:,} voxels {' and '.join(told)}",) if told else ()


def plane_notes(volumes: Sequence[Volume]) -> list[str]:
    """Return which axes are taken for the planes of volumes whose planes nobody declared, in a line for each."""
    return [
        f"{volume.spec.path.name}: {SPECS_FILE} says no planes, so they are taken as "
        + ", ".join(f"{plane} along {'ZYX'[axis]}" for plane, axis in volume.spec.planes.items())
        for volume in volumes
        if not volume.spec.planes_are_declared
    ]


def _contradiction(spec: VolumeSpec, stack: Stack) -> tuple[str, ...]:
    """Return what to say where the declared voxel size and the file's own differ by more than SIZE_TOLERANCE."""
    declared, found = spec.voxel_size_um, stack.voxel_size_um
    if declared is None or found is None:
        return ()
    if all(abs(said / own - 1) <= SIZE_TOLERANCE for said, own in zip(declared, found, strict=True)):
        return ()
    own = " x ".join(f"{size:g}" for size in found)
    said = " x ".join(f"{size:g}" for size in declared)
    return (
        f"its metadata says voxels of {own} um (Z x Y x X), {SPECS_FILE} says {said} um, which is taken. Make sure "
        "that it is right: metrics in um depend on it.",
    )
