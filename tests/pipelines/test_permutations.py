"""Permutation tests and corrections: closed forms first, then defects planted in real pictures."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from scipy import stats

from pipelines.metrics.distances import Kernel, cubic_kernel, linear_kernel, squared_centroid_distance
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.permutations import holm, permutation_p_value, permutation_p_value_of_all, split_null
from tests.planted import DEFECTS, directions, weaves, with_defect

EXTRACTOR = TextureStatistics.fitting(64)


def test_exact_permutations_of_small_sets_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(0)
    x, y = directions(rng, 4, [1, 0, 0]), directions(rng, 4, [0.8, 0.6, 0])
    pooled, seen = np.concatenate([x, y]), squared_centroid_distance(x, y)
    every = [
        squared_centroid_distance(pooled[list(chosen)], np.delete(pooled, chosen, axis=0))
        for chosen in itertools.combinations(range(8), 4)
    ]
    exact = np.mean(np.array(every) >= seen - 1e-12)
    found = permutation_p_value(x, y, linear_kernel, seed=1, num_permutations=4000)
    assert found == pytest.approx(exact, abs=0.02)


def test_p_values_of_one_law_are_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [
        permutation_p_value(
            directions(rng, 10, [1, 0, 0]), directions(rng, 14, [1, 0, 0]), linear_kernel, seed=s, num_permutations=99
        )
        for s in range(150)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) < 0.11


def test_holm_multiplies_by_the_claims_that_are_left() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_several_captions_are_shuffled_each_within_itself() -> None:
    """Captions far apart from each other say nothing; one that moved is seen among others that did not."""
    rng = np.random.default_rng(3)
    same = [(directions(rng, 12, mean), directions(rng, 12, mean)) for mean in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert permutation_p_value_of_all(same, linear_kernel, seed=0, num_permutations=200) > 0.05
    moved = [*same[:2], (same[2][0], directions(rng, 12, [0.8, 0, 0.6]))]
    assert permutation_p_value_of_all(moved, linear_kernel, seed=0, num_permutations=200) < 0.05
    alone = permutation_p_value_of_all(same[:1], linear_kernel, seed=0, num_permutations=99)
    assert 0.01 <= alone <= 1


def test_the_null_of_a_split_is_centred_on_zero_and_its_quantile_is_rarely_exceeded() -> None:
    rng = np.random.default_rng(0)
    exceeded = []
    for seed in range(60):
        found = split_null(directions(rng, 16, [1, 0, 0]), directions(rng, 16, [1, 0, 0]), seed=seed)
        exceeded.append(found.value > np.quantile(found.draws, 0.95))
        assert abs(found.draws.mean()) < 0.01
    assert 0 < np.mean(exceeded) < 0.15


@cache
def weave_features() -> dict[str, np.ndarray]:
    real = weaves("dry", 36)
    sets = {"references": real[:36], "fresh": real[72:]}
    sets |= {name: with_defect(name, sets["fresh"]) for name in DEFECTS if name != "colour loss"}
    sets["another class"] = weaves("compacted", 12)
    return {name: EXTRACTOR.extract(pictures) for name, pictures in sets.items()}


def p_value(name: str, kernel: Kernel) -> float:
    sets = weave_features()
    return permutation_p_value(sets[name], sets["references"], kernel, seed=0, num_permutations=400)


@pytest.mark.parametrize("kernel", [linear_kernel, cubic_kernel])
def test_fresh_real_images_are_not_told_from_real_images_and_planted_defects_are(kernel: Kernel) -> None:
    assert p_value("fresh", kernel) > 0.05
    for name in (*(name for name in DEFECTS if name != "colour loss"), "another class"):
        assert p_value(name, kernel) < 0.01, name
