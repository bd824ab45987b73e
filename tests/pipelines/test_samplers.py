"""Samplers with exact denoisers: the law of their samples, and what they promise of seeds, steps and ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from data.errors import NonFiniteError, SettingsError
from pipelines.components import SAMPLERS
from pipelines.diffusion import noise
from pipelines.diffusion.guidance import classifier_free, classifier_guided, label_gradient
from pipelines.diffusion.point_distances import energy_distance
from pipelines.diffusion.points import ONE_GAUSSIAN, TWO_GAUSSIANS, GaussianMixture
from pipelines.diffusion.prediction import Prediction, from_eps
from pipelines.diffusion.samplers import Step, ancestral, ddim_inversion, ddim_sampler
from pipelines.diffusion.schedulers import named_scheduler, scheduled
from pipelines.diffusion.schedules import Steps, alphas_cumprod, betas, strided

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # its use of numpy

LEFT = alphas_cumprod("linear", 200)
EXACT = TWO_GAUSSIANS.denoiser(LEFT)
UNIT = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
NUM = 1000


def drawn(seed: int, num: int = NUM) -> tuple[Tensor, noise.Noise]:
    """Return a start for `num` points and the noise of their steps, as one generator each draws them."""

    def normal(key: int) -> Tensor:
        return torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 * seed + key))

    return normal(999), normal


@pytest.mark.parametrize("way", ["ancestral small", "ancestral large", "ddim eta 1", "ddim eta 0", "dpm solver"])
def test_samples_of_the_exact_denoiser_have_the_true_law(way: str) -> None:
    x, steps_noise = drawn(1)
    steps = strided(LEFT, 200 if "dpm" not in way else 30)
    if way.startswith("ancestral"):
        samples = ancestral(EXACT, x, steps, noise=steps_noise, variance="large" if "large" in way else "small")
    elif way == "dpm solver":
        samples = scheduled(EXACT, x, LEFT, named_scheduler("DPMSolverMultistepScheduler"), 30, seeds=range(NUM))
    else:
        samples = ddim_sampler(EXACT, x, steps, noise=steps_noise, eta=float(way[-1]))
    true = TWO_GAUSSIANS.sample(NUM, 5)
    floor = energy_distance(TWO_GAUSSIANS.sample(NUM + 1, 6), true)
    distance = energy_distance(samples, true)
    assert abs(distance.value) < 0.01, distance.value  # one Gaussian for both is at 0.4
    assert distance.low < floor.high


def test_the_distance_sees_another_law() -> None:
    assert energy_distance(ONE_GAUSSIAN.sample(NUM, 1), TWO_GAUSSIANS.sample(NUM, 5)).low > 0.1


def _moments(rule: object, steps: Steps) -> tuple[float, float]:
    """Return mean and variance of what a sampler makes of one given x, over the noise of its first step."""
    assert callable(rule)
    x = torch.full((20_000, 1), 0.8, dtype=torch.float64)
    law = GaussianMixture(torch.ones(1), torch.tensor([[0.3]]), torch.tensor([[[0.2]]]))
    eps = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = rule(law.denoiser(LEFT), x, steps, noise=lambda _: eps)
    return float(after.mean()), float(after.var())


def test_a_step_of_ddim_with_eta_1_has_mean_and_variance_of_ddpm() -> None:
    steps = Steps(LEFT, (120, 60))
    ours = _moments(lambda *given, noise: ddim_sampler(*given, noise=noise, eta=1.0), steps)
    ancestors = _moments(lambda *given, noise: ancestral(*given, noise=noise, variance="small"), steps)
    assert ours == pytest.approx(ancestors, rel=1e-9)
    assert ours[1] > 0.01


def test_ddim_with_eta_0_is_deterministic_and_asks_for_no_noise() -> None:
    x, _ = drawn(2, 50)

    def refuse(number: int) -> Tensor:
        raise AssertionError(f"noise was drawn at step {number}")

    steps = strided(LEFT, 50, "quadratic")
    first = ddim_sampler(EXACT, x, steps, noise=refuse, eta=0)
    assert torch.equal(first, ddim_sampler(EXACT, x, steps))


def test_ddim_inversion_finds_the_noise_that_an_image_came_from() -> None:
    x, _ = drawn(3, 40)
    steps = strided(LEFT, 200)
    image = ddim_sampler(EXACT, x, steps)
    plain = ddim_inversion(EXACT, image, steps)
    refined = ddim_inversion(EXACT, image, steps, num_iterations=8)
    error = [float((found - x).abs().median()) for found in (plain, refined)]
    assert error[0] < 0.1
    assert error[1] < 1e-6
    again = ddim_sampler(EXACT, plain, steps)
    assert float((again - image).abs().median()) < 0.03


def test_inversion_is_nearer_with_more_steps() -> None:
    x, _ = drawn(3, 100)
    errors = []
    for num_steps in (10, 40, 200):
        steps = strided(LEFT, num_steps)
        errors.append(float((ddim_inversion(EXACT, ddim_sampler(EXACT, x, steps), steps) - x).abs().mean()))
    assert errors == sorted(errors, reverse=True)


def _learned(law: GaussianMixture, share: float) -> object:
    """Return the exact denoiser with a learned log variance at a share of the way from log beta~ to log beta."""
    beta = betas(LEFT)
    small = torch.cat([beta[1:2] * (1 - LEFT[0]) / (1 - LEFT[1]), beta[1:] * (1 - LEFT[:-1]) / (1 - LEFT[1:])])
    log_variance = (1 - share) * small.log() + share * beta.log()

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        said = law.denoiser(LEFT)(x_t, t)
        return Prediction(said.eps, said.x0, log_variance[t][:, None].expand_as(x_t))

    return denoise


@pytest.mark.parametrize(("share", "variance"), [(0.0, "small"), (1.0, "large")])
@pytest.mark.parametrize("num_steps", [200, 20])
def test_a_learned_variance_at_either_end_is_the_fixed_one(share: float, variance: str, num_steps: int) -> None:
    x, steps_noise = drawn(4, 20)
    steps = strided(LEFT, num_steps)
    learned = ancestral(_learned(UNIT, share), x, steps, noise=steps_noise, variance="learned")  # type: ignore[arg-type]
    fixed = ancestral(UNIT.denoiser(LEFT), x, steps, noise=steps_noise, variance=variance)  # type: ignore[arg-type]
    torch.testing.assert_close(learned, fixed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", SAMPLERS, ids=lambda cls: cls.__name__)
def test_schedulers_of_diffusers_run_on_our_schedule_and_denoiser(cls: type) -> None:
    law = GaussianMixture(torch.ones(1), torch.tensor([[2.0, -1.0]]), 0.01 * torch.eye(2)[None])
    x = noise.start(range(40), (2,)).double()
    seen: list[int] = []
    samples = scheduled(
        law.denoiser(LEFT), x, LEFT, cls, 25, seeds=range(40), callback=lambda step: seen.append(step.level)
    )
    assert seen[0] == 199
    assert len(seen) >= 25
    assert samples.mean(0).tolist() == pytest.approx([2, -1], abs=0.1)
    assert float(samples.std(0).max()) < 0.3
    alone = scheduled(law.denoiser(LEFT), x[7:8], LEFT, cls, 25, seeds=[7])
    torch.testing.assert_close(alone, samples[7:8])


def test_an_image_depends_on_its_seed_alone() -> None:
    def images(seeds: list[int]) -> Tensor:
        return ancestral(EXACT, noise.start(seeds, (2,)), strided(LEFT, 10), noise=noise.seeded(seeds, (2,)))

    together = images([3, 1, 2])
    assert torch.equal(images([1])[0], together[1])
    assert not torch.equal(together[0], together[2])


def test_the_callback_sees_every_step() -> None:
    x, steps_noise = drawn(5, 3)
    seen: list[Step] = []
    steps = strided(LEFT, 7)
    samples = ancestral(EXACT, x, steps, noise=steps_noise, callback=seen.append)
    assert [step.number for step in seen] == list(range(7))
    assert [step.level for step in seen] == list(steps.levels[:-1])
    assert torch.equal(seen[-1].x, samples)
    assert torch.equal(seen[-1].x, seen[-1].x0)


def test_a_way_in_two_parts_ends_where_the_whole_does() -> None:
    x, steps_noise = drawn(6, 4)
    steps = strided(LEFT, 10)
    half = ancestral(EXACT, x, steps.until(6), noise=steps_noise)
    end = ancestral(EXACT, half, steps.after(6), noise=lambda number: steps_noise(6 + number))
    torch.testing.assert_close(end, ancestral(EXACT, x, steps, noise=steps_noise))


def test_guidance_of_weight_0_and_1_is_none() -> None:
    conditional, unconditional = EXACT, UNIT.denoiser(LEFT)
    assert classifier_free(conditional, unconditional, LEFT, 1.0) is conditional
    assert classifier_free(conditional, unconditional, LEFT, 0.0) is unconditional
    assert classifier_guided(conditional, lambda x, _: x, torch.zeros(1).long(), LEFT, 0.0) is conditional
    x_t, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double(), torch.full((5,), 100)
    for weight in (1e-9, 1 - 1e-9):
        near = classifier_free(conditional, unconditional, LEFT, weight)(x_t, t)
        expected = (conditional if weight > 0.5 else unconditional)(x_t, t)
        torch.testing.assert_close(near.eps, expected.eps, atol=1e-6, rtol=0)
        torch.testing.assert_close(near.x0, expected.x0, atol=1e-6, rtol=0)


def test_guidance_goes_from_the_unconditional_through_the_conditional() -> None:
    x_t, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double(), torch.full((5,), 100)
    eps = [classifier_free(EXACT, UNIT.denoiser(LEFT), LEFT, weight)(x_t, t).eps for weight in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(eps[2] - eps[0], 3 * (eps[1] - eps[0]))


def _which(x: Tensor, t: Tensor) -> Tensor:
    """Return the exact log posterior of which of the two Gaussians a noisy point came from."""
    return TWO_GAUSSIANS._component_log_densities(x.double(), LEFT[t])


def test_the_exact_classifier_turns_the_mixture_into_one_of_its_parts() -> None:
    """Bayes: the score of the mixture plus that of p(label | x_t) is the score of the component."""
    x_t, t = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double(), torch.randint(0, 200, (50,))
    for label in (0, 1):
        part = GaussianMixture(
            torch.ones(1), TWO_GAUSSIANS.means[label : label + 1], TWO_GAUSSIANS.covariances[label : label + 1]
        )
        guided = classifier_guided(EXACT, _which, torch.full((50,), label), LEFT, 1.0)(x_t, t)
        torch.testing.assert_close(guided.eps, part.denoiser(LEFT)(x_t, t).eps, atol=1e-6, rtol=1e-6)


def test_the_gradient_of_a_label_leaves_no_trace_in_the_input() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    with torch.no_grad():
        gradient = label_gradient(_which, x, torch.full((3,), 10), torch.tensor([0, 1, 0]))
    assert gradient.shape == (3, 2)
    assert not gradient.requires_grad
    assert not x.requires_grad
    assert float((gradient[0] + gradient[1] * math.inf).isfinite().sum()) == 0  # they point apart, neither is zero


def _broken(x_t: Tensor, t: Tensor) -> Prediction:
    return from_eps(torch.full_like(x_t, float("nan")), x_t, LEFT[t])


@pytest.mark.parametrize(
    "sampled",
    [
        lambda x, steps, chance: ancestral(_broken, x, steps, noise=chance),
        lambda x, steps, _: ddim_sampler(_broken, x, steps),
        lambda x, steps, _: ddim_inversion(_broken, x, steps),
        lambda x, steps, _: scheduled(_broken, x, LEFT, SAMPLERS[0], len(steps), seeds=range(3)),
    ],
    ids=["ancestral", "ddim", "inversion", "scheduled"],
)
def test_samples_that_are_not_finite_are_refused(sampled: Callable[[Tensor, Steps, noise.Noise], Tensor]) -> None:
    x, steps_noise = drawn(7, 3)
    with pytest.raises(NonFiniteError, match=r"3 of 3 samples are not finite \(rows 0, 1, 2\)"):
        sampled(x, strided(LEFT, 4), steps_noise)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_to_1_is_refused(eta: float) -> None:
    with pytest.raises(SettingsError, match="expected 0"):
        ddim_sampler(EXACT, torch.zeros(1, 2), strided(LEFT, 2), eta=eta, noise=lambda _: torch.zeros(1, 2))


def test_wrong_wishes_are_refused() -> None:
    x, steps_noise = drawn(8, 2)
    with pytest.raises(SettingsError, match="trained without a learned variance"):
        ancestral(EXACT, x, strided(LEFT, 2), noise=steps_noise, variance="learned")
    with pytest.raises(SettingsError, match="Did you mean DPMSolverMultistepScheduler"):
        named_scheduler("DPMSolverMultistep")
    with pytest.raises(SettingsError, match="found 0, expected 1 or more"):
        ddim_inversion(EXACT, x, strided(LEFT, 2), num_iterations=0)
    for num_steps in (0, 201):
        with pytest.raises(SettingsError, match="expected 1 to 200"):
            scheduled(EXACT, x, LEFT, SAMPLERS[0], num_steps, seeds=[0, 1])
