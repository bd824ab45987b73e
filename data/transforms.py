"""From a slice in [0, 1] to model pixels in [-1, 1]: one pixel scale, crops, the symmetries of a plane.

Pure functions of arrays in the order (row, column). Nothing here changes the aspect of an image, turns it by 90
degrees (that swaps warp and weft) or touches its grey values (they are part of what a scan says).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy import ndimage

from data.randomness import generator

Flip = Literal["left-right", "up-down"]
_AXIS: Mapping[Flip, int] = MappingProxyType({"up-down": 0, "left-right": 1})
_FLIPS: Mapping[str, tuple[Flip, ...]] = MappingProxyType(
    {
        "thickness": ("left-right", "up-down"),
        "warp": ("left-right",),  # up-down would turn the lay-up over, which need not be symmetric
        "weft": ("left-right",),
    }
)
SCALE_TOLERANCE = 1e-3  # a relative difference of scale that moves nothing by more than half a pixel in 500
# Voxels whose sides differ by less count as cubes: a resampling by 1 % blurs every hundredth row and repairs little.
CUBE_TOLERANCE = 0.02


def cubic(voxel_size_um: tuple[float, float, float], reference_axis: int) -> tuple[float, float, float]:
    """Return the sides of a voxel, all of them that of one axis where none differs from it by more than CUBE_TOLERANCE.

    voxel_size_um: (Z, Y, X). reference_axis: 0, 1 or 2, the axis whose side is kept.
    """
    side = voxel_size_um[reference_axis]
    if all(abs(other / side - 1) <= CUBE_TOLERANCE for other in voxel_size_um):
        return side, side, side
    return voxel_size_um


def scale_factor(voxel_size_um: float, um_per_px: float) -> float:
    """Return the pixels per voxel along one axis; exactly 1 where they differ from it by less than SCALE_TOLERANCE."""
    factor = voxel_size_um / um_per_px
    return 1.0 if abs(factor - 1) < SCALE_TOLERANCE else factor


def rescaled_shape(shape: tuple[int, int], factors: tuple[float, float]) -> tuple[int, int]:
    """Return the size in px of a slice after rescaling: the whole pixels that lie inside it."""
    rows, columns = (int(np.floor(size * factor + 1e-6)) for size, factor in zip(shape, factors, strict=True))
    return rows, columns


def rescaled(pixels: np.ndarray, factors: tuple[float, float]) -> np.ndarray:
    """Return a slice at another pixel scale, exactly at that scale, both axes each by its own factor.

    pixels: float32 (row, column). factors: pixels per voxel along (row, column), from `scale_factor`.
    Linear interpolation on pixel centres; where an axis shrinks, a gaussian of sigma = (1 / factor - 1) / 2 voxels
    removes the detail that the new scale cannot hold. Factors of 1 give back the very same array.
    """
    if factors == (1.0, 1.0):
        return pixels
    # a smoothing, then an affine map: zoom would stretch the image to a whole number of pixels
    sigma = [max(0.0, (1 / factor - 1) / 2) for factor in factors]
    if any(sigma):
        pixels = ndimage.gaussian_filter(pixels, sigma, mode="nearest")
    step = [1 / factor for factor in factors]
    offset = [(size - 1) / 2 for size in step]
    shape = rescaled_shape((pixels.shape[0], pixels.shape[1]), factors)
    return ndimage.affine_transform(pixels, step, offset, output_shape=shape, order=1, mode="nearest")


def random_crop_origin(
    shape: tuple[int, int], crop_shape: tuple[int, int], *, seed: int, position: int
) -> tuple[int, int]:
    """Return the (row, column) of the first pixel of a crop, uniform over all that fit. Shapes: (rows, columns)."""
    draws = generator(seed, "crop", position)
    row, column = (int(draws.integers(0, room + 1)) for room in _room(shape, crop_shape))
    return row, column


def center_crop_origin(shape: tuple[int, int], crop_shape: tuple[int, int]) -> tuple[int, int]:
    """Return the (row, column) of the first pixel of the crop in the middle."""
    row, column = (room // 2 for room in _room(shape, crop_shape))
    return row, column


def tile_origins(shape: tuple[int, int], crop_px: int) -> list[tuple[int, int]]:
    """Return the (row, column) of as many square crops as fit without overlap, spread evenly over the image."""
    rows, columns = (
        _tile_starts(size, room, crop_px) for size, room in zip(shape, _room(shape, (crop_px, crop_px)), strict=True)
    )
    return [(row, column) for row in rows for column in columns]


def crop(pixels: np.ndarray, origin: tuple[int, int], crop_shape: tuple[int, int]) -> np.ndarray:
    """Return the crop of (rows, columns) that starts at the origin, as a view."""
    (row, column), (rows, columns) = origin, crop_shape
    assert row >= 0, f"row {row} lies above the image"
    assert column >= 0, f"column {column} lies left of the image"
    assert row + rows <= pixels.shape[0], f"rows {row}+{rows} leave an image of {pixels.shape[0]}"
    assert column + columns <= pixels.shape[1], f"columns {column}+{columns} leave an image of {pixels.shape[1]}"
    return pixels[row : row + rows, column : column + columns]


def allowed_flips(plane: str) -> tuple[Flip, ...]:
    """Return the mirrorings that turn a slice of this plane into one that the material could have.

    Rows of a warp or weft slice run through the thickness.
    """
    return _FLIPS[plane]


def flipped(pixels: np.ndarray, flips: Sequence[Flip], *, seed: int, position: int) -> np.ndarray:
    """Return the image with each of the flips applied or not, each with probability 1/2, as a view."""
    chosen = generator(seed, "flip", position).random(len(flips)) < 0.5
    axes = tuple(_AXIS[flip] for flip, apply in zip(flips, chosen, strict=True) if apply)
    return np.flip(pixels, axes)


def to_model_range(pixels: np.ndarray) -> np.ndarray:
    """Return an image in [0, 1] (row, column) as three equal channels in [-1, 1], float32 (3, row, column)."""
    return np.repeat((pixels.astype(np.float32) * 2 - 1)[np.newaxis], 3, axis=0)


def _tile_starts(size_px: int, room_px: int, crop_px: int) -> list[int]:
    num_gaps = size_px // crop_px - 1
    return [i * room_px // num_gaps for i in range(num_gaps + 1)] if num_gaps else [room_px // 2]


def _room(shape: tuple[int, int], crop_shape: tuple[int, int]) -> tuple[int, int]:
    """Return the (rows, columns) by which an image is larger than a crop."""
    rows, columns = (size - crop_size for size, crop_size in zip(shape, crop_shape, strict=True))
    assert min(rows, columns) >= 0, f"a crop of {crop_shape} px does not fit {shape} px"
    return rows, columns
