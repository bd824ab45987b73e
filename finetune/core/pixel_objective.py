"""What a model of pixels is judged by: the noise objective of every diffusion model, or the variational bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.core import draws
from finetune.core.method import Batch
from finetune.core.objective import Denoiser, NoiseObjective, add_noise, min_snr_weight, target
from pipelines.diffusion.bound import discretised_gaussian_log_likelihood, gaussian_kl
from pipelines.pixel_model import PixelModel

BOUND_WEIGHT = 0.001  # of the bound beside the simple loss (Nichol and Dhariwal 2021, eq. 16)
GREY_LEVELS = 256  # that the bound's last term tells apart


class PixelSpace:
    """Pictures in the channels and the range of a model: the deviation is 0."""

    def __init__(self, model: PixelModel) -> None:
        self._model = model

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._model.from_pixels(pixels)
        return mean, torch.zeros_like(mean)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps


class LabelConditioner:
    """Captions as labels (B,); the empty one, and every one for a model without classes, is "no label"."""

    def __init__(self, model: PixelModel, device: torch.device) -> None:
        labels = {caption: number for number, caption in enumerate(model.class_labels)}
        self._labels, self._no_label, self._device = labels, len(labels), device

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        numbers = [self._labels[caption] if caption and self._labels else self._no_label for caption in captions]
        return torch.tensor(numbers, device=self._device)


def network_output(model: PixelModel, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return what the U-Net makes of x_t (B, C, H, W): (B, C or 2 C, H, W), in float32 at least. labels: (B,)."""
    known = labels if model.class_labels else None
    output: Tensor = model.unet(x_t, t, known, return_dict=False)[0]
    return output.to(torch.promote_types(output.dtype, torch.float32))


def pixel_denoiser(model: PixelModel) -> Denoiser:
    """Return a model of pixels as a function of (noisy, timesteps, labels): its prediction, without a variance."""

    def denoise(noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        return network_output(model, noisy, timesteps, conditioning)[:, : model.channels]

    return denoise


def noise_objective(model: PixelModel, seed: int, snr_gamma: float | None, device: torch.device) -> NoiseObjective:
    """Return the squared error of what a model of pixels predicts."""
    return NoiseObjective(
        denoise=pixel_denoiser(model),
        space=PixelSpace(model),
        conditioner=LabelConditioner(model, device),
        alphas_cumprod=model.alphas_cumprod,
        prediction_type=model.prediction_type,
        seed=seed,
        snr_gamma=snr_gamma,
    )


@dataclass(frozen=True)
class BoundObjective:
    """The variational bound of a model of pixels, alone or as the small part of a hybrid, at one drawn timestep.

    simple: None is the bound alone, in bits per dimension: T times its term at t (Ho et al. 2020, eq. 5). Else the loss
    is the simple one plus BOUND_WEIGHT times the bound, whose gradient reaches the variance alone: the prediction of
    the mean is held fixed in it (Nichol and Dhariwal 2021, section 3.1). The same draws as in NoiseObjective.
    """

    model: PixelModel
    conditioner: LabelConditioner
    seed: int
    simple: NoiseObjective | None = None

    def losses(self, batch: Batch) -> Tensor:
        model, device = self.model, batch.pixels.device
        x0 = model.from_pixels(batch.pixels)
        noise = draws.normal(self.seed, "noise", batch.positions, tuple(x0.shape[1:])).to(device)
        t = draws.timesteps(self.seed, batch.positions, model.num_train_timesteps).to(device)
        alpha_bar = model.alphas_cumprod.to(device)[t]
        x_t = add_noise(x0, noise, alpha_bar)
        output = network_output(model, x_t, t, self.conditioner.encode(batch.captions))
        if self.simple is None:
            return model.num_train_timesteps * bound_terms(model, output, x0, x_t, t)
        value, raw_share = output.chunk(2, dim=1)
        error = value - target(x0, noise, alpha_bar, model.prediction_type)
        losses = error.square().mean((1, 2, 3))
        if self.simple.snr_gamma is not None:
            losses = losses * min_snr_weight(alpha_bar, self.simple.snr_gamma, model.prediction_type).float()
        held = torch.cat([value.detach(), raw_share], dim=1)
        return losses + BOUND_WEIGHT * model.num_train_timesteps * bound_terms(model, held, x0, x_t, t)


def bound_terms(model: PixelModel, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the term of the variational bound at t (B,), in bits per dimension, float32 (B,).

    The divergence of q(x_{t-1} | x_t, x_0) from the model's step (Ho et al. 2020, eqs. 5 to 7); at t = 0 minus the log
    probability of each pixel's grey level of 256 (eq. 13). output: of the network. A model that learns no variance has
    the smaller one, beta~_t, whose value at 1 stands for the one at 0 too.
    """
    said = model.interpret(output, x_t, t)
    x0_weight, xt_weight = model.posterior_weights(t)
    small = model.log_variance_bounds(t)[0].double()
    log_variance = small if said.log_variance is None else said.log_variance.double()
    error = x0_weight * (x0 - said.x0)
    at_image = -discretised_gaussian_log_likelihood(
        x0,
        x0_weight * said.x0 + xt_weight * x_t,
        torch.exp(0.5 * log_variance),
        GREY_LEVELS,
        low=-1.0 if model.normalized else 0.0,
    )
    nats = torch.where((t == 0).view(-1, 1, 1, 1), at_image, gaussian_kl(error, small.exp(), log_variance.exp()))
    return (nats.mean((1, 2, 3)) / math.log(2)).float()
