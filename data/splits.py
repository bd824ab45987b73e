"""Training and held-out blocks of a volume, cut in 3D before any slice, with a gap that is measured.

A split by slice index leaks: neighbours are near-duplicates, and every row of a held-out warp slice is inside some
thickness slice. Here the last part of the axis along which weft slices are taken is held out, for all planes at once,
and a gap before it belongs to neither side. The gap removes shared noise and texture; the periodic architecture of a
weave is shared across any gap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from data.errors import DataError
from data.volume_specs import PLANES
from data.volumes import Volume

SMALLEST_GAP_PX = 16
DECORRELATED = 0.2  # mean correlation of two slices below which they count as different places
LONGEST_GAP_SHARE = 8  # a gap takes at most one part in 8 of its axis (or SMALLEST_GAP_PX)
_PIXELS = 16_384  # of each slice, on a regular grid, are compared
_PAIRS = 64  # of slices are compared at each lag


@dataclass(frozen=True)
class Block:
    """A box of a volume: (start, stop) in voxels along each of its three axes (Z, Y, X)."""

    bounds: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    def indices(self, volume: Volume, plane: str) -> range:
        """Return the numbers, in the whole volume, of the slices of a plane that meet this block."""
        return range(*self.bounds[volume.spec.planes[plane]])

    def origin(self, volume: Volume, plane: str) -> tuple[int, int]:
        """Return the (row, column), in a whole slice of the volume, of the first pixel that lies in this block."""
        rows, columns = self._window(volume, plane)
        return rows[0], columns[0]

    def slice_shape(self, volume: Volume, plane: str) -> tuple[int, int]:
        """Return the (rows, columns) of each slice of this block, in voxels."""
        rows, columns = self._window(volume, plane)
        return rows[1] - rows[0], columns[1] - columns[0]

    def plane(self, volume: Volume, plane: str, index: int) -> np.ndarray:
        """Return the part of a slice that lies in this block: (row, column), native dtype, read-only.

        index: the number of the slice in the whole volume, one of `indices`.
        """
        assert index in self.indices(volume, plane), f"{plane} slice {index} does not meet {self.bounds}"
        pixels = volume.plane(plane, index)
        row_axis, column_axis = slice_axes(volume, plane)
        upright = pixels if row_axis < column_axis else pixels.T
        rows, columns = self._window(volume, plane)
        return upright[slice(*rows), slice(*columns)]

    def voxels(self, volume: Volume) -> np.ndarray:
        """Return the voxels of this block (Z, Y, X), native dtype, as a view."""
        planes, rows, columns = (slice(*bounds) for bounds in self.bounds)
        return volume.voxels[planes, rows, columns]

    def _window(self, volume: Volume, plane: str) -> tuple[tuple[int, int], tuple[int, int]]:
        rows, columns = (self.bounds[axis] for axis in slice_axes(volume, plane))
        return rows, columns


@dataclass(frozen=True)
class BlockSplit:
    """The training block and the held-out block of one volume, and the measurement that set the gap between them.

    axis: 0, 1 or 2 (Z, Y, X), along which the blocks are apart. gap_px: voxels between them that neither has.
    correlation: mean correlation of slices 1, 2, 3, ... voxels apart along that axis. gap_reason: why this gap.
    """

    training: Block
    held_out: Block
    axis: int
    gap_px: int
    correlation: tuple[float, ...]
    gap_reason: str

    def manifest(self) -> dict[str, object]:
        """Return the split as plain lists, numbers and strings, for a run's manifest."""
        return {
            "training": [list(bounds) for bounds in self.training.bounds],
            "held_out": [list(bounds) for bounds in self.held_out.bounds],
            "axis": self.axis,
            "gap_px": self.gap_px,
            "gap_reason": self.gap_reason,
            "correlation": [round(value, 4) for value in self.correlation],
        }


def manifest_hash(manifest: Mapping[str, object]) -> str:
    """Return 32 hexadecimal digits that are equal for equal manifests, whatever the order of their keys."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def slice_axes(volume: Volume, plane: str) -> tuple[int, int]:
    """Return the axes of the volume (0, 1, 2 for Z, Y, X) that are the rows and the columns of a plane's slices.

    The same in every volume, in whatever order its file has them: cross planes stand upright, rows run through the
    thickness; columns of thickness and warp slices run along the weft plane's axis.
    """
    row, column = (volume.spec.planes[other] for other in PLANES if other != plane)
    return row, column


def whole_block(volume: Volume) -> Block:
    """Return the block that is the whole volume."""
    depth, height, width = volume.shape
    return Block(((0, depth), (0, height), (0, width)))


def split_volume(volume: Volume, *, smallest_px: int, held_out_fraction: float = 0.2) -> BlockSplit:
    """Return the blocks of a volume: the last fraction of the weft plane's axis is held out.

    smallest_px: the voxels along that axis that a crop needs; neither block gets fewer.
    Raises DataError for a volume that is too short for two such blocks and a gap.
    """
    assert 0 < held_out_fraction < 1, f"a fraction lies between 0 and 1, found {held_out_fraction}"
    axis = volume.spec.planes["weft"]
    extent = volume.shape[axis]
    num_held_out = max(smallest_px, round(extent * held_out_fraction))
    longest = max(SMALLEST_GAP_PX, extent // LONGEST_GAP_SHARE)
    correlation = slice_correlation(volume.voxels, axis, max_lag=min(longest, extent - 1))
    gap, reason = _gap(correlation)
    num_training = extent - gap - num_held_out
    if num_training < smallest_px:
        raise DataError(
            volume.spec.path.name,
            f"found {extent} voxels along axis {'ZYX'[axis]}, of which training and evaluation each need a crop of "
            f"{smallest_px}, or more, with a gap of {gap} between them ({reason}): a crop of at most "
            f"{max(0, (extent - gap) // 2)} voxels fits. Choose a smaller --resolution or a finer --um_per_px, or "
            "give a larger volume.",
        )
    whole = whole_block(volume)
    return BlockSplit(
        training=_replaced(whole, axis, (0, num_training)),
        held_out=_replaced(whole, axis, (extent - num_held_out, extent)),
        axis=axis,
        gap_px=gap,
        correlation=correlation,
        gap_reason=reason,
    )


def slice_correlation(voxels: np.ndarray, axis: int, *, max_lag: int) -> tuple[float, ...]:
    """Return the mean correlation of slices that are 1, 2, ... max_lag voxels apart along an axis.

    voxels: (Z, Y, X), any real dtype; values that are not finite count as their slice's mean. Normalised
    cross-correlation at zero shift (Pearson) of at most 64 evenly spaced pairs at each lag, each on a regular grid
    of at most 16,384 pixels. A pair with a flat slice says nothing; a lag that has no other pair counts as 1.
    """
    assert 0 <= max_lag < max(voxels.shape[axis], 1), f"lag {max_lag} in {voxels.shape[axis]} slices"
    grid = _sampled(voxels, axis, _PIXELS)
    grid -= grid.mean(axis=1, keepdims=True, dtype=np.float64)  # in float32 a flat slice would not become 0
    norm = np.linalg.norm(grid, axis=1, keepdims=True)
    varies = norm[:, 0] > 0
    grid /= np.where(norm > 0, norm, 1)

    def at(lag: int) -> float:
        first = np.flatnonzero(varies[:-lag] & varies[lag:])
        if not len(first):
            return 1.0
        first = first[np.unique(np.linspace(0, len(first) - 1, _PAIRS).astype(int))]
        return float(np.einsum("ij,ij->i", grid[first], grid[first + lag]).mean(dtype=np.float64))

    return tuple(at(lag) for lag in range(1, max_lag + 1))


def slice_autocorrelation(voxels: np.ndarray, axis: int) -> tuple[float, ...]:
    """Return the autocorrelation of slices 1, 2, ... n - 1 voxels apart, as a sequence of images about their mean.

    Unlike `slice_correlation` it leaves out what all slices share (the layers that every cross section of a weave
    shows): it says how fast a slice's own part is forgotten, which is what `effective_sample_size` asks.
    voxels: (Z, Y, X), any real dtype; values that are not finite count as their slice's mean. Each lag is the mean
    over its pairs, on a regular grid of at most 1,024 pixels; slices that do not differ count as 1 at every lag.
    """
    deviations = _sampled(voxels, axis, _PIXELS // 16).astype(np.float64)
    deviations -= deviations.mean(axis=0)
    num_slices = len(deviations)
    spectrum = np.fft.rfft(deviations, 2 * num_slices, axis=0)  # padded, so that the ends do not meet
    products = np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=1), 2 * num_slices)[:num_slices]
    covariance = products / np.arange(num_slices, 0, -1)
    if not covariance[0] > 0:
        return (1.0,) * (num_slices - 1)
    return tuple((covariance[1:] / covariance[0]).tolist())


def effective_sample_size(correlation: Sequence[float], num_slices: int) -> float:
    """Return how many independent slices say as much about a mean as these: n / (1 + 2 sum of rho_k), 1 to n.

    correlation: rho_k of slices k = 1, 2, 3, ... steps apart, as `slice_autocorrelation` measures it. The sum is over
    the initial run of positive values (Geyer 1992, "Practical Markov chain Monte Carlo", section 3.3): beyond it a
    curve is noise, or a period that comes back. A curve that ends before it falls to zero gives an upper bound; so
    does the noise of a scan, which differs between slices that show the same. 0 for no slice.
    """
    assert num_slices >= 0, f"{num_slices} slices"
    if num_slices == 0:
        return 0.0
    initial = takewhile(lambda value: value > 0, correlation[: num_slices - 1])
    return max(1.0, num_slices / (1 + 2 * sum(initial)))


def _sampled(voxels: np.ndarray, axis: int, num_pixels: int) -> np.ndarray:
    """Return at most a number of pixels of each slice along an axis, on a regular grid: float32 (slice, pixel).

    Values that are not finite count as their slice's mean, and as 0 where a slice has no other.
    """
    slices = np.moveaxis(voxels, axis, 0)
    rows, columns = slices.shape[1:]
    stride = int(np.ceil(np.sqrt(rows * columns / num_pixels)))
    grid = slices[:, ::stride, ::stride].reshape(len(slices), -1).astype(np.float32)
    finite = np.isfinite(grid)
    if not finite.all():
        number = np.maximum(finite.sum(axis=1, keepdims=True), 1)
        grid = np.where(finite, grid, np.where(finite, grid, 0).sum(axis=1, keepdims=True) / number)
    return grid


def _gap(correlation: tuple[float, ...]) -> tuple[int, str]:
    """Return the gap in voxels and the reason for it."""
    below = [lag for lag, value in enumerate(correlation, start=1) if value < DECORRELATED]
    if below:
        lag, found = below[0], f"slices {below[0]} apart are the first with a correlation below {DECORRELATED}"
    elif correlation:
        # in a weave the first minimum lies near half a tow spacing; further on the correlation climbs back
        lag = int(np.argmin(correlation)) + 1
        found = (
            f"no lag up to {len(correlation)} has a correlation below {DECORRELATED}; the lowest, "
            f"{correlation[lag - 1]:.2f}, is at {lag}"
        )
    else:
        lag, found = 0, "a single slice has no correlation"
    if lag < SMALLEST_GAP_PX:
        return SMALLEST_GAP_PX, f"the smallest gap allowed; {found}"
    return lag, found


def _replaced(block: Block, axis: int, bounds: tuple[int, int]) -> Block:
    first, second, third = (bounds if i == axis else span for i, span in enumerate(block.bounds))
    return Block((first, second, third))
