"""How images look as a whole: their power at each frequency and the shares of their tones, with bands over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.errors import DataError
from data.randomness import generator
from pipelines.metrics.estimates import NUM_RESAMPLES
from pipelines.metrics.inputs import checked_pictures, luminance
from pipelines.metrics.slices.pooled import QUANTISATION_POWER
from pipelines.metrics.slices.statistics import radial_frequencies, radial_power

NUM_TONES = 32  # bins of a histogram, from black to full
Tone = Literal["grey", "red", "green", "blue"]


@dataclass(frozen=True, eq=False)
class Band:
    """A mean curve over images with its 95 % band. x, value, low, high: (K,). num_images: of the smallest group."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_images: int


def radial_spectrum(groups: Sequence[np.ndarray], *, seed: int = 0) -> Band:
    """Return the mean power spectral density of images in decibels, against cycles per px.

    groups: pictures of one size, float (N, H, W, 3) in [0, 1], for each caption; captions count alike, however many
    images they have. Of the brightness, averaged over directions through a Hann window; white noise of variance v lies
    at 10 log10 v at all frequencies. What rounding to 8 bits hides is set to the power of that rounding.
    Raises DataError for pictures of another shape or range, or of different sizes.
    """
    checked = [checked_pictures(pictures, "power spectrum") for pictures in groups]
    sizes = {pictures.shape[1:3] for pictures in checked}
    if len(sizes) != 1:
        found = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes)) or "none"
        raise DataError("power spectrum", f"found pictures of {found} px, expected one size.")
    band = _band(radial_frequencies(sizes.pop()), [radial_power(luminance(each)) for each in checked], seed)
    return Band(band.x, _decibels(band.value), _decibels(band.low), _decibels(band.high), band.num_images)


def tone_histogram(groups: Sequence[np.ndarray], tone: Tone, *, seed: int = 0) -> Band:
    """Return the share of pixels in each of NUM_TONES bins of the brightness, or of one colour, against 0 to 1.

    groups: pictures, float (N, H, W, 3) in [0, 1], for each caption; captions count alike. x: centres of the bins.
    Raises DataError for pictures of another shape or range.
    """
    checked = [checked_pictures(pictures, f"{tone} histogram") for pictures in groups]
    centres = (np.arange(NUM_TONES) + 0.5) / NUM_TONES
    return _band(centres, [_shares(_levels(pictures, tone)) for pictures in checked], seed)


def _levels(pictures: np.ndarray, tone: Tone) -> np.ndarray:
    return luminance(pictures) if tone == "grey" else pictures[..., ("red", "green", "blue").index(tone)]


def _shares(levels: np.ndarray) -> np.ndarray:
    """(N, H, W) in [0, 1] -> (N, NUM_TONES), each row with the sum 1."""
    bins = np.clip((levels.reshape(len(levels), -1) * NUM_TONES).astype(np.int64), 0, NUM_TONES - 1)
    return np.stack([np.bincount(row, minlength=NUM_TONES) / row.size for row in bins])


def _band(x: np.ndarray, groups: Sequence[np.ndarray], seed: int) -> Band:
    """Return the mean of the groups' mean curves; the images of every group are drawn again, the groups are not."""
    draws = np.zeros((NUM_RESAMPLES, len(x)))
    for place, curves in enumerate(groups):
        size = len(curves)
        counts = generator(seed, "band", place, size).multinomial(size, np.full(size, 1 / size), size=NUM_RESAMPLES)
        draws += counts @ curves / (size * len(groups))
    value = np.mean([curves.mean(0) for curves in groups], axis=0)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return Band(x, value, low, high, min(map(len, groups)))


def _decibels(power: np.ndarray) -> np.ndarray:
    return np.asarray(10 * np.log10(np.maximum(power, QUANTISATION_POWER)))
