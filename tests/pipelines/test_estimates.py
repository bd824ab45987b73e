"""Intervals against closed forms: of shares, of ratios over prompts, of half samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from data.errors import DataError
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import (
    compared,
    difference,
    half_samples,
    mean_over_prompts,
    prompt_seed,
    ratio,
    ratio_over_prompts,
    share,
    sign,
    standard_error,
    written,
)


def around(value: float, half_width: float = 0.01, num_images: int = 20) -> Estimate:
    return Estimate(value, value + np.linspace(-half_width, half_width, 1001), num_images)


@pytest.mark.parametrize(("found", "count"), [(3, 20), (10, 20), (57, 60)])
def test_the_interval_of_a_share_is_jeffreys_own(found: int, count: int) -> None:
    estimate = share(np.arange(count) < found, seed=0, purpose="test")
    law = stats.beta(found + 0.5, count - found + 0.5)
    assert estimate.value == found / count
    assert estimate.low == pytest.approx(law.ppf(0.025), abs=0.02)
    assert estimate.high == pytest.approx(law.ppf(0.975), abs=0.02)
    assert estimate.num_images == count


def test_no_hit_and_all_hits_leave_room_on_one_side() -> None:
    none, all_ = (share(np.full(20, hit), seed=0, purpose="test") for hit in (False, True))
    assert (none.low, none.value, all_.value, all_.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(stats.beta(0.5, 20.5).ppf(0.975), abs=0.02)
    assert all_.low == pytest.approx(1 - none.high, abs=0.02)


def test_shares_of_different_purposes_are_drawn_independently() -> None:
    hits = np.arange(40) < 20
    draws = [share(hits, seed=0, purpose=purpose).draws for purpose in ("a", "b", "a")]
    assert np.array_equal(draws[0], draws[2])
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.1


def test_a_ratio_over_prompts_divides_the_sums_and_not_the_images() -> None:
    found = ratio_over_prompts([np.array([1.0, 3.0]), np.array([5.0])], [np.array([1.0, 1.0]), np.array([7.0])], seed=0)
    assert found.value == 9 / 9
    assert found.num_images == 3


def test_one_prompt_has_the_interval_of_its_images() -> None:
    scores = np.random.default_rng(0).normal(3, 2, 200)
    found = ratio_over_prompts([scores], seed=1)
    assert standard_error(found) == pytest.approx(scores.std() / math.sqrt(200), rel=0.1)


def test_prompts_that_differ_widen_the_interval_beyond_that_of_their_images() -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.normal(mean, 0.1, 50) for mean in rng.normal(0, 1, 12)]
    found = ratio_over_prompts(prompts, seed=0)
    between = np.std([prompt.mean() for prompt in prompts]) / math.sqrt(12)
    assert standard_error(found) == pytest.approx(between, rel=0.1)


def test_one_seed_pairs_the_models_and_not_the_prompts() -> None:
    rng = np.random.default_rng(0)
    base = [rng.normal(1, 0.3, 30) for _ in range(4)]
    tuned = [each + 0.5 for each in base]
    moved = difference(ratio_over_prompts(tuned, seed=3), ratio_over_prompts(base, seed=3))
    assert moved.high - moved.low == pytest.approx(0, abs=1e-9)
    assert moved.value == pytest.approx(0.5)


def test_the_mean_over_prompts_resamples_prompts_as_well() -> None:
    rng = np.random.default_rng(0)
    scores = [rng.normal(mean, 0.1, 40) for mean in (0.0, 1.0, 2.0, 3.0)]
    each = [
        bootstrap_interval(lambda counts, s=s: counts @ s / counts.sum(1), [40], seed=prompt_seed(0, place))
        for place, s in enumerate(scores)
    ]
    found = mean_over_prompts(each, seed=0)
    assert found.value == pytest.approx(np.mean([s.mean() for s in scores]))
    assert standard_error(found) == pytest.approx(np.std([0, 1, 2, 3]) / 2, rel=0.1)


def test_half_samples_have_the_spread_of_new_samples() -> None:
    """The mean of a random half varies as the mean of the whole does over new samples: s / sqrt(n)."""
    scores = np.random.default_rng(0).normal(0, 1, 100)
    found = half_samples(lambda chosen: float(scores[chosen].mean()), [100], seed=0, value=0.25, num_resamples=1000)
    assert found.value == 0.25
    assert found.draws.mean() == pytest.approx(0.25)
    assert standard_error(found) == pytest.approx(scores.std() / 10, rel=0.1)


def test_overlapping_intervals_are_inconclusive_and_few_images_give_no_verdict() -> None:
    assert compared(around(0.5), around(0.515)) == "inconclusive"
    assert compared(around(0.5), around(0.6)) == "lower"
    assert compared(around(0.7), around(0.6)) == "higher"
    assert compared(around(0.7), around(0.6, num_images=9)) == "no verdict"
    assert [sign(around(value)) for value in (0.1, 0.001, -0.1)] == ["higher", "inconclusive", "lower"]
    assert sign(around(0.1), against=0.105) == "inconclusive"
    assert sign(around(0.1, num_images=9)) == "no verdict"


def test_a_ratio_to_what_may_be_nothing_is_undefined() -> None:
    found = ratio(around(0.4, 0), around(0.8, 0))
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert ratio(around(0.4), around(0.005)) is None


def test_what_is_written_is_json_even_where_nothing_is_known() -> None:
    assert written(None) is None
    entry = written(Estimate(float("nan"), np.zeros(3), 4))
    assert entry == {"value": None, "low": 0, "high": 0, "num_images": 4, "verdict": "none"}


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [
        ([], [], "one prompt and one image"),
        ([np.array([])], [np.array([])], "one prompt and one image"),
        ([np.ones(3)], [np.ones(2)], r"\[3\] and \[2\] images"),
        ([np.ones(3), np.ones(2)], [np.ones(3)], "expected as many"),
        ([np.array([np.nan])], [np.ones(1)], "not finite"),
    ],
)
def test_images_that_do_not_match_are_refused(numerators: list, denominators: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ratio_over_prompts(numerators, denominators, seed=0)


def test_a_mean_over_no_prompt_and_a_share_of_no_image_are_refused() -> None:
    with pytest.raises(DataError, match="no prompt"):
        mean_over_prompts([], seed=0)
    with pytest.raises(DataError, match="no image"):
        share(np.array([]), seed=0, purpose="leak")
