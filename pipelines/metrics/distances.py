"""Distances between two sets of images, given as features, with intervals.

Every distance is the unbiased estimate of a squared maximum mean discrepancy (A. Gretton et al., "A kernel two-sample
test", JMLR 2012, equation 3) between unit vectors:

    U = mean k(x_i, x_j), i != j  +  mean k(y_i, y_j), i != j  -  2 mean k(x_i, y_j)

Two samples of one law give 0 on average, so about half of such values are negative; none is ever clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.randomness import generator

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
Statistic = Callable[..., np.ndarray]

FEWEST_FOR_A_VERDICT = 10
FEWEST_WITHOUT_WARNING = 20


def unit_vectors(features: np.ndarray, name: str = "features") -> np.ndarray:
    """Return every row of features (n, D) divided by its length, float64.

    Raises ValueError, with the name, for another shape, values that are not finite and rows of length zero.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise ValueError(f"{name}: found shape {features.shape}, expected (images, numbers)")
    if not np.isfinite(features).all():
        raise ValueError(f"{name}: found values that are not finite")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"{name}: found a feature vector of length zero, which has no direction")
    return features / lengths


def linear_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Gram matrix x . y (n, m) of unit vectors (n, D) and (m, D)."""
    return x @ y.T


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Gram matrix (x . y + 1)^3 (n, m) of unit vectors (n, D) and (m, D).

    The kernel of M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018, but without its division by D: on unit
    vectors that division would leave a multiple of the linear kernel.
    """
    return (x @ y.T + 1) ** 3


def squared_centroid_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared distance between the mean unit vectors of two sets (linear MMD).

    x: (n, D), y: (m, D), at least two rows each; every row is divided by its length first. The value estimates
    ||E x/||x|| - E y/||y||||^2 and may be negative. It is blind to a pure change of spread: show a diversity beside it.
    Source: S.-Y. Yeh et al. (LyCORIS), ICLR 2024.
    Raises ValueError for features that are not finite, of length zero, of different widths or fewer than two.
    """
    return Discrepancy.between(x, y, linear_kernel).value


@dataclass(frozen=True)
class Discrepancy:
    """The distance of two sets as a function of how often each image counts: what the bootstrap draws again."""

    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    @classmethod
    def between(cls, x: np.ndarray, y: np.ndarray, kernel: Kernel) -> Discrepancy:
        """Return the distance of features x (n, D) and y (m, D) under a kernel of unit vectors."""
        x, y = unit_vectors(x, "x"), unit_vectors(y, "y")
        if min(len(x), len(y)) < 2:
            raise ValueError(f"found {len(x)} and {len(y)} images, expected at least two in each set")
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"x has {x.shape[1]} numbers per image but y has {y.shape[1]}: were they extracted alike?")
        return cls(kernel(x, x), kernel(y, y), kernel(x, y))

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the number of images in x and in y."""
        return self.xy.shape[0], self.xy.shape[1]

    @property
    def value(self) -> float:
        """The distance when every image counts once."""
        n, m = self.sizes
        return float(self(np.ones((1, n)), np.ones((1, m)))[0])

    def __call__(self, x_counts: np.ndarray, y_counts: np.ndarray) -> np.ndarray:
        """Return the distances (R,) for counts (R, n) and (R, m); NaN where one image makes up a whole set.

        An image is never compared with its own copies: counting those pairs would add (1 - mean cosine) / n to every
        resample and push the whole interval away from the estimate.
        """
        across = ((x_counts @ self.xy) * y_counts).sum(1) / (x_counts.sum(1) * y_counts.sum(1))
        return mean_of_pairs(self.xx, x_counts) + mean_of_pairs(self.yy, y_counts) - 2 * across


@dataclass(frozen=True)
class Estimate:
    """A value with its resamples.

    value: on the images as they are. draws: (R,), on resampled images. num_images: size of the smallest set behind it.
    """

    value: float
    draws: np.ndarray
    num_images: int

    @property
    def low(self) -> float:
        """The lower end of the 95 % percentile interval."""
        return float(np.nanquantile(self.draws, 0.025))

    @property
    def high(self) -> float:
        """The upper end of the 95 % percentile interval."""
        return float(np.nanquantile(self.draws, 0.975))

    @property
    def verdict(self) -> Literal["none", "weak", "sound"]:
        """How far it carries: none below 10 images, where every unbiased distance is near chance; weak below 20."""
        if self.num_images < FEWEST_FOR_A_VERDICT:
            return "none"
        return "weak" if self.num_images < FEWEST_WITHOUT_WARNING else "sound"


def bootstrap_interval(statistic: Statistic, sizes: Sequence[int], *, seed: int, num_resamples: int = 1000) -> Estimate:
    """Return a statistic of one or more sets of images with its 95 % percentile interval over the images.

    statistic: takes, for each set, counts (R, size) of how often each image is in it, and returns R values: a
    `Discrepancy`, or `lambda counts: counts @ scores / counts.sum(1)` for the mean of a score. sizes: of each set.
    Two calls with one seed draw the same positions of the sets that stand in the same place and are of the same size:
    references that two distances share, and images made from the same prompts and seeds, stay paired.
    """
    counts = [
        generator(seed, "bootstrap", place, size).multinomial(size, np.full(size, 1 / size), size=num_resamples)
        for place, size in enumerate(sizes)
    ]
    value = statistic(*(np.ones((1, size)) for size in sizes))[0]
    return Estimate(float(value), statistic(*(each.astype(np.float64) for each in counts)), min(sizes))


def mean_of_pairs(gram: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of k over all pairs of two different images, (R,), for counts (R, n)."""
    squares = counts**2
    pairs = counts.sum(1) ** 2 - squares.sum(1)
    total = ((counts @ gram) * counts).sum(1) - squares @ np.diag(gram)
    return np.divide(total, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)
