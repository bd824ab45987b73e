"""Whether every kind of real image has a generated one beside it: the detector of dropped modes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.randomness import generator
from pipelines.metrics.distances import Estimate, unit_vectors
from pipelines.metrics.estimates import half_samples, written
from pipelines.metrics.inputs import check_widths, checked_features

NUM_NEIGHBOURS = 5
NUM_SHUFFLES = 400


@dataclass(frozen=True)
class Coverage:
    """The share of real images that have a generated one in their neighbourhood.

    share: the share itself. expected: its expectation for generated images of the real images' law, at the same
    numbers. ratio: share / expected, with its interval; 1 is as real images would cover each other. p_value: how often
    real and generated images shuffled together cover as little, by one set standing for the real ones.
    """

    share: float
    expected: float
    ratio: Estimate
    p_value: float

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "share": self.share,
            "expected": self.expected,
            "ratio": written(self.ratio),
            "p_value": self.p_value,
        }


def coverage(generated: np.ndarray, real: np.ndarray, *, k: int = NUM_NEIGHBOURS, seed: int = 0) -> Coverage:
    """Return the coverage of real images by generated ones, by features (m, D) and (n, D) of one prompt.

    A real image is covered when a generated one is at most as far as its k-th nearest real neighbour, in Euclidean
    distance of unit vectors. Of use from 20 real images on.
    Source: M. F. Naeem et al., "Reliable fidelity and diversity metrics for generative models", ICML 2020, equation 7.
    Raises DataError for fewer than two generated or 2 k + 2 real images (each half has k neighbours), for features
    that are not finite, and for different widths.
    """
    generated = checked_features(generated, "generated images", at_least=2)
    real = checked_features(real, "real images", at_least=2 * k + 2)
    check_widths(generated=generated, real=real)
    y, x = unit_vectors(generated), unit_vectors(real)
    pooled = np.concatenate([x, y])
    squares = _squares(pooled)
    within, across = squares[: len(x), : len(x)], squares[: len(x), len(x) :]
    expected = expected_coverage(len(x), len(y), k)
    found = _share(within, across, k)

    def of_halves(in_generated: np.ndarray, in_real: np.ndarray) -> float:
        part = _share(within[np.ix_(in_real, in_real)], across[np.ix_(in_real, in_generated)], k)
        return part / expected_coverage(len(in_real), len(in_generated), k)

    ratio = half_samples(of_halves, [len(y), len(x)], seed=seed, value=found / expected)
    shuffles = (generator(seed, "coverage", number).permutation(len(pooled)) for number in range(NUM_SHUFFLES))
    as_little = sum(_shuffled_share(squares, order, len(x), k) <= found + 1e-12 for order in shuffles)
    return Coverage(
        found, expected, replace(ratio, draws=np.clip(ratio.draws, 0, None)), (1 + as_little) / (1 + NUM_SHUFFLES)
    )


def expected_coverage(num_real: int, num_generated: int, k: int = NUM_NEIGHBOURS) -> float:
    """Return the expected coverage where generated images follow the law of the real ones.

    1 - prod_{i=1..k} (n - i) / (n - i + m): none of the k images nearest to a real one is a generated one. For n = m
    it is the closed form of Naeem et al. 2020, section 3.3.
    """
    return 1 - math.prod((num_real - i) / (num_real - i + num_generated) for i in range(1, k + 1))


def _share(within: np.ndarray, across: np.ndarray, k: int) -> float:
    # the image itself, at distance 0, comes first
    radii = np.partition(within, k, axis=1)[:, k]
    return float((across.min(1) <= radii).mean())


def _shuffled_share(squares: np.ndarray, order: np.ndarray, num_real: int, k: int) -> float:
    real, generated = order[:num_real], order[num_real:]
    return _share(squares[np.ix_(real, real)], squares[np.ix_(real, generated)], k)


def _squares(vectors: np.ndarray) -> np.ndarray:
    squares = np.clip(2 - 2 * (vectors @ vectors.T), 0, None)
    np.fill_diagonal(squares, 0)
    return np.asarray(squares)
