"""Noise schedules against their formulas, and the ways that samplers take through them."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import SettingsError
from pipelines.diffusion.schedules import (
    CLEAN,
    SCHEDULES,
    SPACINGS,
    Schedule,
    Spacing,
    Steps,
    alphas_cumprod,
    betas,
    log_snr,
    strided,
)


def test_the_linear_schedule_is_that_of_ho_and_of_diffusers() -> None:
    left = alphas_cumprod("linear", 1000)
    assert left.dtype == torch.float64
    assert float(left[0]) == pytest.approx(1 - 1e-4, abs=1e-12)
    assert float(betas(left)[-1]) == pytest.approx(0.02, abs=1e-12)
    assert float(left[-1]) == pytest.approx(4.036e-5, rel=1e-3)  # Ho et al. 2020: L_T is about 1e-5 bits per dimension
    theirs = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod
    torch.testing.assert_close(left.float(), theirs, rtol=1e-4, atol=1e-7)


def test_the_linear_schedule_ends_as_noisy_in_fewer_timesteps() -> None:
    assert float(alphas_cumprod("linear", 100)[-1]) == pytest.approx(float(alphas_cumprod("linear", 1000)[-1]), rel=0.8)


def test_the_cosine_schedule_is_that_of_nichol_and_of_diffusers() -> None:
    left = alphas_cumprod("cosine", 1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    for t in (1, 250, 500, 900):
        assert float(left[t - 1]) == pytest.approx(f[t] / f[0], rel=1e-9)
    assert float(betas(left).max()) == pytest.approx(0.999, abs=1e-9)
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(left.float(), theirs, rtol=1e-3, atol=1e-7)


def test_the_sigmoid_schedule_is_that_of_chen() -> None:
    left = alphas_cumprod("sigmoid", 1000)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    for t in (1, 300, 500, 999):
        here = (sigmoid(3) - sigmoid(-3 + 6 * t / 1000)) / (sigmoid(3) - sigmoid(-3))
        assert float(left[t - 1]) == pytest.approx(here, rel=1e-9)
    assert float(left[499]) == pytest.approx(0.5, abs=1e-12)  # symmetric about the middle


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length", [2, 10, 50, 1000])
def test_signal_only_falls_and_betas_give_it_back(schedule: Schedule, length: int) -> None:
    left = alphas_cumprod(schedule, length)
    assert left.shape == (length,)
    assert ((left > 0) & (left < 1)).all()
    assert (left.diff() < 0).all()
    torch.testing.assert_close((1 - betas(left)).cumprod(0), left, rtol=1e-12, atol=0)
    assert (log_snr(left).diff() < 0).all()


def test_log_snr_is_zero_where_signal_and_noise_are_equal() -> None:
    assert log_snr(torch.tensor([0.5, 0.8])).tolist() == pytest.approx([0.0, math.log(4)])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(length=st.integers(2, 300), part=st.floats(0, 1), spacing=st.sampled_from(SPACINGS))
def test_a_way_has_the_steps_asked_for_from_pure_noise_to_the_image(length: int, part: float, spacing: Spacing) -> None:
    num_steps = 1 + round(part * (length - 1))
    steps = strided(torch.linspace(0.9, 0.1, length), num_steps, spacing)
    assert len(steps) == num_steps
    assert steps.levels[0] == length - 1
    assert steps.levels[-1] == CLEAN
    if num_steps > 1:
        assert steps.levels[-2] == 0
    if num_steps == length:
        assert steps.levels == tuple(range(length - 1, CLEAN - 1, -1))


def test_quadratic_steps_are_closer_together_near_the_image() -> None:
    left = alphas_cumprod("linear", 1000)
    assert strided(left, 5, "linear").levels == (999, 749, 500, 250, 0, CLEAN)
    assert strided(left, 5, "quadratic").levels == (999, 562, 250, 62, 0, CLEAN)


def test_a_way_can_be_cut_in_two() -> None:
    steps = strided(alphas_cumprod("cosine", 100), 10)
    first, rest = steps.until(4), steps.after(4)
    assert first.levels + rest.levels[1:] == steps.levels
    assert first.levels[-1] == rest.levels[0]
    assert first.pairs + rest.pairs == steps.pairs
    assert steps.alpha_bar(CLEAN) == 1.0


@pytest.mark.parametrize(
    ("schedule", "length", "said"),
    [
        ("linnear", 100, "expected one of linear, cosine, sigmoid"),
        ("linear", 1, "found 1, expected 2 or more"),
        ("cosine", -5, "found -5, expected 2 or more"),
        ("cubic", 0, "2 problems"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(schedule: Schedule, length: int, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        alphas_cumprod(schedule, length)


@pytest.mark.parametrize(("num_steps", "spacing"), [(0, "linear"), (-1, "linear"), (101, "quadratic"), (5, "cubic")])
def test_ways_that_do_not_exist_are_refused(num_steps: int, spacing: Spacing) -> None:
    with pytest.raises(SettingsError, match=r"expected (1 to 100|one of linear)"):
        strided(alphas_cumprod("linear", 100), num_steps, spacing)


@pytest.mark.parametrize("levels", [(5,), (3, 3), (2, 5), (100, 1), (5, -2)])
def test_levels_that_do_not_fall_inside_the_schedule_are_our_own_mistake(levels: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Steps(torch.linspace(0.9, 0.1, 100), levels)
