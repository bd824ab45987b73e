"""Classifiers fitted on labelled reference features: they judge whether an image shows what its prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.metrics.distances import unit_vectors


@dataclass(frozen=True)
class NearestCentroid:
    """Names the class whose mean unit vector makes the smallest angle with an image.

    labels: (K,), sorted. centroids: (K, D), unit vectors.
    """

    labels: np.ndarray
    centroids: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence[str] | np.ndarray) -> NearestCentroid:
        """Return the classifier of features (N, D) with one label each.

        Raises ValueError when the numbers of features and labels differ or a class has no mean direction.
        """
        names = np.asarray(labels)
        if len(features) != len(names) or not len(names):
            raise ValueError(f"found {len(features)} features and {len(names)} labels, expected as many, at least one")
        known = np.unique(names)
        directions = unit_vectors(features)
        return cls(known, unit_vectors(np.stack([directions[names == label].mean(0) for label in known])))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the label (N,) of each row of features (N, D); the first in sorted order where two are as near."""
        return self.labels[(unit_vectors(features) @ self.centroids.T).argmax(1)]

    def accuracy(self, features: np.ndarray, labels: Sequence[str] | np.ndarray) -> float:
        """Return the share of features (N, D) whose predicted label is the given one."""
        if len(features) != len(labels) or not len(labels):
            raise ValueError(f"found {len(features)} features and {len(labels)} labels, expected as many, at least one")
        return float((self.predict(features) == np.asarray(labels)).mean())
