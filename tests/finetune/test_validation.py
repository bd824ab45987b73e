"""The validation loss is a function of the weights alone: fixed images, timesteps and noise, and no trace left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.errors import DataError
from finetune.core.objective import Denoiser, NoiseObjective, target, unet_denoiser
from finetune.core.validation import ValidationLoss
from pipelines.components import PredictionType, load_components
from pipelines.conditioning import TextConditioner
from pipelines.spaces import LatentSpace

ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)
BINS = ["validation_loss_t0_249", "validation_loss_t250_499", "validation_loss_t500_749", "validation_loss_t750_999"]


class _Pixels:
    """Pixels as they are, with a spread that the mean must not use; a caption as its number of letters."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.captions: list[str] = []

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += pixels[:, 0, 0, 0].tolist()
        return pixels, torch.ones_like(pixels)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        self.captions += captions
        return torch.tensor([float(len(caption)) for caption in captions]).view(-1, 1, 1)


def _images(**counts: int) -> dict[str, np.ndarray]:
    """Give each caption's images the values 0, 1, 2, ... in their first pixel and zeros elsewhere."""
    images = {caption: np.zeros((count, 3, 4, 4), dtype=np.float32) for caption, count in counts.items()}
    for pixels in images.values():
        pixels[:, 0, 0, 0] = np.arange(len(pixels))
    return images


def _objective(denoise: Denoiser, space: _Pixels | None = None, **options: object) -> NoiseObjective:
    pixels = space or _Pixels()
    objective = NoiseObjective(
        denoise=denoise,
        space=pixels,
        conditioner=pixels,
        alphas_cumprod=ALPHAS_CUMPROD,
        prediction_type="epsilon",
        seed=0,
    )
    return replace(objective, **options)  # type: ignore[arg-type]


def _zero(noisy: Tensor, *_: Tensor) -> Tensor:
    return torch.zeros_like(noisy)


def _knowing(noisy: Tensor, timesteps: Tensor, prediction_type: PredictionType) -> Tensor:
    """Predict without error for images that are zero everywhere."""
    alpha_bar = ALPHAS_CUMPROD[timesteps]
    noise = noisy / (1 - alpha_bar).sqrt().view(-1, 1, 1, 1)
    return target(torch.zeros_like(noisy), noise, alpha_bar, prediction_type)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_predictor_scores_zero_in_every_bin(prediction_type: PredictionType) -> None:
    objective = _objective(lambda noisy, t, _: _knowing(noisy, t, prediction_type), prediction_type=prediction_type)
    images = {"zeros": np.zeros((5, 3, 4, 4), dtype=np.float32)}
    measured = ValidationLoss(objective, images, seed=1, batch_size=3).measure()
    assert list(measured) == ["validation_loss", *BINS]
    assert max(measured.values()) < 1e-9


def test_the_zero_predictor_scores_the_noise_whatever_the_run_weighs_and_adds() -> None:
    """The expected square of the noise is 1: no min-SNR weight, offset, perturbation or draw of the autoencoder."""
    plain = _objective(_zero)
    laden = replace(plain, snr_gamma=0.5, noise_offset=3.0, input_perturbation=2.0, prior_loss_weight=9.0, seed=5)
    images = _images(one=64, other=64)
    measured, same = (
        ValidationLoss(objective, images, seed=1, num_images=128, batch_size=32).measure()
        for objective in (plain, laden)
    )
    assert measured == same
    assert measured["validation_loss"] == pytest.approx(1.0, abs=0.03)
    assert measured["validation_loss"] == pytest.approx(np.mean([measured[name] for name in BINS]), rel=1e-12)
    # what is drawn per range is drawn afresh
    assert len({measured[name] for name in BINS}) == 4


def test_an_error_at_high_noise_shows_in_the_upper_bins_alone() -> None:
    def wrong_from_500(noisy: Tensor, timesteps: Tensor, _: Tensor) -> Tensor:
        return _knowing(noisy, timesteps, "epsilon") + 0.5 * (timesteps >= 500).float().view(-1, 1, 1, 1)

    images = {"zeros": np.zeros((20, 3, 4, 4), dtype=np.float32)}
    measured = ValidationLoss(_objective(wrong_from_500), images, seed=1, num_images=20, batch_size=7).measure()
    assert [measured[name] for name in BINS] == pytest.approx([0, 0, 0.25, 0.25], abs=1e-6)
    assert measured["validation_loss"] == pytest.approx(0.125, abs=1e-6)


def test_every_image_is_judged_once_in_each_range_at_timesteps_that_depend_on_the_seed() -> None:
    def timesteps(seed: int, batch_size: int, num_bins: int = 4) -> list[int]:
        seen: list[int] = []

        def spy(noisy: Tensor, t: Tensor, _: Tensor) -> Tensor:
            seen.extend(t.tolist())
            return noisy

        loss = ValidationLoss(_objective(spy), _images(a=6), seed=seed, num_bins=num_bins, batch_size=batch_size)
        loss.measure()
        return seen

    seen = timesteps(1, 5)
    assert [t // 250 for t in seen] == [0, 1, 2, 3] * 6
    assert len(set(seen)) > 20
    assert seen == timesteps(1, 5) == timesteps(1, 24)
    assert seen != timesteps(2, 5)
    assert [t // 500 for t in timesteps(1, 5, num_bins=2)] == [0, 1] * 6


def test_ranges_are_named_by_their_first_and_last_timestep() -> None:
    loss = ValidationLoss(_objective(_zero), _images(a=2), seed=1, num_bins=3, batch_size=4)
    names = ["validation_loss", "validation_loss_t0_332", "validation_loss_t333_665", "validation_loss_t666_999"]
    assert list(loss.measure()) == names


# which images


@pytest.mark.parametrize(
    ("counts", "num_images", "taken"),
    [
        ({"a": 8}, 4, {"a": [1, 3, 5, 7]}),
        ({"a": 8, "b": 8}, 4, {"a": [2, 6], "b": [2, 6]}),
        ({"a": 1, "b": 9}, 4, {"a": [0], "b": [1, 4, 7]}),
        ({"a": 2, "b": 1}, 16, {"a": [0, 1], "b": [0]}),
        ({"a": 3, "b": 0, "c": 3}, 2, {"a": [1], "c": [1]}),
        ({"a": 3, "b": 3, "c": 3, "d": 3}, 2, {"b": [1], "d": [1]}),
        ({"a": 4, "b": 4, "c": 4}, 4, {"a": [2], "b": [1, 3], "c": [2]}),
    ],
)
def test_images_are_taken_evenly(counts: dict[str, int], num_images: int, taken: dict[str, list[int]]) -> None:
    space = _Pixels()
    images = _images(**counts)
    ValidationLoss(_objective(_zero, space), images, seed=1, num_images=num_images, num_bins=1, batch_size=3).measure()
    assert list(zip(space.captions, space.seen, strict=True)) == [(c, float(i)) for c in taken for i in taken[c]]


def test_no_image_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="held-out images: found none"):
        ValidationLoss(_objective(_zero), _images(a=0), seed=1, batch_size=2)


def test_a_caption_conditions_its_own_images() -> None:
    """A denoiser that answers with the caption's length is right for one of two captions."""
    images = {caption: np.zeros((4, 3, 4, 4), dtype=np.float32) for caption in ("a", "four")}

    def denoise(noisy: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        return _knowing(noisy, t, "epsilon") + (conditioning.view(-1, 1, 1, 1) - 1)

    measured = ValidationLoss(_objective(denoise), images, seed=1, num_images=8, batch_size=5).measure()
    assert measured["validation_loss"] == pytest.approx((0 + 9) / 2, rel=1e-5)


# a real model


@pytest.fixture
def tiny(tiny_base_dir: Path) -> tuple[NoiseObjective, tuple[nn.Module, ...], dict[str, np.ndarray]]:
    """Return an objective on a tiny Stable Diffusion with dropout in its U-Net, its modules, and images."""
    components = load_components(str(tiny_base_dir))
    unet = components.unet
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    objective = NoiseObjective(
        denoise=unet_denoiser(unet),
        space=LatentSpace(components.vae),
        conditioner=TextConditioner(components.tokenizer, components.text_encoder),
        alphas_cumprod=components.scheduler.alphas_cumprod,
        prediction_type=components.prediction_type,
        seed=0,
    )
    pixels = np.random.default_rng(3).uniform(-1, 1, (5, 3, components.resolution, components.resolution))
    images = {"a weave": pixels[:3].astype(np.float32), "a knit": pixels[3:].astype(np.float32)}
    return objective, (unet, components.text_encoder), images


def test_the_batch_size_does_not_count(
    tiny: tuple[NoiseObjective, tuple[nn.Module, ...], dict[str, np.ndarray]],
) -> None:
    objective, modules, images = tiny
    one, seven = (
        ValidationLoss(objective, images, seed=1, batch_size=size, modules=modules).measure() for size in (1, 7)
    )
    assert one.keys() == seven.keys()
    for name in one:
        assert one[name] == pytest.approx(seven[name], rel=1e-6)


def test_measuring_twice_gives_the_same_and_leaves_no_trace(
    tiny: tuple[NoiseObjective, tuple[nn.Module, ...], dict[str, np.ndarray]],
) -> None:
    objective, modules, images = tiny
    unet = modules[0].train()
    dropout = next(module for module in unet.modules() if isinstance(module, nn.Dropout))
    dropout.eval()  # a part in another mode than the whole
    modes = [module.training for whole in modules for module in whole.modules()]
    weights = [p.detach().clone() for p in unet.parameters()]
    random_states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    loss = ValidationLoss(objective, images, seed=1, batch_size=4, modules=modules)
    first = loss.measure()
    assert [module.training for whole in modules for module in whole.modules()] == modes
    assert not dropout.training
    assert torch.equal(random_states[0], torch.random.get_rng_state())
    assert np.array_equal(random_states[1], np.random.get_state()[1])
    assert all(p.grad is None for p in unet.parameters())
    assert all(torch.equal(p, before) for p, before in zip(unet.parameters(), weights, strict=True))
    torch.rand(3)
    unet.eval()
    assert loss.measure() == first
    # the negative controls: dropout and the weights would count
    unet.train()
    assert ValidationLoss(objective, images, seed=1, batch_size=4).measure() != first
    unet.eval()
    with torch.no_grad():
        next(unet.parameters()).add_(0.1)
    assert loss.measure() != first


def test_the_modes_come_back_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)).train()

    def fail(*_: Tensor) -> Tensor:
        assert not module[0].training
        raise ZeroDivisionError

    loss = ValidationLoss(_objective(fail), _images(a=1), seed=1, batch_size=1, modules=[module])
    with pytest.raises(ZeroDivisionError):
        loss.measure()
    assert all(inner.training for inner in module.modules())
