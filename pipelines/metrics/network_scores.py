"""FID, KID and CMMD, as papers define them, on features of a general network.

They go by these names on features of such networks alone: the names say which network, resizing and number of images a
reader may compare with. None of them is the verdict: FID is too large by about a constant over the number of images,
and depends on how images were resized and saved before the network saw them.
"""

from __future__ import annotations

import numpy as np

from pipelines.metrics.distances import Discrepancy, Estimate, bootstrap_interval, mean_of_pairs, unit_vectors
from pipelines.metrics.inputs import check_widths, checked_features

FEWEST_FOR_FID = 5000  # images of each set, below which values are not to be compared across papers
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Frechet distance |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of features (n, D), (m, D).

    M. Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, equation 6, with unbiased sample
    covariances. Raises DataError for fewer than two images, features that are not finite, other widths.
    """
    x, y = _checked(x, y)
    mean = float(np.square(x.mean(0) - y.mean(0)).sum())
    one, other = (np.cov(each, rowvar=False).reshape(each.shape[1], each.shape[1]) for each in (x, y))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # the eigenvalues of S_x S_y are those of the symmetric root S_y root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ other @ root), 0, None)).sum()
    return mean + float(np.trace(one) + np.trace(other) - 2 * shared)


def kid(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the unbiased squared kernel distance of features (n, D), (m, D) under (x . y / D + 1)^3.

    M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 3, of all images rather than of random subsets.
    """
    x, y = _checked(x, y)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    pair = Discrepancy(kernel(x, x), kernel(y, y), kernel(x, y))
    return bootstrap_interval(pair, pair.sizes, seed=seed)


def cmmd(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return 1,000 times the squared distance of unit vectors under exp(-|x - y|^2 / 2 sigma^2), sigma 10.

    S. Jayasumana et al., "Rethinking FID: towards a better evaluation metric for image generation", CVPR 2024, equation
    4, which takes means over all pairs, an image with itself included.
    """
    x, y = (unit_vectors(each) for each in _checked(x, y))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = np.clip(2 - 2 * (a @ b.T), 0, None)
        return np.asarray(np.exp(-squares / (2 * CMMD_SIGMA**2)))

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)

    def distance(x_counts: np.ndarray, y_counts: np.ndarray) -> np.ndarray:
        across = ((x_counts @ xy) * y_counts).sum(1) / (x_counts.sum(1) * y_counts.sum(1))
        within = sum(_with_itself(gram, counts) for gram, counts in ((xx, x_counts), (yy, y_counts)))
        return np.asarray(CMMD_SCALE * (within - 2 * across))

    return bootstrap_interval(distance, xy.shape, seed=seed)


def _with_itself(gram: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over all pairs of n images, their own ones included, without the copies that a resample makes."""
    n = gram.shape[0]
    return np.asarray((1 - 1 / n) * mean_of_pairs(gram, counts) + (counts @ np.diag(gram)) / counts.sum(1) / n)


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = checked_features(x, "drawn images", at_least=2), checked_features(y, "real images", at_least=2)
    check_widths(drawn=one, real=other)
    return one, other
