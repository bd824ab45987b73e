"""Generated slices against real ones, descriptor by descriptor, beside what two real blocks differ by.

A distance is never zero: two sets of real slices have one too. It is therefore read as a ratio to that floor,

    ratio = distance(generated, real held out) / max(distance(real training, real held out), smallest floor),

1 where generated slices are as near to the held-out block as the training block is. Two blocks of one specimen can be
closer to each other than two specimens of one material ever are, and a ratio to a tiny floor would call the second
specimen wrong; the smallest floor of each descriptor prevents that. The smallest floors are half the distance that, of
generated weaves of two seeds and one state and plane, nine in ten pairs stay below (64 slices of 64 px at 40 um).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from data.errors import DataError
from data.slices import evenly_spaced
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import written
from pipelines.metrics.slices.descriptors import DESCRIPTORS, Descriptor, SliceDescriptors, Unmeasured

Verdict = Literal["near", "apart", "far", "inconclusive", "too few", "not measured"]

NEAR_RATIO, FAR_RATIO = 2.0, 5.0
MOST_UNSTABLE = 0.05  # share of resamples in which a value may be missing


@dataclass(frozen=True, eq=False)
class SliceComparison:
    """One descriptor of generated slices beside that of real held-out ones.

    unit: "window" (share of the grey window), "%", "" (a correlation), "um" or "px", "deg" or "dB"; that of the
    values, the distance and the floor. value_real, value_generated: see `meaning`; None where a set has none, such as
    the mean direction of a grain without any. distance: generated to real held out. floor: real training to real held
    out. smallest_floor: below which the ratio does not follow it. ratio: distance over floor, ratio_low and ratio_high
    its 95 % interval. From distance on all None, with the reason, where these slices do not show the descriptor.
    """

    name: str
    meaning: str
    unit: str
    value_real: float | None = None
    value_generated: float | None = None
    distance: Estimate | None = None
    floor: Estimate | None = None
    smallest_floor: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    reason: str | None = None

    @property
    def verdict(self) -> Verdict:
        """How near, by the interval of the ratio: near where it ends at 2 or below, apart where it begins above 2, far
        where it begins above 5, else inconclusive; too few below 10 slices in a set."""
        if self.distance is None or self.floor is None or self.ratio_low is None or self.ratio_high is None:
            return "not measured"
        if "none" in (self.distance.verdict, self.floor.verdict):
            return "too few"
        if self.ratio_low > FAR_RATIO:
            return "far"
        if self.ratio_low > NEAR_RATIO:
            return "apart"
        return "near" if self.ratio_high <= NEAR_RATIO else "inconclusive"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it; estimates with their 95 % interval and number of slices."""
        return {
            "meaning": self.meaning,
            "unit": self.unit,
            "value_real": self.value_real,
            "value_generated": self.value_generated,
            "distance": written(self.distance),
            "floor": written(self.floor),
            "smallest_floor": self.smallest_floor,
            "ratio": self.ratio,
            "ratio_interval": None if self.ratio is None else [self.ratio_low, self.ratio_high],
            "verdict": self.verdict,
            "reason": self.reason,
        }


def compare_slices(
    real_train: np.ndarray,
    real_held_out: np.ndarray,
    generated: np.ndarray,
    um_per_px: float | None = None,
    seed: int = 0,
) -> dict[str, SliceComparison]:
    """Return every descriptor of generated slices against real held-out ones, by name, in a fixed order.

    Each set: float (N, row, column) in [0, 1] of the volume's window, two slices or more, all of one size and pixel
    scale, of one state and plane: sets of several kinds are to be compared kind by kind. The threshold between tow and
    background is Otsu's on real_train. Plug-in distances shrink as sets grow, so the floor takes at most as many
    training slices, evenly spaced, as there are generated ones.
    Intervals: 95 %, bootstrap over slices, keyed by seed. Neighbouring slices of a volume are alike, so give slices
    that are some way apart, as `held_out_pixels` does; the intervals of neighbours are too narrow. A resample adds
    its own noise to a distance, so resamples are shifted until their mean is the value.
    Raises DataError for sets that cannot be used, or whose sizes in px differ; SettingsError for a scale that is none.
    """
    sets = {"real_train": real_train, "real_held_out": real_held_out, "generated": generated}
    _check_alike(sets)
    if len(real_train) > len(generated):
        sets["real_train"] = np.asarray(real_train)[evenly_spaced(len(real_train), len(generated))]
    # the threshold rests on all training slices that are given
    threshold = SliceDescriptors.measure(real_train, um_per_px).threshold
    measured = {name: SliceDescriptors.measure(each, um_per_px, threshold) for name, each in sets.items()}
    return {
        descriptor.name: _compared(
            descriptor, measured["real_train"], measured["real_held_out"], measured["generated"], seed
        )
        for descriptor in DESCRIPTORS
    }


def _check_alike(sets: dict[str, np.ndarray]) -> None:
    problems = []
    shapes = {name: np.shape(each) for name, each in sets.items()}
    if any(len(shape) != 3 for shape in shapes.values()):
        problems += [
            f"{name}: found shape {shape}, expected (slices, rows, columns)."
            for name, shape in shapes.items()
            if len(shape) != 3
        ]
    else:
        problems += [
            f"{name}: found {shape[0]} slices, expected at least two." for name, shape in shapes.items() if shape[0] < 2
        ]
        if len({shape[1:] for shape in shapes.values()}) > 1:
            sizes = ", ".join(f"{name} {shape[1]} x {shape[2]}" for name, shape in shapes.items())
            problems.append(f"found slices of different sizes in px ({sizes}). Crop them alike, at one pixel scale.")
    if problems:
        raise DataError("sets of slices", *problems)


def _compared(
    descriptor: Descriptor, train: SliceDescriptors, held_out: SliceDescriptors, generated: SliceDescriptors, seed: int
) -> SliceComparison:
    result = SliceComparison(descriptor.name, descriptor.meaning, descriptor.unit_of(held_out))
    scale = descriptor.scale_of(held_out)
    named = {"real training": train, "real held-out": held_out, "generated": generated}
    found: dict[str, np.ndarray] = {}
    for name, each in named.items():
        statistic = descriptor.statistic(each)
        if isinstance(statistic, Unmeasured):
            return replace(result, reason=f"{name} slices: {statistic.reason}")
        found[name] = statistic
    real, drawn = descriptor.value_of(held_out), descriptor.value_of(generated)
    distance, floor = (
        _distance(descriptor.distance, found["real held-out"], found[name], scale, seed)
        for name in ("generated", "real training")
    )
    result = replace(result, value_real=real, value_generated=drawn)
    missing = {"generated": distance, "real training": floor}
    unstable = [name for name, estimate in missing.items() if np.isnan(estimate.draws).mean() > MOST_UNSTABLE]
    if unstable:
        return replace(result, reason=f"{' and '.join(unstable)} against real held-out slices: {descriptor.why_not}")
    smallest = descriptor.smallest_floor * (real if descriptor.unit == "length" and real is not None else 1.0)
    ratios = distance.draws / np.fmax(floor.draws, smallest)
    return replace(
        result,
        distance=distance,
        floor=floor,
        smallest_floor=smallest,
        ratio=distance.value / max(floor.value, smallest),
        ratio_low=float(np.nanquantile(ratios, 0.025)),
        ratio_high=float(np.nanquantile(ratios, 0.975)),
    )


def _distance(
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    reference: np.ndarray,
    other: np.ndarray,
    scale: float,
    seed: int,
) -> Estimate:
    """Return a distance of two sets of slices, statistics (n, K) and (m, K), with draws whose mean is the value."""

    def statistic(reference_counts: np.ndarray, other_counts: np.ndarray) -> np.ndarray:
        return scale * distance(_mean(reference_counts, reference), _mean(other_counts, other))

    estimate = bootstrap_interval(statistic, (len(reference), len(other)), seed=seed)
    if np.isnan(estimate.draws).all():
        return estimate
    shift = np.nanmean(estimate.draws) - estimate.value
    return replace(estimate, draws=np.clip(estimate.draws - shift, 0, None))


def _mean(counts: np.ndarray, statistic: np.ndarray) -> np.ndarray:
    """Return the means (R, K) of a statistic (n, K) under counts (R, n)."""
    return np.asarray(counts @ statistic / counts.sum(1, keepdims=True))
