"""What an autoencoder takes from images: error, and power kept at each frequency, by octaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import written
from pipelines.metrics.slices.pooled import QUANTISATION_POWER
from pipelines.metrics.slices.statistics import radial_frequencies, radial_power

HALF = 0.5  # of the power of a detail; where less is left, it counts as lost


@dataclass(frozen=True, eq=False)
class Octave:
    """A band of frequencies, low to high in cycles per px.

    kept: power after over power before. error: power of the difference over power before.
    """

    low: float
    high: float
    kept: Estimate
    error: Estimate


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """Images after an autoencoder beside what they were.

    psnr_db: mean over images of the peak signal to noise ratio, for a peak of 1. frequencies: (K,) in cycles per px.
    kept, error: (K,) as in `Octave`. octaves: from coarse to fine, up to 1/2 cycle per px.
    """

    num_images: int
    psnr_db: Estimate
    frequencies: np.ndarray
    kept: np.ndarray
    error: np.ndarray
    octaves: tuple[Octave, ...]

    @property
    def finest_kept_px(self) -> float | None:
        """The period in px below which more than half the power is lost; None where no frequency loses that much.

        The first frequency at which the power kept falls below a half, between two bins by a straight line; infinite
        where the lowest one has lost it already.
        """
        return _first_below_half(self.frequencies, self.kept)

    @property
    def finest_right_px(self) -> float | None:
        """The period in px below which power is lost, or the error has more than half of it; None where neither is.

        An autoencoder may put power of its own where it lost that of the image: kept alone does not tell.
        """
        return _first_below_half(self.frequencies, np.minimum(self.kept, 1 - self.error))

    def to_json(self, um_per_px: float | None) -> dict[str, Any]:
        """Return all of it as JSON can hold it; frequencies in cycles per mm too where the scale is known."""
        content: dict[str, Any] = {
            "num_images": self.num_images,
            "psnr_db": written(self.psnr_db),
            "finest_kept_px": _period_json(self.finest_kept_px),
            "finest_right_px": _period_json(self.finest_right_px),
            "octaves": [
                {
                    "cycles_per_px": [octave.low, octave.high],
                    "kept": written(octave.kept),
                    "error": written(octave.error),
                }
                for octave in self.octaves
            ],
            "spectrum": {
                "cycles_per_px": self.frequencies.round(5).tolist(),
                "kept": self.kept.round(5).tolist(),
                "error": self.error.round(5).tolist(),
            },
        }
        if um_per_px is not None:
            content["spectrum"]["cycles_per_mm"] = (1000 / um_per_px * self.frequencies).round(5).tolist()
            for octave in content["octaves"]:
                octave["cycles_per_mm"] = [1000 / um_per_px * edge for edge in octave["cycles_per_px"]]
        return content


def round_trip(before: np.ndarray, after: np.ndarray, seed: int = 0) -> RoundTrip:
    """Return what a round trip through an autoencoder changed.

    before, after: float (N, channel, row, column) in [0, 1]. Spectra through a Hann window, averaged over directions
    and channels; the power of rounding to 8 bits is added to both sides, so that what no picture file holds cannot be
    lost. Intervals: 95 %, bootstrap over images, keyed by seed.
    """
    assert before.shape == after.shape, f"images of {before.shape} came back as {after.shape}"
    assert before.ndim == 4, f"found {before.ndim} axes, expected (N, channel, row, column)"
    rows, columns = before.shape[2:]
    frequencies = radial_frequencies((rows, columns))
    powers = tuple(_channel_power(each) for each in (before, after, after - before))
    squares = ((after - before) ** 2).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(np.maximum(squares, QUANTISATION_POWER))  # an error that 8 bits do not hold is none
    kept, error = _shares(tuple(power.sum(0) for power in powers), len(before))
    return RoundTrip(
        num_images=len(before),
        psnr_db=bootstrap_interval(lambda counts: counts @ psnr / counts.sum(1), [len(psnr)], seed=seed),
        frequencies=frequencies,
        kept=kept,
        error=error,
        octaves=tuple(_octave(frequencies, powers, low, seed) for low in _octave_edges(frequencies)),
    )


def _first_below_half(frequencies: np.ndarray, shares: np.ndarray) -> float | None:
    """Return the period in px at which a curve of shares first falls below a half."""
    lost = np.flatnonzero(shares < HALF)
    if not len(lost):
        return None
    first = int(lost[0])
    if first == 0:
        return float("inf")
    above, below = shares[first - 1], shares[first]
    low, high = frequencies[first - 1], frequencies[first]
    return float(1 / (low + (above - HALF) / (above - below) * (high - low)))


def _period_json(period_px: float | None) -> float | str | None:
    return "all" if period_px is not None and np.isinf(period_px) else period_px


def _channel_power(images: np.ndarray) -> np.ndarray:
    """(N, channel, row, column) -> (N, K), averaged over channels."""
    return np.mean([radial_power(images[:, channel]) for channel in range(images.shape[1])], axis=0)


def _octave_edges(frequencies: np.ndarray) -> list[float]:
    """Return the lower ends of the octaves below 1/2 cycle per px that hold a frequency, from coarse to fine."""
    edges = [0.25]
    while edges[-1] > frequencies[0]:
        edges.append(edges[-1] / 2)
    return edges[::-1]


def _octave(frequencies: np.ndarray, powers: tuple[np.ndarray, ...], low: float, seed: int) -> Octave:
    last = frequencies <= 2 * low if low == 0.25 else frequencies < 2 * low
    inside = (frequencies >= low) & last
    bands = tuple(power[:, inside].mean(1) for power in powers)

    def estimate(which: int) -> Estimate:
        return bootstrap_interval(
            lambda counts: _shares(tuple(counts @ band for band in bands), counts.sum(1))[which],
            [len(bands[0])],
            seed=seed,
        )

    return Octave(low, 2 * low, estimate(0), estimate(1))


def _shares(sums: tuple[np.ndarray, ...], num_images: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Return the power kept and that of the error, of sums over images of the power before, after and of the error."""
    before, after, error = sums
    least = QUANTISATION_POWER * num_images
    return (after + least) / (before + least), error / (before + least)
