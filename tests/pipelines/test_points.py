"""Points in the plane: closed forms against autograd and Bayes, and a small network against the true law."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.errors import SettingsError
from finetune.core.points import train_points
from pipelines.diffusion import noise
from pipelines.diffusion.point_distances import energy_distance, sliced_wasserstein
from pipelines.diffusion.point_models import PointModel, load_point_model
from pipelines.diffusion.points import LAWS, ONE_GAUSSIAN, TWO_GAUSSIANS, GaussianMixture, Spiral
from pipelines.diffusion.samplers import ancestral, ddim_sampler
from pipelines.diffusion.schedules import alphas_cumprod, strided

NUM = 800


@pytest.mark.parametrize("law", [ONE_GAUSSIAN, TWO_GAUSSIANS], ids=["one", "two"])
@pytest.mark.parametrize("alpha_bar", [1.0, 0.7, 1e-3])
def test_the_score_is_the_gradient_of_the_log_density(law: GaussianMixture, alpha_bar: float) -> None:
    x = (2 * torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    left = torch.full((20,), alpha_bar, dtype=torch.float64)
    expected = torch.autograd.grad(law.log_density(x, left).sum(), x)[0]
    torch.testing.assert_close(law.score(x.detach(), left), expected)


def test_the_density_is_that_of_torch() -> None:
    parts = torch.distributions.MultivariateNormal(TWO_GAUSSIANS.means, TWO_GAUSSIANS.covariances)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(TWO_GAUSSIANS.weights), parts)
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(TWO_GAUSSIANS.log_density(x, torch.ones(20)), mixture.log_prob(x))


def test_the_posterior_mean_is_that_of_tweedie() -> None:
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = torch.linspace(0.01, 0.99, 20, dtype=torch.float64)
    expected = (x + (1 - left)[:, None] * TWO_GAUSSIANS.score(x, left)) / left.sqrt()[:, None]
    torch.testing.assert_close(TWO_GAUSSIANS.posterior_mean(x, left), expected)


def test_the_posterior_mean_is_bayes_rule_over_samples() -> None:
    """E[x_0 | x_t] as the average of many x_0, weighted by how likely each makes x_t."""
    x0 = TWO_GAUSSIANS.sample(200_000, 0)
    x_t = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    weights = (-(x_t - 0.5**0.5 * x0).square().sum(1) / (2 * 0.5)).softmax(0)
    expected = weights @ x0
    ours = TWO_GAUSSIANS.posterior_mean(x_t, torch.tensor([0.5]))[0]
    torch.testing.assert_close(ours, expected, atol=0.02, rtol=0)


def test_samples_have_mean_and_covariance_of_the_mixture() -> None:
    points = TWO_GAUSSIANS.sample(100_000, 1)
    weights, means = TWO_GAUSSIANS.weights, TWO_GAUSSIANS.means.double()
    mean = weights @ means
    away = means - mean
    covariance = torch.einsum("k,kij->ij", weights, TWO_GAUSSIANS.covariances + away[:, :, None] * away[:, None])
    torch.testing.assert_close(points.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(points.T.cov(), covariance, atol=0.03, rtol=0)


def test_the_spiral_winds_outwards() -> None:
    spiral = Spiral(turns=1.75, radius=2.0, width=0.0)
    points = spiral.sample(500, 0)
    radius = points.norm(dim=1)
    assert 0.2 < float(radius.min()) < float(radius.max()) <= 2.0
    angle = torch.atan2(points[:, 1], points[:, 0])
    turns = (2 * torch.pi * 1.75 * radius / 2.0 - angle) / (2 * torch.pi)
    torch.testing.assert_close(turns, turns.round(), atol=1e-9, rtol=0)


def test_distances_of_one_law_are_zero_on_average_and_of_two_are_not() -> None:
    spiral = LAWS["spiral"]
    same = [energy_distance(spiral.sample(300, 2 * seed), spiral.sample(300, 2 * seed + 1)).value for seed in range(8)]
    assert abs(sum(same) / len(same)) < 0.01
    assert min(same) < 0 < max(same)
    assert energy_distance(spiral.sample(300, 0), ONE_GAUSSIAN.sample(300, 0)).low > 0.02


def test_the_sliced_distance_of_a_shift_is_its_mean_projection() -> None:
    x = ONE_GAUSSIAN.sample(200, 0)
    assert sliced_wasserstein(x, x) == 0
    # the mean of |cos| over the half circle is 2 / pi
    assert sliced_wasserstein(x, x + torch.tensor([3.0, 0.0])) == pytest.approx(3 * 2 / torch.pi, rel=1e-3)


@pytest.fixture(scope="module")
def spiral() -> PointModel:
    return train_points("spiral", schedule="linear", num_train_timesteps=100, num_steps=850, batch_size=256, seed=0)


@pytest.mark.parametrize("way", ["ancestral", "ddim eta 0, 25 steps"])
def test_samples_of_the_spiral_are_as_near_as_its_own_points(spiral: PointModel, way: str) -> None:
    """The energy distance to the true law stays below 0.02; two sets of true points have a distance of 0 +- 0.005."""
    start = noise.start(range(NUM), (2,))
    if way == "ancestral":

        def chance(number: int) -> torch.Tensor:
            return torch.randn(NUM, 2, generator=torch.Generator().manual_seed(number))

        samples = ancestral(spiral.denoiser, start, strided(spiral.alphas_cumprod, 100), noise=chance)
    else:
        samples = ddim_sampler(spiral.denoiser, start, strided(spiral.alphas_cumprod, 25))
    true = LAWS["spiral"].sample(NUM, 99)
    floor = energy_distance(LAWS["spiral"].sample(NUM, 98), true)
    distance = energy_distance(samples, true)
    assert -0.01 < floor.low < floor.high < 0.01
    assert distance.value < 0.02
    assert energy_distance(start, true).low > 0.05  # what the noise itself is at


def test_the_trained_score_is_near_the_exact_one() -> None:
    model = train_points(
        "two_gaussians", schedule="linear", num_train_timesteps=100, num_steps=300, batch_size=256, seed=0
    )
    left = model.alphas_cumprod
    errors, sizes = [], []
    for level in (20, 50, 80):
        x_t = TWO_GAUSSIANS.sample(500, level).mul(float(left[level]) ** 0.5)
        x_t = (x_t + (1 - float(left[level])) ** 0.5 * ONE_GAUSSIAN.sample(500, 3).sub(0.2)).float()
        t = torch.full((500,), level)
        exact = TWO_GAUSSIANS.denoiser(left)(x_t, t).eps
        errors.append(float((model.denoiser(x_t, t).eps - exact).square().mean()))
        sizes.append(float(exact.square().mean()))
    assert sum(errors) < 0.1 * sum(sizes)


def test_training_is_a_function_of_its_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = train_points("spiral", schedule="cosine", num_train_timesteps=20, num_steps=3, batch_size=8, seed=seed)
        return torch.cat([value.flatten() for value in model.net.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_saved_model_is_the_same(spiral: PointModel, tmp_path: Path) -> None:
    spiral.save(tmp_path / "run")
    read = load_point_model(tmp_path / "run")
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.full((5,), 30)
    assert torch.equal(read.denoiser(x, t).eps, spiral.denoiser(x, t).eps)
    assert (read.law, read.schedule, read.num_train_timesteps) == ("spiral", "linear", 100)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "point_model.json").unlink(), "holds no point model"),
        (lambda folder: (folder / "point_model.json").write_text("[1"), "holds no point model"),
        (lambda folder: (folder / "point_model.json").write_text("{}"), "holds no point model"),
        (lambda folder: (folder / "point_model.safetensors").write_bytes(b"x"), "holds no point model"),
        (
            lambda folder: (folder / "point_model.json").write_text(
                json.dumps({"law": "circle", "schedule": "linear", "num_train_timesteps": 100})
            ),
            "found law 'circle'",
        ),
    ],
)
def test_folders_without_a_point_model_are_refused(
    break_it: object, said: str, spiral: PointModel, tmp_path: Path
) -> None:
    spiral.save(tmp_path)
    assert callable(break_it)
    break_it(tmp_path)
    with pytest.raises(SettingsError, match=said):
        load_point_model(tmp_path)


def test_the_exact_denoiser_is_its_own_score() -> None:
    left = alphas_cumprod("linear", 50)
    x_t = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.arange(10) * 5
    eps = TWO_GAUSSIANS.denoiser(left)(x_t, t).eps
    torch.testing.assert_close(eps, -(1 - left[t])[:, None].sqrt() * TWO_GAUSSIANS.score(x_t, left[t]))
