"""The terms of the variational bound against numerical integration, and the bound against the entropy it bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion.bound import (
    discretised_gaussian_log_likelihood,
    gaussian_kl,
    prior_bits,
    quantised,
    variational_bound,
)
from pipelines.diffusion.points import GaussianMixture
from pipelines.diffusion.posterior import posterior
from pipelines.diffusion.schedules import alphas_cumprod, strided

LEFT = alphas_cumprod("cosine", 100)


def _divergence(p: object, q: object) -> float:
    integrand = lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x))  # type: ignore[attr-defined]  # noqa: E731
    centre, width = p.mean(), 12 * p.std()  # type: ignore[attr-defined]
    return float(integrate.quad(integrand, centre - width, centre + width, limit=200)[0])


@pytest.mark.parametrize(("mean", "variance", "other"), [(0.0, 1.0, 1.0), (0.3, 0.5, 0.8), (-1.0, 2.0, 0.7)])
def test_the_divergence_of_two_normal_laws_is_its_integral(mean: float, variance: float, other: float) -> None:
    ours = gaussian_kl(torch.tensor(mean).double(), torch.tensor(variance).double(), torch.tensor(other).double())
    p, q = stats.norm(mean, math.sqrt(variance)), stats.norm(0, math.sqrt(other))
    assert float(ours) == pytest.approx(_divergence(p, q), abs=1e-6)


def test_the_prior_term_is_the_divergence_from_pure_noise() -> None:
    p = stats.norm(math.sqrt(0.2) * 0.9, math.sqrt(0.8))
    assert float(prior_bits(torch.tensor([[0.9]]), 0.2)[0]) == pytest.approx(
        _divergence(p, stats.norm(0, 1)) / math.log(2), abs=1e-6
    )


@pytest.mark.parametrize("num_values", [2, 16, 256])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.5), (-0.97, 0.01), (3.0, 0.05), (0.2, 2.0)])
def test_the_masses_of_all_bins_are_those_of_the_law_and_sum_to_one(
    num_values: int, mean: float, deviation: float
) -> None:
    grid = torch.linspace(-1, 1, num_values, dtype=torch.float64)
    centre, width = torch.tensor([mean, deviation], dtype=torch.float64)
    log_masses = discretised_gaussian_log_likelihood(grid, centre, width, num_values)
    assert torch.isfinite(log_masses).all()
    assert float(log_masses.exp().sum()) == pytest.approx(1, abs=1e-9)
    edges = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]).numpy() / 2, [np.inf]])
    expected = np.diff(stats.norm(mean, deviation).cdf(edges))
    np.testing.assert_allclose(log_masses.exp().numpy(), expected, atol=1e-9)


def test_far_in_a_tail_the_mass_keeps_its_logarithm() -> None:
    x, mean, deviation = torch.tensor([0.0]), torch.tensor([0.9]).double(), torch.tensor(0.02).double()
    half = 1 / 255
    left = discretised_gaussian_log_likelihood(x, mean, deviation, 256)
    right = discretised_gaussian_log_likelihood(x, -mean, deviation, 256)
    inner = (0.9 - half) / 0.02
    assert float(left) == pytest.approx(stats.norm.logsf(inner), rel=1e-3)
    assert float(left) == pytest.approx(float(right), rel=1e-9)


def test_the_terms_are_the_divergences_of_the_steps() -> None:
    """Each L_{t-1}, computed by integration over x_{t-1} from the two laws themselves."""
    law = GaussianMixture(torch.ones(1), torch.tensor([[0.1]]), torch.tensor([[[0.09]]]))
    steps = strided(LEFT, 20)
    x0 = quantised(torch.tensor([[0.35], [-0.2]]))
    eps = torch.tensor([[0.4], [-1.1]])
    bound = variational_bound(law.denoiser(LEFT), x0, steps, noise=lambda _: eps, variance="large")
    for number in (0, 7, 18):
        level, after = steps.pairs[number]
        alpha_bar = steps.alpha_bar(level)
        step = posterior(alpha_bar, steps.alpha_bar(after))
        large = 1 - alpha_bar / steps.alpha_bar(after)
        for row in (0, 1):
            x_t = math.sqrt(alpha_bar) * float(x0[row]) + math.sqrt(1 - alpha_bar) * float(eps[row])
            said = float(law.posterior_mean(torch.tensor([[x_t]]), torch.tensor([alpha_bar])))
            true = stats.norm(step.x0_weight * float(x0[row]) + step.xt_weight * x_t, math.sqrt(step.variance))
            model = stats.norm(step.x0_weight * said + step.xt_weight * x_t, math.sqrt(large))
            bits = _divergence(true, model) / math.log(2)
            assert float(bound.terms[number, row]) == pytest.approx(bits, abs=1e-5)
    assert float(bound.squared_errors[7, 0]) >= 0


def _normal(shape: tuple[int, ...]) -> object:
    return lambda number: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(77 + number))


def test_the_bound_lies_above_the_entropy_and_comes_nearer_with_more_steps() -> None:
    spread = 0.25
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([[[spread**2]]]))
    x0 = quantised(law.sample(1500, 2), 64)
    # a normal law in bins of width w has about the entropy log2(sqrt(2 pi e) s / w)
    entropy = math.log2(math.sqrt(2 * math.pi * math.e) * spread / (2 / 63))
    totals = {
        (variance, num_steps): float(
            variational_bound(
                law.denoiser(LEFT),
                x0,
                strided(LEFT, num_steps),
                noise=_normal((1500, 1)),  # type: ignore[arg-type]
                variance=variance,
                num_values=64,
            ).total.mean()
        )
        for variance in ("small", "large")
        for num_steps in (10, 100)
    }
    assert all(entropy < total for total in totals.values())
    assert totals["large", 100] < entropy + 0.6
    assert totals["large", 100] < totals["large", 10]
    assert totals["small", 100] < totals["small", 10]


def test_the_rate_rises_to_the_bound_and_the_distortion_falls() -> None:
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([[[0.09]]]))
    x0 = quantised(law.sample(400, 2))
    bound = variational_bound(law.denoiser(LEFT), x0, strided(LEFT, 50), noise=_normal((400, 1)))  # type: ignore[arg-type]
    rate, distortion = bound.rate.mean(1), bound.squared_errors.mean(1)
    assert float(rate[0]) == pytest.approx(float(bound.prior.mean()))
    assert (rate.diff() >= 0).all()
    torch.testing.assert_close(bound.rate[-1] + bound.terms[-1], bound.total)
    assert float(distortion[0]) == pytest.approx(float(x0.square().mean()), rel=0.05)  # pure noise says nothing
    assert float(distortion[-1]) < 0.01 * float(distortion[0])


def test_quantised_numbers_stand_on_the_grid() -> None:
    values: Tensor = quantised(torch.tensor([-2.0, -1.0, 0.1, 0.3, 1.5]), 5)
    assert values.tolist() == pytest.approx([-1, -1, 0, 0.5, 1])
    assert quantised(torch.tensor([0.26]), 3, low=0.0).tolist() == [0.5]


@pytest.mark.parametrize(("num_steps", "num_values"), [(1, 256), (5, 1)])
def test_a_bound_of_nothing_is_refused(num_steps: int, num_values: int) -> None:
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
    with pytest.raises(SettingsError, match="expected 2 or more"):
        variational_bound(
            law.denoiser(LEFT),
            torch.zeros(1, 1),
            strided(LEFT, num_steps),
            noise=lambda _: torch.zeros(1, 1),
            num_values=num_values,
        )
