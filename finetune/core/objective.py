"""What a batch is judged by: the noise objective of diffusion models, and the autoencoder's.

The arithmetic stands in pure functions of (x0, noise, t); the classes put it together with the parts of a model.
Prediction type, min-SNR weight, offset noise and prior weight are applied here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from finetune.core import draws
from finetune.core.method import Batch
from pipelines.components import PredictionType


def _roots(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(alpha_bar) and sqrt(1 - alpha_bar) per sample, taken in the precision of alpha_bar."""
    per_sample = alpha_bar.view(-1, *[1] * (like.dim() - 1))
    return per_sample.sqrt().to(like.dtype), (1 - per_sample).sqrt().to(like.dtype)


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, eq. 4). alpha_bar: (B,)."""
    signal, sigma = _roots(alpha_bar, x0)
    return signal * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: PredictionType) -> Tensor:
    """Return what the denoiser is to predict: the noise, v (Salimans and Ho 2022, appendix D), or x0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    signal, sigma = _roots(alpha_bar, x0)
    return signal * noise - sigma * x0


def snr(alpha_bar: Tensor) -> Tensor:
    """Return the signal-to-noise ratio alpha_bar / (1 - alpha_bar) (Kingma et al. 2021, eq. 2)."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Return the min-SNR-gamma weight of each sample's loss (Hang et al. 2023, section 3.4).

    min(snr, gamma) / snr for epsilon, min(snr, gamma) / (snr + 1) for v, min(snr, gamma) for x0: the same weight on the
    error of x0, whatever is predicted.
    """
    ratio = snr(alpha_bar)
    clamped = ratio.clamp(max=gamma)
    if prediction_type == "epsilon":
        return clamped / ratio
    return clamped / (ratio + 1) if prediction_type == "v_prediction" else clamped


class Denoiser(Protocol):
    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor: ...


class Space(Protocol):
    """Where the denoiser works. `moments` gives mean and standard deviation of each image's place there."""

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor: ...


class Conditioner(Protocol):
    def encode(self, captions: tuple[str, ...]) -> Tensor: ...


def unet_denoiser(unet: nn.Module) -> Denoiser:
    """Return a U-Net of diffusers as a function of (noisy, timesteps, conditioning)."""

    def denoise(noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        prediction: Tensor = unet(noisy, timesteps, encoder_hidden_states=conditioning, return_dict=False)[0]
        return prediction

    return denoise


@dataclass(frozen=True)
class NoiseObjective:
    """Mean squared error of the denoiser's prediction, per sample, at one drawn timestep.

    alphas_cumprod: (T,) of the noise schedule, float32 or float64. noise_offset: standard deviation of a constant added
    to each channel's noise (Guttenberg 2023). input_perturbation: standard deviation of a further noise, per pixel,
    that the input carries and the target does not (Ning et al. 2023, arXiv:2301.11706, algorithm 1). snr_gamma: min-SNR
    weight, none where None. high_noise_share: see `draws.timesteps`. prior_loss_weight: weight of the prior's images
    (Ruiz et al. 2023, arXiv:2208.12242, equation 2).
    """

    denoise: Denoiser
    space: Space
    conditioner: Conditioner
    alphas_cumprod: Tensor
    prediction_type: PredictionType
    seed: int
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    snr_gamma: float | None = None
    high_noise_share: float = 0.0
    prior_loss_weight: float = 1.0

    def losses(self, batch: Batch) -> Tensor:
        device = batch.pixels.device
        mean, std = self.space.moments(batch.pixels)
        shape = tuple(mean.shape[1:])
        eps = draws.normal(self.seed, "vae", batch.positions, shape).to(device)
        noise = draws.normal(self.seed, "noise", batch.positions, shape)
        if self.noise_offset:
            noise = noise + self.noise_offset * draws.normal(
                self.seed, "noise-offset", batch.positions, (shape[0], *[1] * (len(shape) - 1))
            )
        perturbed = noise
        if self.input_perturbation:
            perturbed = noise + self.input_perturbation * draws.normal(
                self.seed, "input-perturbation", batch.positions, shape
            )
        t = draws.timesteps(self.seed, batch.positions, len(self.alphas_cumprod), self.high_noise_share).to(device)
        losses = noise_losses(
            self.denoise,
            x0=self.space.sample(mean, std, eps),
            noise=noise.to(device),
            perturbed=perturbed.to(device),
            timesteps=t,
            conditioning=self.conditioner.encode(batch.captions),
            alphas_cumprod=self.alphas_cumprod.to(device),
            prediction_type=self.prediction_type,
            snr_gamma=self.snr_gamma,
        )
        return torch.where(batch.is_prior.to(device), self.prior_loss_weight * losses, losses)


def noise_losses(
    denoise: Denoiser,
    *,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    conditioning: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: PredictionType,
    snr_gamma: float | None = None,
    perturbed: Tensor | None = None,
) -> Tensor:
    """Return the loss of each sample, (B,) in float32 or what is higher: a pure function of (x0, noise, t).

    x0, noise: (B, C, h, w). timesteps: (B,). conditioning: (B, tokens, width). perturbed: the noise that the input
    carries, where it is not the noise to predict.
    """
    alpha_bar = alphas_cumprod[timesteps]
    noisy = add_noise(x0, noise if perturbed is None else perturbed, alpha_bar)
    prediction = denoise(noisy, timesteps, conditioning)
    error = _not_lower(prediction) - _not_lower(target(x0, noise, alpha_bar, prediction_type))
    losses = error.square().mean(dim=tuple(range(1, error.dim())))
    if snr_gamma is None:
        return losses
    return losses * min_snr_weight(alpha_bar, snr_gamma, prediction_type).to(losses.dtype)


def _not_lower(values: Tensor) -> Tensor:
    """Return the values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class ReconstructionObjective:
    """Absolute plus squared error of the reconstruction, plus kl_weight times the mean KL divergence per latent number.

    The divergence of the encoder's normal law from the standard one: Kingma and Welling 2013, appendix B.
    """

    vae: nn.Module
    kl_weight: float
    seed: int

    def losses(self, batch: Batch) -> Tensor:
        law = self.vae.encode(batch.pixels).latent_dist  # type: ignore[operator]
        eps = draws.normal(self.seed, "vae", batch.positions, tuple(law.mean.shape[1:])).to(batch.pixels.device)
        reconstruction = self.vae.decode(law.mean + law.std * eps).sample  # type: ignore[operator]
        error = (reconstruction - batch.pixels).float()
        kl = 0.5 * (law.mean.square() + law.var - 1 - law.logvar).float()
        every = (1, 2, 3)
        return error.abs().mean(every) + error.square().mean(every) + self.kl_weight * kl.mean(every)


@dataclass(frozen=True)
class ContrastObjective:
    """How well each caption finds its own picture among the batch's, and each picture its caption.

    Symmetric cross-entropy over cosine similarities (Radford et al. 2021, figure 3), text read as the mean of its token
    outputs, so that every token a denoiser attends to has learnt something of the whole caption. Equal captions in
    a batch are not held against each other.
    """

    tower: nn.Module
    space: Space
    conditioner: Conditioner

    def losses(self, batch: Batch) -> Tensor:
        mean, std = self.space.moments(batch.pixels)
        x0 = self.space.sample(mean, std, torch.zeros_like(mean))
        pictures, captions, scale = self.tower(x0, self.conditioner.encode(batch.captions))
        similarity = scale * captions @ pictures.T
        same = torch.tensor([[a == b for b in batch.captions] for a in batch.captions], device=similarity.device)
        similarity = similarity.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -1e4)
        own = torch.arange(len(same), device=same.device)
        cross_entropy = nn.functional.cross_entropy
        rows = cross_entropy(similarity, own, reduction="none")
        return (rows + cross_entropy(similarity.T, own, reduction="none")) / 2
