"""The Gaussian steps against Bayes' rule by hand, and against diffusers' own."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.diffusion.posterior import ddim, fixed_variance, log_variance_bounds, posterior, step_beta
from pipelines.diffusion.prediction import clipped, from_eps, from_v, from_x0
from pipelines.diffusion.schedules import alphas_cumprod, betas

LEVELS = st.tuples(st.floats(1e-4, 0.9999), st.floats(1e-3, 0.999))
QUICK = settings(derandomize=True, max_examples=60, deadline=None)


@QUICK
@given(LEVELS)
def test_the_posterior_is_prior_times_likelihood(levels: tuple[float, float]) -> None:
    alpha_bar_s, part = levels
    alpha_bar_t = alpha_bar_s * part
    beta = step_beta(alpha_bar_t, alpha_bar_s)
    x0, x_t = 0.7, -1.3
    # q(x_s | x_0) = N(sqrt(a_s) x_0, 1 - a_s) times q(x_t | x_s) = N(sqrt(1 - beta) x_s, beta), as laws of x_s
    precision = 1 / (1 - alpha_bar_s) + (1 - beta) / beta
    mean = (math.sqrt(alpha_bar_s) * x0 / (1 - alpha_bar_s) + math.sqrt(1 - beta) * x_t / beta) / precision
    law = posterior(alpha_bar_t, alpha_bar_s)
    assert law.variance == pytest.approx(1 / precision, rel=1e-9)
    assert float(law.mean(torch.tensor(x0).double(), torch.tensor(x_t).double())) == pytest.approx(mean, abs=1e-6)


@QUICK
@given(LEVELS)
def test_a_step_down_keeps_the_law_of_x_s_given_x_0(levels: tuple[float, float]) -> None:
    """Whatever eta: x_t of q(x_t | x_0) and then the step give q(x_s | x_0) (Song et al. 2021, lemma 1)."""
    alpha_bar_s, alpha_bar_t = levels[0], levels[0] * levels[1]
    for eta in (0.0, 0.3, 1.0):
        law = ddim(alpha_bar_t, alpha_bar_s, eta)
        mean = law.x0_weight + law.xt_weight * math.sqrt(alpha_bar_t)
        variance = law.variance + law.xt_weight**2 * (1 - alpha_bar_t)
        assert mean == pytest.approx(math.sqrt(alpha_bar_s), abs=1e-7)
        assert variance == pytest.approx(1 - alpha_bar_s, abs=1e-7)


@QUICK
@given(LEVELS)
def test_ddim_with_eta_1_is_the_posterior(levels: tuple[float, float]) -> None:
    alpha_bar_s, alpha_bar_t = levels[0], levels[0] * levels[1]
    one, exact = ddim(alpha_bar_t, alpha_bar_s, 1.0), posterior(alpha_bar_t, alpha_bar_s)
    assert one.variance == pytest.approx(exact.variance, rel=1e-12)
    assert one.x0_weight == pytest.approx(exact.x0_weight, abs=1e-6)
    assert one.xt_weight == pytest.approx(exact.xt_weight, abs=1e-6)


def test_ddim_with_eta_0_has_no_variance() -> None:
    assert ddim(0.2, 0.6, 0.0).variance == 0


def test_the_last_step_is_the_image_itself() -> None:
    law = posterior(0.99, 1.0)
    assert (law.x0_weight, law.xt_weight, law.variance) == (1.0, 0.0, 0.0)
    assert fixed_variance(0.99, 1.0, "small") == fixed_variance(0.99, 1.0, "large") == 0.0


def test_small_and_large_variances_enclose_the_learned_one() -> None:
    small, large = fixed_variance(0.3, 0.5, "small"), fixed_variance(0.3, 0.5, "large")
    assert (small, large) == pytest.approx((0.5 / 0.7 * 0.4, 0.4))
    low, high = log_variance_bounds(0.3, 0.5, small_at_image=1e-3)
    assert (math.exp(low), math.exp(high)) == pytest.approx((small, large))
    assert math.exp(log_variance_bounds(0.99, 1.0, small_at_image=1e-3)[0]) == pytest.approx(1e-3)


@pytest.mark.parametrize(("t", "s"), [(999, 998), (500, 499), (1, 0), (800, 600), (40, 0)])
@pytest.mark.parametrize("kind", ["small", "large"])
def test_steps_are_those_of_diffusers_ddpm(t: int, s: int, kind: str) -> None:
    left = alphas_cumprod("cosine", 1000)
    scheduler = DDPMScheduler(
        trained_betas=betas(left).tolist(), variance_type=f"fixed_{kind}", clip_sample=False, prediction_type="sample"
    )
    scheduler.custom_timesteps, scheduler.timesteps = True, torch.tensor([t, s])  # a step goes to the next of them
    x_t, x0 = torch.randn(2, 1, 500, generator=torch.Generator().manual_seed(0))
    theirs = scheduler.step(x0, t, x_t, generator=torch.Generator().manual_seed(1)).prev_sample
    eps = torch.randn(1, 500, generator=torch.Generator().manual_seed(1))
    alpha_bar_t, alpha_bar_s = float(left[t]), float(left[s])
    variance = fixed_variance(alpha_bar_t, alpha_bar_s, "large" if kind == "large" else "small")
    ours = posterior(alpha_bar_t, alpha_bar_s).mean(x0, x_t) + math.sqrt(variance) * eps
    # diffusers takes 1 - alpha_bar in float32, of which little is left near the image
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-3 if t == 1 else 2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
def test_steps_are_those_of_diffusers_ddim(eta: float) -> None:
    left = alphas_cumprod("linear", 1000)
    scheduler = DDIMScheduler(trained_betas=betas(left).tolist(), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x_t, eps = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    for t in (999, 499, 99):
        theirs = scheduler.step(eps, t, x_t, eta=eta, generator=torch.Generator().manual_seed(1)).prev_sample
        alpha_bar_t, alpha_bar_s = float(left[t]), float(left[t - 100]) if t > 99 else 1.0
        law = ddim(alpha_bar_t, alpha_bar_s, eta)
        x0 = from_eps(eps[None], x_t[None], left[t : t + 1]).x0[0]
        drawn = torch.randn(500, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            law.mean(x0, x_t) + math.sqrt(law.variance) * drawn, theirs, rtol=1e-3, atol=1e-3 if t == 999 else 1e-4
        )


@QUICK
@given(st.floats(0.001, 0.999))
def test_the_three_forms_of_a_prediction_say_the_same(alpha_bar: float) -> None:
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = torch.full((4,), alpha_bar, dtype=torch.float64)
    x_t = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * eps
    v = math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * x0
    for said in (from_eps(eps, x_t, left), from_x0(x0, x_t, left), from_v(v, x_t, left)):
        torch.testing.assert_close(said.x0, x0, rtol=0, atol=1e-9)
        torch.testing.assert_close(said.eps, eps, rtol=0, atol=1e-9)


def test_clipping_bounds_the_image_and_keeps_noise_and_image_consistent() -> None:
    left = torch.tensor([0.9, 0.25], dtype=torch.float64)
    x_t = torch.tensor([[3.0, 0.1], [-2.0, 0.2]])
    t = torch.tensor([1, 0])
    denoise = clipped(lambda x, t: from_eps(torch.zeros_like(x), x, left[t]), left, low=-1.0, high=0.5)
    said = denoise(x_t, t)
    assert float(said.x0.min()) == -1.0
    assert float(said.x0.max()) == 0.5
    scale = left[t][:, None]
    torch.testing.assert_close((scale.sqrt() * said.x0 + (1 - scale).sqrt() * said.eps).float(), x_t)
