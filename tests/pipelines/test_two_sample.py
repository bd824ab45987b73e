"""Classifier two-sample tests: false alarms at the stated rate, and pictures that are told apart."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import stats

from data.errors import DataError
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.two_sample import LEVEL, TwoSample, evenly, two_sample
from tests.planted import textures


def normal(count: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (count, 6)) + np.array([1, mean, 0, 0, 0, 0])


@cache
def real() -> np.ndarray:
    return TextureStatistics.fitting(64).extract(textures("zigzagged", 80))


def test_real_against_real_gives_the_stated_rate_of_false_alarms_over_200_splits() -> None:
    rng = np.random.default_rng(0)
    pictures, alarms = real(), 0
    for _ in range(200):
        order = rng.permutation(80)
        found = two_sample({"a": pictures[order[:40]]}, {"a": pictures[order[40:]]})
        alarms += found.p_value <= LEVEL
    assert len(found.hits) == 40
    assert alarms <= stats.binom.ppf(0.999, 200, LEVEL)


def test_the_p_value_is_that_of_a_coin() -> None:
    three = TwoSample(np.array([True] * 3 + [False]))
    assert three.p_value == pytest.approx(5 / 16)
    # of 8 answers with 4 right ones, 3 or more of the right ones are among the first four in 17 of 70 cases
    assert three.p_value_beyond(TwoSample(~three.hits)) == pytest.approx(17 / 70)
    estimate = TwoSample(np.array([True] * 30 + [False] * 10)).estimate(seed=0)
    assert estimate.value == 0.75
    assert 0.6 < estimate.low < 0.75 < estimate.high < 0.88


def test_another_law_is_told_apart_and_captions_add_up() -> None:
    apart = two_sample({"a": normal(40, 0), "b": normal(24, 1)}, {"a": normal(40, 2, 1), "b": normal(60, 3, 1)})
    assert len(apart.hits) == 40 + 24
    assert apart.hits.mean() > 0.85
    assert apart.p_value < 1e-6


def test_neighbours_that_are_nearly_the_same_are_on_one_side() -> None:
    """A picture and its near copy beside it would be known again if one were fitted on and the other asked about."""
    alarms = []
    for seed in range(40):
        repeated = np.repeat(normal(20, seed), 2, axis=0) + np.random.default_rng(seed).normal(0, 1e-3, (40, 6))
        alarms.append(two_sample({"a": normal(40, 100 + seed)}, {"a": repeated}).p_value <= LEVEL)
    assert np.mean(alarms) < 0.2


def test_sets_of_one_picture_each_are_told_apart_unless_it_is_the_same() -> None:
    one, other = np.tile([1.0, 0], (12, 1)), np.tile([0, 1.0], (12, 1))
    assert two_sample({"a": one}, {"a": other}).hits.all()
    assert two_sample({"a": one}, {"a": one}).hits.mean() == 0.5


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="drawn pictures of 'a': found 9 images, expected at least 10"):
        two_sample({"a": normal(9, 0)}, {"a": normal(20, 1)})


def test_an_even_choice_keeps_the_order() -> None:
    assert evenly(np.arange(9), 3).tolist() == [1, 4, 7]
    assert evenly(np.arange(2), 3).tolist() == [0, 1]
