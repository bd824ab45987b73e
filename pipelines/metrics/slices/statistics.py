"""What is counted in each slice: histograms and curves (N, K) whose means over slices describe a set of them.

Slices are float (N, row, column) in [0, 1] of the volume's window. Nothing here knows a physical size: lengths are in
px, frequencies in cycles per px.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.feature import structure_tensor

NUM_GREYS = 257  # levels 0, 1/256, ..., 1
NUM_FRACTIONS = 501  # area fractions 0, 0.2, ..., 100 %
NUM_ANGLES = 180  # of one degree
PHASE_SIGMA_PX = 1.0  # a scan's noise would cut tows into crumbs
TENSOR_SIGMA_PX = 2.0
LARGEST_LAG_SHARE = 2 / 3  # of a side: further lags rest on too few pixels


def grey_histograms(slices: np.ndarray) -> np.ndarray:
    """Return how many pixels of each slice have each of NUM_GREYS levels, (N, NUM_GREYS)."""
    levels = np.rint(slices * (NUM_GREYS - 1)).astype(np.int64)
    return _counted(levels.reshape(len(slices), -1), NUM_GREYS)


def smoothed(slices: np.ndarray) -> np.ndarray:
    """Return the slices after a gaussian of PHASE_SIGMA_PX, as they are before a threshold."""
    return np.asarray(gaussian_filter(slices, (0, PHASE_SIGMA_PX, PHASE_SIGMA_PX), mode="nearest"))


def fraction_histograms(tows: np.ndarray) -> np.ndarray:
    """Return for each slice its area fraction of tow, as a 1 among NUM_FRACTIONS, (N, NUM_FRACTIONS).

    tows: bool (N, row, column).
    """
    fractions = np.rint(tows.mean(axis=(1, 2)) * (NUM_FRACTIONS - 1)).astype(np.int64)
    return _counted(fractions[:, None], NUM_FRACTIONS)


def autocovariances(slices: np.ndarray, axis: int) -> np.ndarray:
    """Return the autocovariance of each slice at lags 0, 1, ..., L px along an axis (1 rows, 2 columns), (N, L + 1).

    S2 of the grey image less its mean: the mean of g(x) g(x + lag) over all pairs of pixels inside the slice (unbiased,
    by a zero-padded FFT). L is two thirds of the side.
    """
    length = slices.shape[axis]
    centred = np.moveaxis(slices - slices.mean(axis=(1, 2), keepdims=True), axis, 2)
    power = np.abs(np.fft.rfft(centred, 2 * length)) ** 2
    lags = np.arange(int(LARGEST_LAG_SHARE * length) + 1)
    sums = np.fft.irfft(power.mean(axis=1))[:, : len(lags)]
    return np.asarray(sums / (length - lags))


def chord_histograms(tows: np.ndarray, phase: bool) -> np.ndarray:
    """Return how many chords of each slice have each length 0 to rows, (N, rows + 1).

    A chord is a run of pixels of one phase down a column; one that touches the border has no known length and is left
    out. tows: bool (N, row, column). phase: True for chords of tow, False for those of the background.
    """
    num, rows, columns = tows.shape
    lines = np.moveaxis(tows, 1, 2).reshape(num * columns, rows)
    line, change = np.nonzero(lines[:, 1:] != lines[:, :-1])
    inside = (line[1:] == line[:-1]) & (lines[line[:-1], change[:-1] + 1] == phase)
    lengths, owners = (change[1:] - change[:-1])[inside], (line[:-1] // columns)[inside]
    counts = np.bincount(owners * (rows + 1) + lengths, minlength=num * (rows + 1))
    return counts.reshape(num, rows + 1).astype(np.float64)


def angle_histograms(slices: np.ndarray) -> np.ndarray:
    """Return the coherency at each direction of the grain, 0, 1, ..., 179 degrees, of each slice, (N, NUM_ANGLES).

    The direction along which greys change least, from the structure tensor (J. Bigun and G. Granlund, ICCV 1987): 0
    along the columns' axis (to the right), positive towards the first row. Each pixel counts by its coherency
    (l1 - l2) / (l1 + l2), 0 to 1; a border of two sigma is left out.
    """
    margin = round(2 * TENSOR_SIGMA_PX)
    inner = slice(margin, -margin)
    histograms = np.zeros((len(slices), NUM_ANGLES))
    for number, image in enumerate(slices):
        rr, rc, cc = (
            part[inner, inner] for part in structure_tensor(image, sigma=TENSOR_SIGMA_PX, mode="nearest", order="rc")
        )
        # greys change most along half the argument of (rr - cc, 2 rc); the grain is at right angles to that. Rows
        # point down, and an angle is positive upwards.
        steepest = 0.5 * np.arctan2(-2 * rc, cc - rr)
        bins = np.rint(np.degrees(steepest) + 90).astype(np.int64) % NUM_ANGLES
        total = rr + cc
        coherency = np.divide(np.hypot(rr - cc, 2 * rc), total, out=np.zeros_like(total), where=total > 1e-9)
        histograms[number] = np.bincount(bins.ravel(), coherency.ravel(), minlength=NUM_ANGLES)
    return histograms


def radial_frequencies(shape: tuple[int, int]) -> np.ndarray:
    """Return the centres in cycles per px of the bins of `radial_power`, up to 0.5, for slices of (rows, columns)."""
    short = min(shape)
    return np.arange(1, short // 2 + 1) / short


def radial_power(slices: np.ndarray) -> np.ndarray:
    """Return the power spectral density of each slice, averaged over directions, (N, K), in grey^2 px^2.

    Through a Hann window, its weighted mean removed; white noise of variance v gives v at all frequencies.
    """
    num, rows, columns = slices.shape
    window = np.outer(np.hanning(rows + 2)[1:-1], np.hanning(columns + 2)[1:-1])
    ring = radial_rings((rows, columns))
    inside = (ring >= 1) & (ring <= min(rows, columns) // 2)
    sizes = np.bincount(ring[inside])[1:]
    power = np.empty((num, len(sizes)))
    for number, image in enumerate(slices):
        centred = (image - (image * window).sum() / window.sum()) * window
        density = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
        power[number] = np.bincount(ring[inside], density[inside])[1:] / sizes
    return power


def radial_rings(shape: tuple[int, int]) -> np.ndarray:
    """Return the bin, 0 for the mean, then 1, 2, ..., of every coefficient of fft2, int (row, column)."""
    rows, columns = (np.fft.fftfreq(side) for side in shape)
    return np.rint(np.hypot(rows[:, None], columns[None, :]) * min(shape)).astype(np.int64)


def _counted(indices: np.ndarray, num_bins: int) -> np.ndarray:
    """(N, values) of bin numbers -> (N, num_bins) of counts."""
    offsets = np.arange(len(indices))[:, None] * num_bins
    counts = np.bincount((indices + offsets).ravel(), minlength=len(indices) * num_bins)
    return counts.reshape(len(indices), num_bins).astype(np.float64)
