"""How much images of one prompt differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.randomness import generator
from pipelines.metrics.correlation import correlations
from pipelines.metrics.distances import Estimate, bootstrap_interval, mean_of_pairs, unit_vectors
from pipelines.metrics.estimates import half_samples
from pipelines.metrics.inputs import checked_features, checked_pictures


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


def pairwise_distance(features: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean distance of pairs of images of one prompt, by features (n, D): 0 for one image repeated, to 2.

    Raises DataError for fewer than two images and features that are not finite.
    """
    features = checked_features(features, "pairwise distance", at_least=2)
    return bootstrap_interval(PairwiseDistance.of(features), [len(features)], seed=seed)


def spatial_distance(pictures: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean of 1 - greatest correlation over all shifts, of pairs of images of one prompt.

    0 for one image repeated, near 1 for images without a common structure; it sees an image that is repeated at another
    place, which texture features do not tell from a fresh one. pictures: float32 (n, H, W, 3) in [0, 1], two or more.
    """
    pictures = checked_pictures(pictures, "spatial distance", at_least=2)
    distances = np.clip(1 - correlations(pictures, pictures), 0, None)
    np.fill_diagonal(distances, 0)
    return bootstrap_interval(PairwiseDistance(distances), [len(pictures)], seed=seed)


def vendi_score(features: np.ndarray) -> float:
    """Return the effective number of different images, 1 to n (Friedman and Dieng 2023, arXiv:2210.02410, equation 3).

    exp of the entropy of the eigenvalues of K / n, K the cosines of features (n, D). It grows with n: compare at equal
    n only.
    """
    vectors = unit_vectors(features)
    eigenvalues = np.linalg.eigvalsh(vectors @ vectors.T / len(vectors))
    positive = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def vendi_ratio(generated: np.ndarray, real: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the Vendi score of generated images over that of as many real ones; 1 is as diverse as real images.

    Features (n, D) and (m, D) of one prompt; where n and m differ, the mean over 20 random subsets of the larger set.
    Raises DataError for fewer than two images in a set and features that are not finite.
    """
    sets = [checked_features(each, f"{name} images", at_least=2) for each, name in _named(generated, real)]
    count = min(len(each) for each in sets)
    scores = [_mean_vendi(each, count, seed) for each in sets]

    def of_halves(in_generated: np.ndarray, in_real: np.ndarray) -> float:
        half = max(2, count // 2)
        return vendi_score(sets[0][in_generated[:half]]) / vendi_score(sets[1][in_real[:half]])

    return half_samples(of_halves, [len(each) for each in sets], seed=seed, value=scores[0] / scores[1])


def _mean_vendi(features: np.ndarray, count: int, seed: int) -> float:
    if len(features) == count:
        return vendi_score(features)
    subsets = (generator(seed, "vendi", number).permutation(len(features))[:count] for number in range(20))
    return float(np.mean([vendi_score(features[subset]) for subset in subsets]))


def _named(generated: np.ndarray, real: np.ndarray) -> Sequence[tuple[np.ndarray, str]]:
    return ((generated, "generated"), (real, "real"))
