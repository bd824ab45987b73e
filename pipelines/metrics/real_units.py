"""How far drawn pictures lie from real ones, in units of the real: 1 is as far as other real pictures are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.metrics.distances import Estimate, bootstrap_interval, mean_of_pairs, unit_vectors
from pipelines.metrics.estimates import ratio

NUM_PICTURES = 16


@dataclass(frozen=True)
class SetDistance:
    """The distance of two sets as a function of how often each picture counts: for `distances.bootstrap_interval`.

    The root of the energy distance that two sets of NUM_PICTURES pictures would have on average,

        d^2 = 2 E |x - y| - (1 - 1 / NUM_PICTURES) (E |x - x'| + E |y - y'|),

    with Euclidean distances of unit vectors and means over pairs of different pictures. Without 1 / NUM_PICTURES it is
    the energy distance of the two laws (G. Szekely and M. Rizzo, "Energy statistics", Journal of Statistical Planning
    and Inference 2013, equation 5), which is 0 for one law and could be no unit. So large a set that it is, the value
    does not depend on how many pictures there are.
    """

    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    @classmethod
    def between(cls, x: np.ndarray, y: np.ndarray) -> SetDistance:
        """Return the distance of features x (n, D) and y (m, D), two rows or more each."""
        one, other = unit_vectors(x, "x"), unit_vectors(y, "y")
        return cls(_distances(one, one), _distances(other, other), _distances(one, other))

    def __call__(self, x_counts: np.ndarray, y_counts: np.ndarray) -> np.ndarray:
        """Return the distances (R,) for counts (R, n) and (R, m)."""
        across = ((x_counts @ self.xy) * y_counts).sum(1) / (x_counts.sum(1) * y_counts.sum(1))
        within = mean_of_pairs(self.xx, x_counts) + mean_of_pairs(self.yy, y_counts)
        return np.sqrt(np.maximum(2 * across - (1 - 1 / NUM_PICTURES) * within, 0))


def set_distance(references: np.ndarray, others: np.ndarray, *, seed: int) -> Estimate:
    """Return the distance of others (m, D) to references (n, D), resampled over both sets.

    Distances to the same references with the same seed are paired, so that their ratios have the right intervals.
    """
    pair = SetDistance.between(references, others)
    return bootstrap_interval(pair, (len(references), len(others)), seed=seed)


def times_as_far(pictures: Estimate, real: Estimate) -> Estimate | None:
    """Return how many times as far pictures lie from the references as other real pictures do.

    pictures, real: of `set_distance` to the same references. None where no real picture differs from another.
    """
    return ratio(pictures, real)


def skill(drawn: Estimate | None, base: Estimate | None, ceiling: Estimate | None) -> Estimate | None:
    """Return the share of the way that fine-tuning has gone, (base - drawn) / (base - ceiling), distances not squared.

    0 is as far as the base's pictures, 1 as near as real pictures that went through the base's autoencoder, which is
    as near as an adapter can come. All three of `times_as_far`, with one seed. None where it is undefined: fewer than
    10 pictures in a set, or a base that is not farther than the ceiling by the intervals.
    """
    if drawn is None or base is None or ceiling is None:
        return None
    if "none" in (drawn.verdict, base.verdict) or base.low <= ceiling.high:
        return None
    gap = base.draws - ceiling.draws
    draws = (base.draws - drawn.draws) / np.where(gap > 0, gap, np.nan)
    value = (base.value - drawn.value) / (base.value - ceiling.value)
    return Estimate(value, draws, min(drawn.num_images, base.num_images))


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = np.sqrt(np.clip(2 - 2 * (x @ y.T), 0, None))
    if x is y:
        np.fill_diagonal(found, 0)
    return found
