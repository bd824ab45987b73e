"""The choice of a checkpoint and the onset of forgetting, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.metrics.distances import Estimate
from pipelines.metrics.selection import Judged, Limits, choose, onset


def around(value: float, standard_error: float = 0.01) -> Estimate:
    """A value whose draws have this standard deviation exactly."""
    return Estimate(value, value + standard_error * np.tile([-1.0, 1.0], 50), 20)


def run(
    *skills: float | None, forgetting: list[float] | None = None, copying: list[float] | None = None
) -> list[Judged]:
    return [
        Judged(
            100 * (place + 1),
            None if skill is None else around(skill, 0.05),
            None if forgetting is None else around(forgetting[place]),
            None if copying is None else around(copying[place]),
        )
        for place, skill in enumerate(skills)
    ]


def test_the_earliest_within_one_standard_error_of_the_best() -> None:
    found = choose(run(0.2, 0.76, 0.74, 0.8), Limits())
    assert (found.step, found.best_step) == (200, 400)
    assert "earliest" in found.reason
    assert "0.76 at step 200, 0.80 at step 400" in found.reason


def test_just_outside_one_standard_error_is_not_near_enough() -> None:
    found = choose(run(0.2, 0.74, 0.74, 0.8), Limits())
    assert found.step == found.best_step == 400
    assert "the best skill, 0.80" in found.reason


def test_what_forgets_or_copies_too_much_is_dropped_and_the_reason_says_so() -> None:
    checkpoints = run(0.3, 0.5, 0.8, 0.9, forgetting=[0.1, 0.2, 0.9, 0.2], copying=[0.5, 0.5, 0.5, 0.95])
    found = choose(checkpoints, Limits(forgetting=0.5, copying=0.75))
    assert found.step == 200
    assert set(found.dropped) == {300, 400}
    assert "forgetting 0.9" in found.dropped[300]
    assert "copying 0.95" in found.dropped[400]
    assert "2 of 4 fail a limit" in found.reason
    assert choose(checkpoints, Limits(forgetting=None, copying=None)).step == 400


def test_a_checkpoint_fails_only_with_its_whole_interval() -> None:
    assert choose(run(0.5, copying=[0.755]), Limits(copying=0.75)).step == 100
    assert choose(run(0.5, copying=[0.765]), Limits(copying=0.75)).step is None


def test_without_any_skill_the_last_one_within_the_limits() -> None:
    found = choose(run(None, None, None, forgetting=[0.1, 0.1, 0.9]), Limits(forgetting=0.5))
    assert found.step == 200
    assert "no skill could be measured" in found.reason


def test_a_checkpoint_without_a_skill_is_passed_over() -> None:
    assert choose(run(None, 0.7, None), Limits()).step == 200


def test_where_all_fail_or_there_is_none_nothing_is_chosen() -> None:
    found = choose(run(0.5, 0.6, copying=[0.9, 0.9]), Limits())
    assert found.step is None
    assert "every checkpoint fails" in found.reason
    assert found.as_json()["dropped"].keys() == {"100", "200"}
    assert choose([], Limits()).step is None


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_and_is_never_worse_than_one_standard_error(skills, random) -> None:
    checkpoints = run(*skills)
    found = choose(checkpoints, Limits())
    shuffled = list(checkpoints)
    random.shuffle(shuffled)
    assert choose(shuffled, Limits()) == found
    assert found.step is not None
    assert skills[found.step // 100 - 1] >= max(skills) - 0.05 - 1e-9
    assert all(skill < max(skills) - 0.05 + 1e-9 for skill in skills[: found.step // 100 - 1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0], None),
        ([0.0, 0.5, 0.0, 0.5, 0.5], 400),  # once is chance
        ([0.5, 0.5], 100),
        ([0.0, 0.0, 0.5], None),  # the last one alone
        ([], None),
        ([0.105, 0.105], None),  # the value is above, the interval is not
    ],
)
def test_the_onset_is_the_first_of_two_that_exceed_the_limit(values: list[float], expected: int | None) -> None:
    series = [(100 * (place + 1), around(value)) for place, value in enumerate(values)]
    assert onset(series, 0.1) == expected
    assert onset(series[::-1], 0.1) == expected
