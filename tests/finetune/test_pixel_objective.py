"""Losses of models of pixels against closed forms and hand formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from data.dataset import Sample
from finetune.core import draws
from finetune.core.method import Batch
from finetune.core.objective import add_noise, target
from finetune.core.pixel_objective import (
    BOUND_WEIGHT,
    BoundObjective,
    LabelConditioner,
    PixelSpace,
    bound_terms,
    noise_objective,
)
from pipelines.diffusion.schedules import alphas_cumprod
from pipelines.pixel_model import PixelModel

CPU = torch.device("cpu")
TYPES = ("epsilon", "sample", "v_prediction")
T = 50


class Fixed(nn.Module):
    """Gives the same output whatever it is asked, as a parameter; notes the labels it was told."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)
        self.told: list[Tensor | None] = []

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        assert len(x_t) == len(t)
        self.told.append(labels)
        return (self.output.expand(len(x_t), -1, -1, -1),)


def model(output: Tensor, **more: Any) -> PixelModel:
    values: dict[str, Any] = {
        "alphas_cumprod": alphas_cumprod("cosine", T),
        "prediction_type": "epsilon",
        "learned_variance": False,
        "channels": 1,
        "size_px": 4,
        **more,
    }
    return PixelModel(unet=Fixed(output), **values)


def batch(num: int = 3, first: int = 0) -> Batch:
    pixels = np.random.default_rng(8).uniform(-1, 1, (num, 1, 4, 4)).astype(np.float32).repeat(3, axis=1)
    return Batch.collate([[(first + k, Sample(pixels[k], "", False, ""))] for k in range(num)])


def drawn(one: Batch, seed: int, pixel_model: PixelModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x0, noise, t and alpha_bar as an objective draws them."""
    t = draws.timesteps(seed, one.positions, pixel_model.num_train_timesteps)
    x0 = pixel_model.from_pixels(one.pixels)
    return x0, draws.normal(seed, "noise", one.positions, (1, 4, 4)), t, pixel_model.alphas_cumprod[t]


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("learned", [False, True])
def test_a_perfect_predictor_has_no_simple_loss_and_no_divergence(prediction_type: Any, learned: bool) -> None:
    one = batch(1, first=5)
    blank = model(torch.zeros(1), prediction_type=prediction_type)
    x0, noise, t, alpha_bar = drawn(one, 3, blank)
    assert int(t) > 0
    perfect = target(x0, noise, alpha_bar, prediction_type)
    assert noise_objective(_with(blank, perfect), 3, None, CPU).losses(one).tolist() == [0]
    x_t = add_noise(x0, noise, alpha_bar)
    share = torch.full_like(perfect, -1.0)  # the variance of q(x_{t-1} | x_t, x_0) itself
    output = torch.cat([perfect, share], dim=1) if learned else perfect
    terms = bound_terms(replace(blank, learned_variance=learned), output, x0, x_t, t)
    assert float(terms) == pytest.approx(0, abs=1e-4)


def _with(pixel_model: PixelModel, output: Tensor) -> PixelModel:
    return replace(pixel_model, unet=Fixed(output))


@pytest.mark.parametrize("t_number", [1, 2, 17, T - 1])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_term_of_the_bound_is_the_divergence_of_two_gaussians_by_hand(t_number: int, prediction_type: Any) -> None:
    one = batch(2)
    trained = model(torch.zeros(1), prediction_type=prediction_type, learned_variance=True)
    x0 = trained.from_pixels(one.pixels).double()
    generator = torch.Generator().manual_seed(1)
    noise, value = (torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    raw = torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    t = torch.full((2,), t_number)
    a, before = float(trained.alphas_cumprod[t_number]), float(trained.alphas_cumprod[t_number - 1])
    x_t = math.sqrt(a) * x0 + math.sqrt(1 - a) * noise
    said = {
        "epsilon": (x_t - math.sqrt(1 - a) * value) / math.sqrt(a),
        "sample": value,
        "v_prediction": math.sqrt(a) * x_t - math.sqrt(1 - a) * value,
    }[prediction_type]
    beta = 1 - a / before
    # q(x_{t-1} | x_t, x_0) by Bayes: precisions add
    precision = 1 / (1 - before) + (1 - beta) / beta
    small = 1 / precision

    def mean(image: Tensor) -> Tensor:
        return small * (math.sqrt(before) * image / (1 - before) + math.sqrt(1 - beta) * x_t / beta)

    share = (raw + 1) / 2
    variance = torch.exp(share * math.log(beta) + (1 - share) * math.log(small))
    ratio = small / variance
    nats = 0.5 * (ratio - 1 - ratio.log() + (mean(x0) - mean(said)).square() / variance)
    expected = nats.mean((1, 2, 3)) / math.log(2)
    output = torch.cat([value, raw], dim=1).float()
    found = bound_terms(trained, output, x0.float(), x_t.float(), t)
    # float32 x0 said by epsilon at pure noise is a difference of large numbers
    assert found.tolist() == pytest.approx(expected.tolist(), rel=2e-2 if t_number == T - 1 else 1e-3)
    fixed = bound_terms(replace(trained, learned_variance=False), value.float(), x0.float(), x_t.float(), t)
    by_hand = ((mean(x0) - mean(said)).square() / (2 * small)).mean((1, 2, 3)) / math.log(2)
    assert fixed.tolist() == pytest.approx(by_hand.tolist(), rel=2e-2 if t_number == T - 1 else 1e-3)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_last_term_is_the_mass_of_a_grey_level(normalized: bool) -> None:
    levels = np.array([0, 1, 127, 254, 255])
    low, step = (-1.0, 2 / 255) if normalized else (0.0, 1 / 255)
    x0 = torch.tensor(low + step * levels).float().view(5, 1, 1, 1).expand(5, 1, 4, 4)
    trained = model(torch.zeros(1), prediction_type="sample", learned_variance=True, normalized=normalized)
    mean = x0 + 0.01
    raw = torch.full_like(x0, 0.5)
    t = torch.zeros(5, dtype=torch.long)
    found = bound_terms(trained, torch.cat([mean, raw], 1), x0, x0, t)
    low_log, high_log = (float(bound[0]) for bound in trained.log_variance_bounds(t))
    deviation = math.exp(0.5 * (0.25 * low_log + 0.75 * high_log))
    edges = low + step * (np.arange(256)[:-1] + 0.5)
    cumulated = np.concatenate(
        [np.zeros((5, 1)), norm.cdf((edges - mean[:, 0, 0, :1].numpy()) / deviation), np.ones((5, 1))], 1
    )
    mass = np.diff(cumulated, axis=1)[np.arange(5), levels]
    assert found.tolist() == pytest.approx((-np.log2(mass)).tolist(), rel=1e-3)


def test_the_log_variances_are_those_between_which_the_network_chooses() -> None:
    trained = model(torch.zeros(1), learned_variance=True)
    t = torch.tensor([0, 1, 30])
    a = trained.alphas_cumprod.tolist()
    low, high = trained.log_variance_bounds(t)
    betas = [1 - a[0], 1 - a[1] / a[0], 1 - a[30] / a[29]]
    assert high.flatten().tolist() == pytest.approx([math.log(beta) for beta in betas], rel=1e-5)
    small = [(1 - a[k - 1]) / (1 - a[k]) * (1 - a[k] / a[k - 1]) for k in (1, 1, 30)]
    assert low.flatten().tolist() == pytest.approx([math.log(one) for one in small], rel=1e-5)
    x_t = torch.zeros(3, 1, 4, 4)
    for raw, bound in ((-1.0, low), (1.0, high)):
        said = trained.interpret(torch.cat([x_t, torch.full_like(x_t, raw)], 1), x_t, t)
        assert said.log_variance is not None
        torch.testing.assert_close(said.log_variance, bound.expand_as(x_t))


def test_the_bound_is_t_times_the_term_that_was_drawn() -> None:
    one = batch(4)
    output = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2)) / 3
    trained = model(output, learned_variance=True, class_labels=("a", "b"))
    x0, noise, t, alpha_bar = drawn(one, 6, trained)
    x_t = add_noise(x0, noise, alpha_bar)
    expected = T * bound_terms(trained, output.expand(4, -1, -1, -1), x0, x_t, t)
    objective = BoundObjective(trained, LabelConditioner(trained, CPU), 6)
    assert torch.equal(objective.losses(one), expected)


def _hybrid(output: Tensor, snr_gamma: float | None = None) -> tuple[BoundObjective, PixelModel]:
    trained = model(output, learned_variance=True)
    simple = noise_objective(trained, 6, snr_gamma, CPU)
    return BoundObjective(trained, LabelConditioner(trained, CPU), 6, simple), trained


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_the_hybrid_is_the_simple_loss_and_a_thousandth_of_the_bound(snr_gamma: float | None) -> None:
    one = batch(4)
    objective, trained = _hybrid(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2)), snr_gamma)
    assert objective.simple is not None
    bound = replace(objective, simple=None).losses(one)
    expected = objective.simple.losses(one) + BOUND_WEIGHT * bound
    torch.testing.assert_close(objective.losses(one), expected)
    assert trained.num_train_timesteps == T


def test_in_the_hybrid_the_bound_leaves_no_gradient_on_the_mean_and_one_on_the_variance() -> None:
    objective, trained = _hybrid(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2)))
    assert objective.simple is not None
    output = trained.unet.output
    assert isinstance(output, nn.Parameter)

    def gradient(losses: Tensor) -> Tensor:
        output.grad = None
        losses.sum().backward()
        assert output.grad is not None
        return output.grad.clone()

    one = batch(4)
    hybrid, simple = gradient(objective.losses(one)), gradient(objective.simple.losses(one))
    bound = gradient(replace(objective, simple=None).losses(one))
    assert bound[:, 0].abs().max() > 0  # alone it would reach the mean
    torch.testing.assert_close(hybrid[:, 0], simple[:, 0])
    torch.testing.assert_close(hybrid[:, 1], BOUND_WEIGHT * bound[:, 1])
    assert hybrid[:, 1].abs().min() > 0
    assert simple[:, 1].abs().max() == 0


def test_the_gradient_of_the_bound_is_finite_at_black_and_white_pixels_of_the_last_step() -> None:
    x0 = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    trained = model(torch.zeros(1), learned_variance=True)
    output = torch.zeros(2, 2, 4, 4, requires_grad=True)
    bound_terms(trained, output, x0, x0 + 0.02, torch.zeros(2, dtype=torch.long)).sum().backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    assert output.grad.abs().max() > 0


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_the_error_of_the_picture_the_same_whatever_is_predicted(prediction_type: Any) -> None:
    """min(snr, gamma) times the squared error of x0 (Hang et al. 2023)."""
    one, gamma = batch(5), 5.0
    value = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    trained = model(value, prediction_type=prediction_type)
    x0, noise, t, alpha_bar = drawn(one, 7, trained)
    said = trained.predict(add_noise(x0, noise, alpha_bar), t)
    ratio = alpha_bar / (1 - alpha_bar)
    expected = ratio.clamp(max=gamma) * (said.x0.double() - x0).square().mean((1, 2, 3))
    found = noise_objective(trained, 7, gamma, CPU).losses(one)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_noise_and_picture_that_a_model_says_explain_what_it_saw(prediction_type: Any) -> None:
    trained = model(
        torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(9)), prediction_type=prediction_type
    )
    x_t = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(10))
    t = torch.tensor([0, 20, T - 2])
    said = trained.predict(x_t, t)
    torch.testing.assert_close(add_noise(said.x0, said.eps, trained.alphas_cumprod[t]), x_t, rtol=1e-4, atol=1e-4)


def test_labels_are_told_by_caption_and_left_out_where_the_caption_is() -> None:
    trained = model(torch.zeros(1, 1, 4, 4), class_labels=("sf_dry sf_warp", "sf_dry sf_weft"))
    one = replace(batch(3), captions=("sf_dry sf_weft", "", "sf_dry sf_warp"))
    noise_objective(trained, 0, None, CPU).losses(one)
    network = trained.unet
    assert isinstance(network, Fixed)
    assert network.told[-1] is not None
    assert network.told[-1].tolist() == [1, 2, 0]
    trained.predict(torch.zeros(2, 1, 4, 4), torch.tensor([1, 2]))
    assert network.told[-1] is not None
    assert network.told[-1].tolist() == [2, 2]


def test_a_model_without_classes_is_told_no_label() -> None:
    trained = model(torch.zeros(1, 1, 4, 4))
    noise_objective(trained, 0, None, CPU).losses(replace(batch(2), captions=("a", "b")))
    assert isinstance(trained.unet, Fixed)
    assert trained.unet.told == [None]


def test_slices_are_taken_bit_for_bit_and_colours_as_luminance() -> None:
    grey = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1) * 2 - 1
    colours = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    one = model(torch.zeros(1))
    found = one.from_pixels(torch.cat([grey, colours]))
    assert torch.equal(found[0], grey[0, :1])
    red, green, blue = colours[0]
    torch.testing.assert_close(found[1, 0], 0.299 * red + 0.587 * green + 0.114 * blue)
    assert torch.equal(replace(one, channels=3).from_pixels(colours), colours)


def test_without_normalisation_pixels_stay_between_0_and_1() -> None:
    pixels = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    raw = model(torch.zeros(1), normalized=False)
    mean, std = PixelSpace(raw).moments(pixels)
    assert mean[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0]
    assert not std.any()
    assert raw.to_unit(mean)[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0]
    assert model(torch.zeros(1)).to_unit(pixels)[:, 0, 0, 0].tolist() == [0.0, 0.5, 1.0]
