"""How far the drawn pictures and the real ones overlap: are drawn ones among the real, and all real ones reached?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.metrics.distances import Estimate, unit_vectors
from pipelines.metrics.estimates import half_samples_of_all
from pipelines.metrics.inputs import check_widths, checked_features

Measure = Literal["precision", "recall", "density", "coverage"]
MEASURES: tuple[Measure, ...] = ("precision", "recall", "density", "coverage")
NUM_NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class Overlap:
    """Drawn and real pictures of one caption, by the balls around each picture that reach its k-th nearest of its kind.

    precision: share of the drawn pictures within the ball of a real one. recall: share of the real ones within the ball
    of a drawn one. density: in how many balls of real pictures a drawn one lies, over k; 1 for one law, and more where
    the drawn ones keep to the middle. coverage: share of the real pictures with a drawn one in their ball. num_covered,
    num_real: as counts. Only density can be read without a floor: the others depend on how many pictures there are, so
    hold them against other real pictures in the place of the drawn ones, as many.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    num_covered: int
    num_real: int


def overlap(drawn: np.ndarray, real: np.ndarray, *, k: int = NUM_NEIGHBOURS, seed: int = 0) -> Overlap:
    """Return the overlap of drawn pictures (m, D) and real ones (n, D), Euclidean distances of unit vectors.

    Source: T. Kynkaanniemi et al., "Improved precision and recall metric", NeurIPS 2019, equation 1; M. F. Naeem et
    al., "Reliable fidelity and diversity metrics", ICML 2020, equations 5 and 6. Intervals from halves of both sets.
    Raises DataError for fewer than two drawn or 2 k + 2 real pictures, features that are not finite, other widths.
    """
    drawn = checked_features(drawn, "drawn pictures", at_least=2)
    real = checked_features(real, "real pictures", at_least=2 * k + 2)
    check_widths(drawn=drawn, real=real)
    y, x = unit_vectors(drawn), unit_vectors(real)
    within, across, among = _squares(x, x), _squares(x, y), _squares(y, y)

    def of(in_drawn: np.ndarray, in_real: np.ndarray) -> np.ndarray:
        return _measures(
            within[np.ix_(in_real, in_real)],
            across[np.ix_(in_real, in_drawn)],
            among[np.ix_(in_drawn, in_drawn)],
            k,
        )

    values = _measures(within, across, among, k)
    found = half_samples_of_all(of, (len(y), len(x)), seed=seed, values=values.tolist())
    precision, recall, density, coverage = (
        Estimate(each.value, np.clip(each.draws, 0, None), each.num_images) for each in found
    )
    return Overlap(precision, recall, density, coverage, round(coverage.value * len(x)), len(x))


def _measures(within: np.ndarray, across: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """Precision, recall, density and coverage of squared distances real-real, real-drawn and drawn-drawn."""
    of_real, of_drawn = _radii(within, k), _radii(among, min(k, len(among) - 1))
    in_real = across <= of_real[:, None]
    in_drawn = across <= of_drawn[None]
    density = in_real.sum() / (k * across.shape[1])
    return np.array([in_real.any(0).mean(), in_drawn.any(1).mean(), density, in_real.any(1).mean()])


def _radii(within: np.ndarray, k: int) -> np.ndarray:
    # the picture itself, at distance 0, comes first
    return np.asarray(np.partition(within, k, axis=1)[:, k])


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.clip(2 - 2 * (x @ y.T), 0, None)
    if x is y:
        np.fill_diagonal(squares, 0)
    return np.asarray(squares)
