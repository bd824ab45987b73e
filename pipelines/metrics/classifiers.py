"""Classifiers fitted on labelled reference features: they judge whether an image shows what its prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import softmax

from pipelines.metrics.distances import unit_vectors

Labels = Sequence[str] | np.ndarray


class Classifier(Protocol):
    """What names the label of a feature vector."""

    @property
    def labels(self) -> np.ndarray: ...

    def posterior(self, features: np.ndarray) -> np.ndarray: ...

    def predict(self, features: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class NearestCentroid:
    """Names the class whose mean unit vector makes the smallest angle with an image.

    labels: (K,), sorted. centroids: (K, D), unit vectors. variance: of the unit vectors about their class's mean, per
    number; it scales the posterior.
    """

    labels: np.ndarray
    centroids: np.ndarray
    variance: float

    @classmethod
    def fit(cls, features: np.ndarray, labels: Labels) -> NearestCentroid:
        """Return the classifier of features (N, D) with one label each.

        Raises ValueError when the numbers of features and labels differ or a class has no mean direction.
        """
        names = _names(features, labels)
        known = np.unique(names)
        directions = unit_vectors(features)
        centroids = unit_vectors(np.stack([directions[names == label].mean(0) for label in known]))
        residuals = directions - centroids[np.searchsorted(known, names)]
        return cls(known, centroids, float(residuals.var()))

    def posterior(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of each class (N, K), as for normal laws of equal variance about the centroids."""
        # |x - c|^2 = 2 - 2 x . c
        return np.asarray(softmax(unit_vectors(features) @ self.centroids.T / max(self.variance, 1e-6), axis=1))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the label (N,) of each row of features (N, D); the first in sorted order where two are as near."""
        return self.labels[(unit_vectors(features) @ self.centroids.T).argmax(1)]

    def accuracy(self, features: np.ndarray, labels: Labels) -> float:
        """Return the share of features (N, D) whose predicted label is the given one."""
        return float((self.predict(features) == _names(features, labels)).mean())


@dataclass(frozen=True)
class ShrinkageLDA:
    """Linear discriminant analysis of unit vectors: normal laws of one covariance, which is shrunk to a multiple of 1.

    labels: (K,), sorted. weights: (K, D). offsets: (K,). shrinkage: 0 is the sample covariance, 1 its mean variance.
    All classes are as likely before an image is seen.
    """

    labels: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    shrinkage: float

    @classmethod
    def fit(cls, features: np.ndarray, labels: Labels) -> ShrinkageLDA:
        """Return the classifier of features (N, D) with one label each.

        Raises ValueError when the numbers of features and labels differ or no class has two different images.
        """
        names = _names(features, labels)
        known = np.unique(names)
        directions = unit_vectors(features)
        means = np.stack([directions[names == label].mean(0) for label in known])
        residuals = directions - means[np.searchsorted(known, names)]
        if not residuals.any():
            raise ValueError("found no class with two different images, so there is no spread to measure by")
        covariance, shrinkage = shrunk_covariance(residuals)
        weights = np.linalg.solve(covariance, means.T).T
        return cls(known, weights, -(weights * means).sum(1) / 2, shrinkage)

    def posterior(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of each class (N, K)."""
        return np.asarray(softmax(unit_vectors(features) @ self.weights.T + self.offsets, axis=1))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the label (N,) of each row of features (N, D)."""
        return self.labels[(unit_vectors(features) @ self.weights.T + self.offsets).argmax(1)]


@dataclass(frozen=True)
class NearestNeighbours:
    """Names the class of most of the k reference images that make the smallest angle; the nearest class at a tie.

    labels: (K,), sorted. directions: (N, D), unit vectors of the references. classes: (N,), their place in labels.
    """

    labels: np.ndarray
    directions: np.ndarray
    classes: np.ndarray
    k: int

    @classmethod
    def fit(cls, features: np.ndarray, labels: Labels, k: int = 3) -> NearestNeighbours:
        """Return the classifier of features (N, D) with one label each; k is N where there are fewer.

        Raises ValueError when the numbers of features and labels differ.
        """
        names = _names(features, labels)
        known = np.unique(names)
        return cls(known, unit_vectors(features), np.searchsorted(known, names), min(k, len(names)))

    def posterior(self, features: np.ndarray) -> np.ndarray:
        """Return the share of the k neighbours that are of each class, (N, K)."""
        return self._votes(features)[0] / self.k

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the label (N,) of each row of features (N, D)."""
        votes, nearness = self._votes(features)
        # nearness is at most k, so it decides between equal votes alone
        return self.labels[(votes + nearness / (2 * self.k + 1)).argmax(1)]

    def _votes(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many of the neighbours are of each class, and the sum of (1 + cosine) / 2 of these, (N, K) each."""
        cosines = unit_vectors(features) @ self.directions.T
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : self.k]
        chosen = self.classes[nearest][..., None] == np.arange(len(self.labels))
        near = (1 + np.take_along_axis(cosines, nearest, axis=1)) / 2
        return chosen.sum(1).astype(np.float64), (chosen * near[..., None]).sum(1)


def shrunk_covariance(residuals: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the covariance (D, D) of centred rows (N, D), shrunk to a multiple of the identity, and by how much.

    (1 - s) S + s m 1 with m the mean variance and s the estimate that makes the expected squared error least.
    Source: O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
    Multivariate Analysis 2004, section 3.
    """
    count, width = residuals.shape
    sample = residuals.T @ residuals / count
    mean = float(np.trace(sample)) / width
    apart = float(np.square(sample).sum()) / width - mean**2
    fourth = float(np.square(np.square(residuals).sum(1)).sum())
    error = (fourth / count - float(np.square(sample).sum())) / (count * width)
    shrinkage = 1.0 if apart <= 0 else min(max(error / apart, 0.0), 1.0)
    shrunk = (1 - shrinkage) * sample
    shrunk[np.diag_indices(width)] += shrinkage * mean
    # a spread in fewer directions than there are numbers, of many images, is hardly shrunk and cannot be divided by
    shrunk[np.diag_indices(width)] += 1e-9 * mean
    return shrunk, shrinkage


def _names(features: np.ndarray, labels: Labels) -> np.ndarray:
    names = np.asarray(labels)
    if len(features) != len(names) or not len(names):
        raise ValueError(f"found {len(features)} features and {len(names)} labels, expected as many, at least one")
    return names
