"""How much images of one prompt differ from each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.metrics.distances import mean_of_pairs, unit_vectors


@dataclass(frozen=True)
class PairwiseDistance:
    """The mean distance of all pairs of two different images, as a function of how often each image counts.

    distances: (n, n), of unit feature vectors. For `distances.bootstrap_interval`.
    """

    distances: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> PairwiseDistance:
        """Return it for features (n, D), two images or more; Euclidean between unit vectors, 0 to 2."""
        vectors = unit_vectors(features)
        if len(vectors) < 2:
            raise ValueError(f"found {len(vectors)} images, expected at least two")
        squares = np.clip(2 - 2 * (vectors @ vectors.T), 0, None)
        np.fill_diagonal(squares, 0)
        return cls(np.sqrt(squares))

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Return the mean distances (R,) for counts (R, n)."""
        return mean_of_pairs(self.distances, counts)


def vendi_score(features: np.ndarray) -> float:
    """Return the effective number of different images, 1 to n (Friedman and Dieng 2023, arXiv:2210.02410, equation 3).

    exp of the entropy of the eigenvalues of K / n, K the cosines of features (n, D). It grows with n: compare at equal
    n only.
    """
    vectors = unit_vectors(features)
    eigenvalues = np.linalg.eigvalsh(vectors @ vectors.T / len(vectors))
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))
