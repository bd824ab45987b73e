"""Values of pooled statistics, and distances of two of them.

Every function takes statistics that are averaged over the slices of a set, one row for each resample, (R, K), and
returns R values. Histograms need not be normalised.
"""

from __future__ import annotations

import numpy as np

SMALLEST_PROMINENCE = 0.05  # of a side peak, in units of the variance
# rounding to 8 bits adds this variance: a spectrum below it is one that a picture file cannot hold
QUANTISATION_POWER = (1 / 255) ** 2 / 12
_LEAST_ALIGNED = 0.1  # mean resultant length of doubled angles below which there is no mean direction: 61 degrees


def mean_of(histograms: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the mean position under histograms (R, K), positions (K,); NaN where nothing was counted."""
    return _divided(histograms @ positions, histograms.sum(1))


def wasserstein(x: np.ndarray, y: np.ndarray, bin_width: float) -> np.ndarray:
    """Return the 1-Wasserstein distance of histograms (R, K) with bins of equal width: the area between their CDFs."""
    return bin_width * np.abs(np.cumsum(_shares(x) - _shares(y), axis=1)).sum(1)


def circular_wasserstein(x: np.ndarray, y: np.ndarray, bin_width: float) -> np.ndarray:
    """Return the 1-Wasserstein distance of histograms (R, K) on a circle.

    The area between the CDFs less the median of their difference (J. Rabin, J. Delon and Y. Gousseau, "Transportation
    distances on the circle", J. Math. Imaging Vis. 2011, equation 11).
    """
    difference = np.cumsum(_shares(x) - _shares(y), axis=1)
    return bin_width * np.abs(difference - np.median(difference, axis=1, keepdims=True)).sum(1)


def axial_mean_deg(histograms: np.ndarray) -> np.ndarray:
    """Return the mean direction, -90 to 90 degrees, of histograms over 180 degrees; NaN where there is none."""
    resultant = _doubled_resultant(histograms)
    angle = np.degrees(np.angle(resultant)) / 2
    return np.where(np.abs(resultant) > _LEAST_ALIGNED, angle, np.nan)


def axial_deviation_deg(histograms: np.ndarray) -> np.ndarray:
    """Return the circular standard deviation in degrees of directions, which repeat after 180 degrees.

    sqrt(-2 ln R) / 2, R the mean resultant length of the doubled angles (K. Mardia and P. Jupp, "Directional
    Statistics", 2000, section 2.3); NaN where there is no mean direction.
    """
    length = np.abs(_doubled_resultant(histograms))
    known = length > _LEAST_ALIGNED
    return np.where(known, np.degrees(np.sqrt(-2 * np.log(np.where(known, length, 1)))) / 2, np.nan)


def mean_correlation(covariance: np.ndarray) -> np.ndarray:
    """Return the mean of the normalised autocovariance (R, L + 1) over lags 1 to L."""
    return _normalised(covariance)[:, 1:].mean(1)


def curve_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of two normalised autocovariances (R, L + 1) over lags 1 to L."""
    return np.abs(_normalised(x) - _normalised(y))[:, 1:].mean(1)


def pitch_px(covariance: np.ndarray) -> np.ndarray:
    """Return the lag of the first side peak of autocovariances (R, L + 1), between pixels; NaN where there is none.

    A side peak is the highest lag between a rise and a fall that are both of SMALLEST_PROMINENCE of the variance or
    more. Its place is the vertex of the parabola through it and its two neighbours.
    """
    curves = _normalised(covariance)
    peak = _first_peaks(curves)
    found = peak > 0
    rows, lags = np.flatnonzero(found), peak[found]
    before, at, after = (curves[rows, lags + step] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend != 0)
    result = np.full(len(curves), np.nan)
    result[found] = lags + shift
    return result


def _first_peaks(curves: np.ndarray) -> np.ndarray:
    """Return the lag of the first side peak of each curve (R, L + 1), 0 where there is none."""
    num = len(curves)
    lowest, highest = curves[:, 0].copy(), np.full(num, -np.inf)
    candidate, peak = np.zeros(num, np.int64), np.zeros(num, np.int64)
    for lag in range(1, curves.shape[1]):
        now = curves[:, lag]
        lowest = np.minimum(lowest, now)
        higher = (now - lowest >= SMALLEST_PROMINENCE) & (now > highest)
        highest, candidate = np.where(higher, now, highest), np.where(higher, lag, candidate)
        fallen = (candidate > 0) & (highest - now >= SMALLEST_PROMINENCE)
        peak = np.where((peak == 0) & fallen, candidate, peak)
    return peak


def band_level_db(power: np.ndarray) -> np.ndarray:
    """Return the mean power density (R, K) of a band in dB, re 1 grey^2 px^2; that of rounding to 8 bits is added."""
    return 10 * np.log10(power.mean(1) + QUANTISATION_POWER)


def log_spectral_distance_db(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the root mean square over frequencies of the ratio of two power spectra (R, K) in dB."""
    ratio = 10 * np.log10((x + QUANTISATION_POWER) / (y + QUANTISATION_POWER))
    return np.sqrt((ratio**2).mean(1))


def _doubled_resultant(histograms: np.ndarray) -> np.ndarray:
    phases = np.exp(2j * np.pi * np.arange(histograms.shape[1]) / histograms.shape[1])
    return _shares(histograms) @ phases


def _shares(histograms: np.ndarray) -> np.ndarray:
    return _divided(histograms, histograms.sum(1, keepdims=True))


def _normalised(covariance: np.ndarray) -> np.ndarray:
    return _divided(covariance, covariance[:, :1])


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)
