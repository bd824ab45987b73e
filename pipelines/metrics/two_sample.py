"""Whether a classifier can tell drawn pictures from real ones, on pictures that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from data.slices import evenly_spaced
from pipelines.metrics.classifiers import ShrinkageLDA
from pipelines.metrics.distances import Estimate
from pipelines.metrics.estimates import share
from pipelines.metrics.inputs import check_widths, checked_features

LEVEL = 0.05
FEWEST = 10  # pictures of a set: five to fit on, five to test on


@dataclass(frozen=True, eq=False)
class TwoSample:
    """What a classifier of drawn and real pictures names rightly.

    hits: bool (N,), of the pictures that it was not fitted on, as many drawn as real ones.
    """

    hits: np.ndarray

    @property
    def p_value(self) -> float:
        """How often a coin is right as often."""
        return float(stats.binom.sf(int(self.hits.sum()) - 1, len(self.hits), 0.5))

    def p_value_beyond(self, other: TwoSample) -> float:
        """Return how often as large a share of right answers beyond another's is chance (Fisher's exact test)."""
        table = [[int(each.hits.sum()), int((~each.hits).sum())] for each in (self, other)]
        return float(stats.fisher_exact(table, alternative="greater").pvalue)

    def estimate(self, *, seed: int) -> Estimate:
        """Return the share of right answers: 0.5 where the two cannot be told apart, 1 where they always can."""
        return share(self.hits, seed=seed, purpose="told from real")


def two_sample(drawn: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> TwoSample:
    """Return the answers of a classifier two-sample test, one classifier for each caption, all answers together.

    drawn, real: features (n, D), (m, D) by caption, FEWEST or more each. Linear discriminants with shrinkage are fitted
    on the first half of both and asked about the second: neighbouring slices are nearly the same, and none has its
    neighbour on the other side. The classes count alike: as many of each are taken, evenly spaced.
    Where both follow one law the number of right answers is at most as spread as that of a fair coin: the answers on
    drawn and on real pictures are right with probabilities a and 1 - a (D. Lopez-Paz and M. Oquab, "Revisiting
    classifier two-sample tests", ICLR 2017, section 3).
    Raises DataError for fewer pictures and features that are not finite.
    """
    hits = []
    for caption, features in drawn.items():
        one = checked_features(features, f"drawn pictures of {caption!r}", at_least=FEWEST)
        other = checked_features(real[caption], f"real pictures of {caption!r}", at_least=FEWEST)
        check_widths(drawn=one, real=other)
        halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in (one, other)]
        fitted_on, asked = ([evenly(pair[half], _fewest(halves, half)) for pair in halves] for half in (0, 1))
        if not _has_spread(fitted_on):  # each class is one picture again and again
            hits.append(_nearest(fitted_on, asked))
            continue
        labels = np.repeat(["drawn", "real"], [len(each) for each in fitted_on])
        classifier = ShrinkageLDA.fit(np.concatenate(fitted_on), labels)
        hits += [classifier.predict(each) == name for each, name in zip(asked, ("drawn", "real"), strict=True)]
    return TwoSample(np.concatenate(hits))


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Return so many rows, evenly spaced; all where there are no more."""
    return rows if len(rows) <= count else rows[evenly_spaced(len(rows), count)]


def _fewest(halves: list[tuple[np.ndarray, np.ndarray]], half: int) -> int:
    return min(len(pair[half]) for pair in halves)


def _has_spread(sets: list[np.ndarray]) -> bool:
    return any(len(np.unique(each, axis=0)) > 1 for each in sets)


def _nearest(fitted_on: list[np.ndarray], asked: list[np.ndarray]) -> np.ndarray:
    """Give each picture to the nearer of two single ones; where both are one, half of the answers are right."""
    drawn, real = (each[0] for each in fitted_on)
    if np.array_equal(drawn, real):
        return np.arange(sum(map(len, asked))) % 2 == 0
    nearer_drawn = [((each - drawn) ** 2).sum(1) < ((each - real) ** 2).sum(1) for each in asked]
    return np.concatenate([nearer_drawn[0], ~nearer_drawn[1]])
