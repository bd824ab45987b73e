"""The noise objective against closed forms: what a perfect, a zero and a blind predictor must score."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.core import draws
from finetune.core.method import Batch
from finetune.core.objective import (
    ContrastObjective,
    NoiseObjective,
    ReconstructionObjective,
    add_noise,
    min_snr_weight,
    noise_losses,
    snr,
    target,
)
from pipelines.components import PredictionType

TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)


def _case(num_samples: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(num_samples, 4, 6, 6, generator=generator) for _ in range(2))
    return x0, noise, torch.randint(0, 1000, (num_samples,), generator=generator)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_perfect_predictor_has_zero_loss(prediction_type: PredictionType) -> None:
    x0, noise, t = _case()
    perfect = target(x0, noise, ALPHAS_CUMPROD[t], prediction_type)
    losses = noise_losses(
        lambda *_: perfect,
        x0=x0,
        noise=noise,
        timesteps=t,
        conditioning=torch.zeros(5, 1, 1),
        alphas_cumprod=ALPHAS_CUMPROD,
        prediction_type=prediction_type,
        snr_gamma=5.0,
    )
    assert torch.equal(losses, torch.zeros(5))


def test_the_zero_predictor_scores_the_mean_square_of_its_target() -> None:
    x0, noise, t = _case()
    losses = noise_losses(
        lambda noisy, *_: torch.zeros_like(noisy),
        x0=x0,
        noise=noise,
        timesteps=t,
        conditioning=torch.zeros(5, 1, 1),
        alphas_cumprod=ALPHAS_CUMPROD,
        prediction_type="epsilon",
    )
    torch.testing.assert_close(losses, noise.square().mean((1, 2, 3)))


def test_x0_noise_and_v_are_recovered_from_each_other() -> None:
    x0, noise, t = _case()
    alpha_bar = ALPHAS_CUMPROD[t].view(-1, 1, 1, 1)
    noisy = add_noise(x0, noise, ALPHAS_CUMPROD[t])
    v = target(x0, noise, ALPHAS_CUMPROD[t], "v_prediction")
    torch.testing.assert_close(alpha_bar.sqrt() * noisy - (1 - alpha_bar).sqrt() * v, x0)
    torch.testing.assert_close((1 - alpha_bar).sqrt() * noisy + alpha_bar.sqrt() * v, noise)


def test_v_prediction_min_snr_weight_is_not_the_base_plus_one() -> None:
    """diffusers' DreamBooth-LoRA adds 1 to the weight for v; the right one divides by snr + 1."""
    alpha_bar = torch.tensor([0.5, 0.9, 0.99])
    ratio = torch.tensor([1.0, 9.0, 99.0])
    torch.testing.assert_close(snr(alpha_bar), ratio, rtol=1e-4, atol=0)
    expected = {
        "epsilon": torch.tensor([1.0, 5 / 9, 5 / 99]),
        "v_prediction": torch.tensor([1 / 2, 5 / 10, 5 / 100]),
        "sample": torch.tensor([1.0, 5.0, 5.0]),
    }
    for prediction_type in TYPES:
        weight = min_snr_weight(alpha_bar, 5.0, prediction_type)
        torch.testing.assert_close(weight, expected[prediction_type], rtol=1e-4, atol=0)


def test_min_snr_gives_one_weight_on_the_error_of_x0_whatever_is_predicted() -> None:
    x0, noise, t = _case()
    alpha_bar = ALPHAS_CUMPROD[t]
    wrong_x0 = x0 + 0.1
    noisy = add_noise(x0, noise, alpha_bar)
    a = alpha_bar.view(-1, 1, 1, 1)
    implied_noise = (noisy - a.sqrt() * wrong_x0) / (1 - a).sqrt()
    predictions = {
        "sample": wrong_x0,
        "epsilon": implied_noise,
        "v_prediction": a.sqrt() * implied_noise - (1 - a).sqrt() * wrong_x0,
    }
    scores = [
        noise_losses(
            lambda *_, p=predictions[prediction_type]: p,
            x0=x0,
            noise=noise,
            timesteps=t,
            conditioning=torch.zeros(5, 1, 1),
            alphas_cumprod=ALPHAS_CUMPROD,
            prediction_type=prediction_type,
            snr_gamma=5.0,
        )
        for prediction_type in TYPES
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-3, atol=1e-6)


class _Identity:
    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels, torch.zeros_like(pixels)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        return torch.zeros(len(captions), 1, 1)


def _batch(positions: tuple[int, ...]) -> Batch:
    pixels = torch.stack([draws.normal(1, "pixels", [p], (3, 4, 4))[0] for p in positions])
    count = len(positions)
    return Batch(positions, pixels, ("",) * count, torch.zeros(count, dtype=torch.bool), ("",) * count)


def _objective(**options: float) -> NoiseObjective:
    identity = _Identity()
    return NoiseObjective(
        denoise=lambda noisy, *_: torch.zeros_like(noisy),
        space=identity,
        conditioner=identity,
        alphas_cumprod=ALPHAS_CUMPROD,
        prediction_type="epsilon",
        seed=0,
        **options,
    )


def test_a_sample_draws_the_same_noise_in_any_batch() -> None:
    objective = _objective()
    together = objective.losses(_batch((0, 1, 2, 3)))
    alone = torch.cat([objective.losses(_batch((position,))) for position in range(4)])
    assert torch.equal(together, alone)
    assert len(together.unique()) == 4


def test_offset_noise_adds_its_variance_to_the_noise() -> None:
    """The zero predictor scores the noise's mean square: 1 without, 1 + noise_offset^2 with offset noise."""
    batch = _batch(tuple(range(3000)))
    assert _objective().losses(batch).mean().item() == pytest.approx(1.0, abs=0.01)
    assert _objective(noise_offset=0.5).losses(batch).mean().item() == pytest.approx(1.25, abs=0.02)


def test_high_noise_share_moves_timesteps_to_the_upper_half() -> None:
    uniform = draws.timesteps(0, range(4000), 1000)
    biased = draws.timesteps(0, range(4000), 1000, high_noise_share=0.5)
    assert (uniform >= 500).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (biased >= 500).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert biased.min() >= 0
    assert biased.max() <= 999


def test_a_perfect_autoencoder_with_the_standard_law_scores_zero() -> None:
    class Law:
        mean, std, var, logvar = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4), torch.zeros(1)

    class Perfect:
        def encode(self, _: Tensor) -> object:
            return type("Encoded", (), {"latent_dist": Law})

        def decode(self, _: Tensor) -> object:
            return type("Decoded", (), {"sample": batch.pixels + self.error})

        error = 0.0

    batch, vae = _batch((0, 1)), Perfect()
    objective = ReconstructionObjective(vae, kl_weight=1.0, seed=0)  # type: ignore[arg-type]
    assert torch.equal(objective.losses(batch), torch.zeros(2))
    vae.error = 0.5
    torch.testing.assert_close(objective.losses(batch), torch.full((2,), 0.75))


def test_contrast_rewards_captions_that_find_their_pictures_and_ignores_equal_captions() -> None:
    identity = _Identity()
    directions = torch.eye(4)

    def tower(_pictures: Tensor, _captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return directions, directions, torch.tensor(50.0)

    objective = ContrastObjective(tower, identity, identity)  # type: ignore[arg-type]
    batch = _batch((0, 1, 2, 3))
    distinct = Batch(batch.positions, batch.pixels, ("a", "b", "c", "d"), batch.is_prior, batch.sources)
    assert objective.losses(distinct).max().item() < 1e-6
    directions = torch.eye(4)[[0, 0, 1, 2]]  # two pictures and captions that cannot be told apart
    assert objective.losses(distinct)[0].item() == pytest.approx(0.6931, abs=1e-3)
    equal = Batch(batch.positions, batch.pixels, ("a", "a", "c", "d"), batch.is_prior, batch.sources)
    assert objective.losses(equal)[0].item() < 1e-6
