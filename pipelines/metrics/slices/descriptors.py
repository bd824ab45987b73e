"""The descriptors of woven slices: grey levels, tow fraction, S2 and pitch, chords, grain direction, spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from skimage.filters import threshold_otsu

from data.errors import DataError, SettingsError
from pipelines.metrics.estimates import finite
from pipelines.metrics.slices import pooled, statistics

SMALLEST_SIDE_PX = 16  # a smaller slice has neither lags nor a spectrum worth the name
FEWEST_CHORDS = 50
LEAST_CONTRAST = 1e-3  # standard deviation of grey below which a set shows nothing, a quarter of an 8-bit step
# bands of the spectrum in cycles per px: periods above 8 px, 4 to 8 px, below 4 px
BANDS = {"weave": (0.0, 1 / 8), "texture": (1 / 8, 1 / 4), "noise": (1 / 4, math.inf)}

Unit = Literal["window", "%", "", "length", "deg", "dB"]


@dataclass(frozen=True)
class Unmeasured:
    """Why a descriptor has no value for these slices."""

    reason: str


Statistic = np.ndarray | Unmeasured


@dataclass(frozen=True, eq=False)
class SliceDescriptors:
    """A set of slices, reduced to what the descriptors need of each: float (N, K), or the reason why there is none.

    threshold: grey above which a smoothed pixel is tow, or why there is none.
    um_per_px: None where a pixel has no known size, and lengths are in px.
    """

    num_slices: int
    shape_px: tuple[int, int]
    um_per_px: float | None
    threshold: float | Unmeasured
    greys: Statistic
    fractions: Statistic
    covariance_rows: Statistic
    covariance_columns: Statistic
    tow_chords: Statistic
    background_chords: Statistic
    angles: Statistic
    power: Statistic

    @classmethod
    def measure(
        cls, slices: np.ndarray, um_per_px: float | None = None, threshold: float | Unmeasured | None = None
    ) -> SliceDescriptors:
        """Return the descriptors of slices, float (N, row, column) in [0, 1] of the volume's window.

        threshold: that of the real training slices, so that sets are cut at one grey; None is Otsu's of these slices
        after a gaussian of 1 px (N. Otsu 1979). Contrast between tows and matrix as low as in a noisy injected scan
        cannot be thresholded well: read grey levels, S2, directions and spectrum there.
        Raises DataError for another shape, no slice, and values that are not finite or outside [0, 1]; SettingsError
        for a scale that is no size.
        """
        slices = _checked(slices, um_per_px)
        rows, columns = slices.shape[1:]
        smooth = statistics.smoothed(slices)
        if threshold is None:
            threshold = _NO_THRESHOLD if smooth.std() < LEAST_CONTRAST else _threshold(smooth)
        tows = threshold if isinstance(threshold, Unmeasured) else smooth > threshold
        flat = Unmeasured("the slices have no contrast") if slices.std() < LEAST_CONTRAST else None
        small = _too_small(rows, columns) or flat
        return cls(
            num_slices=len(slices),
            shape_px=(rows, columns),
            um_per_px=um_per_px,
            threshold=threshold,
            greys=statistics.grey_histograms(slices),
            fractions=tows if isinstance(tows, Unmeasured) else statistics.fraction_histograms(tows),
            covariance_rows=small or statistics.autocovariances(slices, axis=1),
            covariance_columns=small or statistics.autocovariances(slices, axis=2),
            tow_chords=_chords(tows, True),
            background_chords=_chords(tows, False),
            angles=small or statistics.angle_histograms(slices),
            power=_too_small(rows, columns) or statistics.radial_power(slices),
        )

    def values(self) -> dict[str, float | None]:
        """Return every descriptor's value by name, lengths in `length_unit`; None where these slices show none."""
        return {descriptor.name: descriptor.value_of(self) for descriptor in DESCRIPTORS}

    @property
    def length_unit(self) -> Literal["um", "px"]:
        """The unit of lengths."""
        return "px" if self.um_per_px is None else "um"

    @property
    def scale(self) -> float:
        """The length of a pixel in that unit."""
        return 1.0 if self.um_per_px is None else self.um_per_px


@dataclass(frozen=True)
class Descriptor:
    """One figure of a set of slices, and a distance of two sets in the same unit.

    statistic: what it is made from. value, distance: of statistics averaged over slices, (R, K) -> (R,), lengths in px.
    smallest_floor: a difference between real sets that a new specimen of the same material may have; see
    `comparison`. In the unit of the descriptor, but for lengths as a share of the real value. why_not: what it means
    where there is no distance.
    """

    name: str
    meaning: str
    unit: Unit
    statistic: Callable[[SliceDescriptors], Statistic]
    value: Callable[[np.ndarray], np.ndarray]
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
    smallest_floor: float
    why_not: str = "no value"

    def value_of(self, slices: SliceDescriptors) -> float | None:
        """Return the value of a set of slices; None where they show none."""
        statistic = self.statistic(slices)
        if isinstance(statistic, Unmeasured):
            return None
        return finite(float(self.value(statistic.mean(0)[None])[0]) * self.scale_of(slices))

    def unit_of(self, slices: SliceDescriptors) -> str:
        """Return the unit of the value; that of a length depends on what is known of the slices."""
        return slices.length_unit if self.unit == "length" else self.unit

    def scale_of(self, slices: SliceDescriptors) -> float:
        """Return what a length in px is to be multiplied by, 1 for what is no length."""
        return slices.scale if self.unit == "length" else 1.0


def _checked(slices: np.ndarray, um_per_px: float | None) -> np.ndarray:
    if um_per_px is not None and not (math.isfinite(um_per_px) and um_per_px > 0):
        raise SettingsError("um_per_px", f"found {um_per_px}, expected a size in um above 0, or None where unknown.")
    found = np.asarray(slices)
    if found.ndim != 3 or 0 in found.shape:
        raise DataError("slices", f"found shape {found.shape}, expected (slices, rows, columns), none of them 0.")
    if not np.issubdtype(found.dtype, np.floating):
        raise DataError("slices", f"found {found.dtype}, expected floats in [0, 1] of the volume's window.")
    if not np.isfinite(found).all():
        raise DataError("slices", "found values that are not finite. Leave such slices out, and say so.")
    low, high = float(found.min()), float(found.max())
    if low < -1e-6 or high > 1 + 1e-6:
        raise DataError("slices", f"found values from {low:g} to {high:g}, expected [0, 1] of the volume's window.")
    return np.clip(found.astype(np.float64), 0, 1)


def _threshold(smooth: np.ndarray) -> float:
    """Return Otsu's threshold, moved to the middle between the nearest greys on its two sides."""
    num_bins = 256
    edge = threshold_otsu(smooth, nbins=num_bins) + 0.5 * np.ptp(smooth) / num_bins  # it names the centre of a bin
    upper = smooth > edge
    return float(smooth[~upper].max() + smooth[upper].min()) / 2


def _too_small(rows: int, columns: int) -> Unmeasured | None:
    if min(rows, columns) >= SMALLEST_SIDE_PX:
        return None
    return Unmeasured(f"slices of {rows} x {columns} px, at least {SMALLEST_SIDE_PX} px are needed")


_NO_THRESHOLD = Unmeasured("the slices that set the threshold have no contrast")


def _chords(tows: np.ndarray | Unmeasured, phase: bool) -> Statistic:
    if isinstance(tows, Unmeasured):
        return tows
    chords = statistics.chord_histograms(tows, phase)
    if chords.sum() < FEWEST_CHORDS:
        return Unmeasured(f"only {int(chords.sum())} chords lie wholly inside the slices, {FEWEST_CHORDS} are needed")
    return chords


def _mean_position(step: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda means: pooled.mean_of(means, step * np.arange(means.shape[1]))


def _earth_movers(step: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda x, y: pooled.wasserstein(x, y, step)


def _absolute_difference(
    value: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda x, y: np.abs(value(x) - value(y))


def _band(name: str) -> Callable[[SliceDescriptors], Statistic]:
    """Return what takes the power of one band out of the spectrum."""
    low, high = BANDS[name]

    def statistic(slices: SliceDescriptors) -> Statistic:
        if isinstance(slices.power, Unmeasured):
            return slices.power
        frequencies = statistics.radial_frequencies(slices.shape_px)
        return slices.power[:, (frequencies >= low) & (frequencies < high)]

    return statistic


def _spectrum(name: str, meaning: str, smallest_floor: float) -> Descriptor:
    return Descriptor(
        f"spectrum_{name}",
        meaning,
        "dB",
        _band(name),
        pooled.band_level_db,
        pooled.log_spectral_distance_db,
        smallest_floor,
    )


_NO_PITCH = "S2 has no side peak up to a lag of two thirds of the slice: no repetition, or one that is longer"
_GREY_STEP = 1 / (statistics.NUM_GREYS - 1)
_PERCENT_STEP = 100 / (statistics.NUM_FRACTIONS - 1)

DESCRIPTORS = (
    Descriptor(
        "grey",
        "mean grey; distance W1 of the grey histograms",
        "window",
        lambda slices: slices.greys,
        _mean_position(_GREY_STEP),
        _earth_movers(_GREY_STEP),
        0.01,
    ),
    Descriptor(
        "tow_fraction",
        "area above the threshold; distance W1 of the slices' fractions",
        "%",
        lambda slices: slices.fractions,
        _mean_position(_PERCENT_STEP),
        _earth_movers(_PERCENT_STEP),
        1.8,
    ),
    Descriptor(
        "s2_rows",
        "normalised autocovariance down the rows, mean over lags; distance mean absolute difference",
        "",
        lambda slices: slices.covariance_rows,
        pooled.mean_correlation,
        pooled.curve_difference,
        0.025,
    ),
    Descriptor(
        "s2_columns",
        "normalised autocovariance along the columns, mean over lags; distance mean absolute difference",
        "",
        lambda slices: slices.covariance_columns,
        pooled.mean_correlation,
        pooled.curve_difference,
        0.03,
    ),
    Descriptor(
        "pitch_rows",
        "first side peak of S2 down the rows; distance absolute difference",
        "length",
        lambda slices: slices.covariance_rows,
        pooled.pitch_px,
        _absolute_difference(pooled.pitch_px),
        0.01,
        _NO_PITCH,
    ),
    Descriptor(
        "pitch_columns",
        "first side peak of S2 along the columns; distance absolute difference",
        "length",
        lambda slices: slices.covariance_columns,
        pooled.pitch_px,
        _absolute_difference(pooled.pitch_px),
        0.01,
        _NO_PITCH,
    ),
    Descriptor(
        "tow_chord",
        "mean chord of tow down the rows; distance W1 of the chord lengths",
        "length",
        lambda slices: slices.tow_chords,
        _mean_position(1.0),
        _earth_movers(1.0),
        0.06,
    ),
    Descriptor(
        "background_chord",
        "mean chord of the background down the rows; distance W1 of the chord lengths",
        "length",
        lambda slices: slices.background_chords,
        _mean_position(1.0),
        _earth_movers(1.0),
        0.055,
    ),
    Descriptor(
        "angle",
        "mean direction of the grain; distance W1 of the directions on the circle",
        "deg",
        lambda slices: slices.angles,
        pooled.axial_mean_deg,
        lambda x, y: pooled.circular_wasserstein(x, y, 1.0),
        0.7,
    ),
    Descriptor(
        "waviness",
        "standard deviation of the grain's direction; distance absolute difference",
        "deg",
        lambda slices: slices.angles,
        pooled.axial_deviation_deg,
        _absolute_difference(pooled.axial_deviation_deg),
        0.5,
        "the grain has no mean direction",
    ),
    _spectrum("weave", "power at periods above 8 px; distance rms ratio over frequencies", 0.5),
    _spectrum("texture", "power at periods of 4 to 8 px; distance rms ratio over frequencies", 0.3),
    _spectrum("noise", "power at periods below 4 px; distance rms ratio over frequencies", 0.15),
)
