"""The grey window of a volume: found once for the whole volume, stored, and inverted exactly."""

from __future__ import annotations

import numpy as np

from data.volume_specs import SPECS_FILE, VolumeError

WINDOW_PERCENTILES = (0.5, 99.5)


def find_window(voxels: np.ndarray, declared: tuple[float, float] | None, where: str) -> tuple[float, float]:
    """Return the window (low, high) in native grey values: the one declared, or the percentiles of the volume.

    voxels: (Z, Y, X). The percentiles are those of every second voxel along each axis, without what is not finite and
    without exact 0 in uint16 and float32, where it is padding. uint8 has been windowed by whoever made it and keeps 0
    to 255. Raises VolumeError, which names `where`, for a volume without contrast and for a window beside its values.
    """
    values, counts = _grey_values(voxels)
    if values.size == 0:
        raise VolumeError(where, "holds nothing but 0 and NaN; export the scan again")
    lowest, highest = float(values[0]), float(values[-1])
    if declared is not None:
        if declared[1] <= lowest or declared[0] >= highest:
            raise VolumeError(
                where,
                f"the window {list(declared)} holds no grey value of the volume, which has {lowest:g} to "
                f"{highest:g}; correct it in {SPECS_FILE}",
            )
        return declared
    low, high = (_percentile(values, counts, percent) for percent in WINDOW_PERCENTILES)
    if low >= high:
        raise VolumeError(
            where,
            f"its percentiles {WINDOW_PERCENTILES[0]} and {WINDOW_PERCENTILES[1]} are both {low:g} (grey values "
            f"{lowest:g} to {highest:g}): no contrast to learn; give a window in {SPECS_FILE} or export the scan again",
        )
    return (0.0, 255.0) if voxels.dtype.name == "uint8" else (low, high)


def _grey_values(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the grey values of a sub-sample in ascending order, and how often each occurs (None: once each)."""
    sample = (plane[::2, ::2] for plane in voxels[::2])
    if voxels.dtype.kind == "f":
        kept = [plane[np.isfinite(plane) & (plane != 0)] for plane in sample]
        values = np.concatenate(kept).astype(voxels.dtype.newbyteorder("="), copy=False)
        values.sort()
        return values, None
    # a histogram holds no copy of the volume, which may take most of the memory there is
    limits = np.iinfo(voxels.dtype)
    counts = np.zeros(limits.max - limits.min + 1, np.int64)
    for plane in sample:
        counts += np.bincount(plane.ravel().astype(np.int32) - limits.min, minlength=counts.size)
    if voxels.dtype.name == "uint16":
        counts[0] = 0
    present = np.flatnonzero(counts)
    return present + limits.min, counts[present]


def _percentile(values: np.ndarray, counts: np.ndarray | None, percent: float) -> float:
    """Return a percentile of ascending values, interpolated linearly between neighbours (Hyndman and Fan 1996, 7)."""
    ends = None if counts is None else np.cumsum(counts)
    total = values.size if ends is None else int(ends[-1])
    rank = percent / 100 * (total - 1)
    first = int(rank)
    second = min(first + 1, total - 1)
    if ends is not None:
        first, second = (int(np.searchsorted(ends, position, side="right")) for position in (first, second))
    low, high = float(values[first]), float(values[second])
    return low + (rank - int(rank)) * (high - low)


def window_to_unit(plane: np.ndarray, *, low: float, high: float) -> tuple[np.ndarray, int]:
    """Return the plane mapped from the window to [0, 1], and how many pixels fell outside the window.

    plane: (row, column), any real dtype. low, high: the window in native grey values. The result is float32 (row,
    column), clipped; NaN becomes 0 and is counted. Raises VolumeError when low >= high.
    """
    if not low < high:
        raise VolumeError(
            "window", f"found low {low:g}, high {high:g}, expected low < high; correct it in {SPECS_FILE}"
        )
    unit = (plane.astype(np.float64) - low) / (high - low)
    outside = ~((unit >= 0) & (unit <= 1))
    unit = np.clip(np.nan_to_num(unit, nan=0.0), 0, 1)
    return unit.astype(np.float32), int(outside.sum())


def unit_to_native(unit: np.ndarray, *, low: float, high: float, dtype: np.dtype | type | str) -> np.ndarray:
    """Return native grey values: the inverse of window_to_unit, rounded and clipped to what an integer dtype holds.

    unit: any shape, finite; 0 is low, 1 is high. dtype: of the result.
    """
    assert np.isfinite(unit).all(), "grey values are finite"
    native = low + unit.astype(np.float64) * (high - low)
    target = np.dtype(dtype)
    if target.kind in "iu":
        limits = np.iinfo(target)
        native = np.clip(np.rint(native), limits.min, limits.max)
    return native.astype(target)
