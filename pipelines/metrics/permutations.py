"""Permutation tests of two sets of pictures, what chance alone gives, and many tests decided together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.randomness import generator
from pipelines.metrics.distances import Estimate, Kernel, linear_kernel, unit_vectors
from pipelines.metrics.estimates import prompt_seed
from pipelines.metrics.inputs import check_widths, checked_features


def permutation_p_value(
    x: np.ndarray, y: np.ndarray, kernel: Kernel, *, seed: int, num_permutations: int = 1000
) -> float:
    """Return how often sets shuffled together are as far apart as x (n, D) and y (m, D), by one kernel; in (0, 1].

    (1 + shuffles at least as far) / (1 + shuffles), which is valid at any number of shuffles: B. Phipson and G. Smyth,
    "Permutation p-values should never be zero", 2010. All shuffles share one Gram matrix of n + m rows.
    """
    return _p_value(_shuffled_distances(x, y, kernel, seed=seed, num_shuffles=num_permutations))


def permutation_p_value_of_all(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], kernel: Kernel, *, seed: int, num_permutations: int = 1000
) -> float:
    """Return the same for the mean distance over several captions, each pair of sets shuffled within itself."""
    found = [
        _shuffled_distances(x, y, kernel, seed=prompt_seed(seed, place), num_shuffles=num_permutations)
        for place, (x, y) in enumerate(pairs)
    ]
    return _p_value(np.mean(found, axis=0))


def split_null(x: np.ndarray, y: np.ndarray, kernel: Kernel = linear_kernel, *, seed: int) -> Estimate:
    """Return the distance of two sets of one law, with draws from shuffling them together: what chance alone gives.

    x, y: features (n, D), (m, D), such as base images of two sets of seeds. The 95 % quantile of the draws is the
    limit that `selection.onset` takes.
    """
    x = checked_features(x, "first set", at_least=2)
    y = checked_features(y, "second set", at_least=2)
    check_widths(first=x, second=y)
    distances = _shuffled_distances(x, y, kernel, seed=seed, num_shuffles=1000)
    return Estimate(float(distances[0]), distances[1:], min(len(x), len(y)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values of several claims, adjusted so that one false claim in all of them has their level.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _p_value(distances: np.ndarray) -> float:
    """Of the distance as it is, and of the shuffled sets after it."""
    as_far = int((distances[1:] >= distances[0] - 1e-12).sum())
    return (1 + as_far) / len(distances)


def _shuffled_distances(x: np.ndarray, y: np.ndarray, kernel: Kernel, *, seed: int, num_shuffles: int) -> np.ndarray:
    """The distance of the sets as they are, then of each of the shuffled ones, (1 + num_shuffles,)."""
    pooled, n = unit_vectors(np.concatenate([x, y])), len(x)
    in_x = np.zeros((1 + num_shuffles, len(pooled)))
    in_x[0, :n] = 1
    rng = generator(seed, "shuffle", n, len(y))
    for row in in_x[1:]:
        row[rng.permutation(len(pooled))[:n]] = 1
    return _split_distances(kernel(pooled, pooled), in_x)


def _split_distances(gram: np.ndarray, in_x: np.ndarray) -> np.ndarray:
    """The unbiased squared distance of the images in x from the others, (R,), for indicators (R, n + m)."""
    in_y = 1 - in_x
    diagonal = np.diag(gram)
    with_x, with_y = in_x @ gram, in_y @ gram
    n, m = in_x.sum(1), in_y.sum(1)
    within_x = ((with_x * in_x).sum(1) - in_x @ diagonal) / (n * (n - 1))
    within_y = ((with_y * in_y).sum(1) - in_y @ diagonal) / (m * (m - 1))
    return within_x + within_y - 2 * (with_x * in_y).sum(1) / (n * m)
