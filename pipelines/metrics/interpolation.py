"""Whether images lie between two sets of real images, how far along, and how far beside the line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.metrics.distances import Discrepancy, Estimate, bootstrap_interval, linear_kernel, unit_vectors

Counts = np.ndarray

MIXTURE = 0.5  # half of the spread that a mixture of the two sets has beyond theirs


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Where generated images lie on the line from one set of real images to another.

    share: of their centroid, 0 at the one, 1 at the other. residual: its distance from the line, in standard deviations
    of one real image about the centroid of its set. mixed: by how much their places along the line spread more than
    real images do, 0 where each lies between, 1 where some are of the one and some of the other. one, other,
    generated: the place along the line of each image.
    """

    share: Estimate
    residual: Estimate
    mixed: Estimate
    one: np.ndarray
    other: np.ndarray
    generated: np.ndarray

    @property
    def words(self) -> str:
        """What the intervals decide."""
        if self.share.verdict == "none":
            return "no verdict: fewer than 10 images in a set"
        if self.residual.low > 1:
            return "beside the line: something else than the two"
        if self.share.low > 0 and self.share.high < 1:
            if self.mixed.low > MIXTURE:
                return f"a mixture: some images like the first, about {self.share.value:.0%} like the second"
            if not self.mixed.high < MIXTURE:
                return "inconclusive: between the two, or some of the one and some of the other"
            nearer = "; nearer to the first" if self.share.high < 0.5 else ""
            return f"between the two{'; nearer to the second' if self.share.low > 0.5 else nearer}"
        if self.share.high < 0 or self.share.low > 1:
            return "beyond them"
        return "inconclusive"


def interpolation(generated: np.ndarray, one: np.ndarray, other: np.ndarray, *, seed: int) -> Interpolation | None:
    """Return where generated images lie between one and another set of real images; None where the two do not differ.

    Features (N, D), (A, D), (B, D), two rows or more each. With d the unbiased squared distances of centroids,

        share = (d(g, a) - d(g, b) + d(a, b)) / 2 d(a, b),    residual^2 = d(g, a) - share^2 d(a, b),

    the foot of the perpendicular from g on the line through a and b, and its length. residual is 0 where noise makes
    its square negative. A mean cannot tell images that lie between from a mixture; the variance along the line can. Of
    a share w of b and 1 - w of a it is (1 - w) var a + w var b + w (1 - w), and

        mixed = (var g - (1 - w) var a - w var b) / w (1 - w),    w = share,

    is 1; of images that each lie between and spread like real ones it is 0.
    """
    to_one, to_other, apart = (
        Discrepancy.between(x, y, linear_kernel) for x, y in ((generated, one), (generated, other), (one, other))
    )
    distance = bootstrap_interval(apart, apart.sizes, seed=seed)
    if distance.low <= 0:
        return None
    drawn, first, second = (unit_vectors(each) for each in (generated, one, other))
    spread = np.sqrt(sum(_variance(each) for each in (first, second)) / 2)

    def share(g: Counts, a: Counts, b: Counts) -> np.ndarray:
        between = apart(a, b)
        return (to_one(g, a) - to_other(g, b) + between) / (2 * between)

    def residual(g: Counts, a: Counts, b: Counts) -> np.ndarray:
        squared = to_one(g, a) - share(g, a, b) ** 2 * apart(a, b)
        return np.sqrt(np.maximum(squared, 0)) / spread

    sizes = [len(each) for each in (drawn, first, second)]
    line = second.mean(0) - first.mean(0)
    along = [(each - first.mean(0)) @ line / (line @ line) for each in (first, second, drawn)]
    squares = [np.stack([np.ones(len(each)), each, each**2], axis=1) for each in (along[2], along[0], along[1])]

    def mixed(g: Counts, a: Counts, b: Counts) -> np.ndarray:
        w = share(g, a, b)
        of_g, of_a, of_b = (_weighted_variance(counts @ each) for counts, each in zip((g, a, b), squares, strict=True))
        over = np.where((w > 0) & (w < 1), w * (1 - w), np.nan)
        return np.asarray((of_g - (1 - w) * of_a - w * of_b) / over)

    place, beside, excess = (bootstrap_interval(each, sizes, seed=seed) for each in (share, residual, mixed))
    return Interpolation(place, beside, excess, *along)


def _weighted_variance(sums: np.ndarray) -> np.ndarray:
    """Of (R, 3) sums of 1, x and x^2, unbiased."""
    count, first, second = sums.T
    return np.asarray((second - first**2 / count) / (count - 1))


def _variance(vectors: np.ndarray) -> float:
    """Return the mean squared distance of vectors (N, D) from their mean, unbiased."""
    return float(((vectors - vectors.mean(0)) ** 2).sum() / (len(vectors) - 1))
