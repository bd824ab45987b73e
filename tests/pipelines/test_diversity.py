from __future__ import annotations

import numpy as np
import pytest

from pipelines.metrics.distances import bootstrap_interval
from pipelines.metrics.diversity import PairwiseDistance, vendi_score


def test_equal_images_have_no_distance_and_are_one_image() -> None:
    same = np.tile([3.0, 4.0], (5, 1))
    assert PairwiseDistance.of(same)(np.ones((1, 5)))[0] == pytest.approx(0, abs=1e-7)
    assert vendi_score(same) == pytest.approx(1)


def test_orthogonal_images_are_sqrt_2_apart_and_as_many_as_they_are() -> None:
    different = np.eye(6) * np.arange(1, 7)[:, None]  # lengths do not matter
    assert PairwiseDistance.of(different)(np.ones((1, 6)))[0] == pytest.approx(np.sqrt(2))
    assert vendi_score(different) == pytest.approx(6)


def test_two_groups_count_as_two() -> None:
    groups = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    assert vendi_score(groups) == pytest.approx(2)
    assert PairwiseDistance.of(groups)(np.ones((1, 6)))[0] == pytest.approx(np.sqrt(2) * 18 / 30)


def test_a_repeated_image_is_not_compared_with_its_copy() -> None:
    different = PairwiseDistance.of(np.eye(3))
    assert different(np.array([[2.0, 1.0, 0.0]]))[0] == pytest.approx(np.sqrt(2))
    assert np.isnan(different(np.array([[3.0, 0.0, 0.0]]))[0])


def test_the_interval_covers_the_value() -> None:
    features = np.random.default_rng(0).standard_normal((40, 8)) + 1
    estimate = bootstrap_interval(PairwiseDistance.of(features), [40], seed=0)
    assert estimate.low < estimate.value < estimate.high


def test_one_image_has_no_diversity() -> None:
    with pytest.raises(ValueError, match="at least two"):
        PairwiseDistance.of(np.ones((1, 3)))
