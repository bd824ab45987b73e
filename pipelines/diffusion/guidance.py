"""Guidance: denoisers that lean towards a class, for every sampler alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.diffusion.prediction import Denoiser, Prediction, from_eps, per_sample

Classifier = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> logits (B, classes)."""


def classifier_free(
    conditional: Denoiser, unconditional: Denoiser, alphas_cumprod: Tensor, guidance_scale: float
) -> Denoiser:
    """Return a denoiser with noise eps_u + guidance_scale (eps_c - eps_u).

    Ho and Salimans 2022, arXiv:2207.12598, equation 6, whose w is guidance_scale - 1. guidance_scale: 0 is the
    unconditional denoiser and 1 the conditional one, themselves. A learned variance is the conditional one's.
    """
    if guidance_scale == 1:
        return conditional
    if guidance_scale == 0:
        return unconditional

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        with_label, without = conditional(x_t, t), unconditional(x_t, t)
        eps = without.eps + guidance_scale * (with_label.eps - without.eps)
        return from_eps(eps, x_t, alphas_cumprod[t.cpu()], with_label.log_variance)

    return denoise


def classifier_guided(
    denoise: Denoiser, classifier: Classifier, labels: Tensor, alphas_cumprod: Tensor, scale: float
) -> Denoiser:
    """Return a denoiser whose score has scale times the gradient of log p(label | x_t) added.

    Dhariwal and Nichol 2021, arXiv:2105.05233, algorithm 2: eps - sqrt(1 - alpha_bar) scale grad log p. The classifier
    must know noisy images. labels: (B,) class of each image. 0 is the denoiser itself.
    """
    if scale == 0:
        return denoise

    def guided(x_t: Tensor, t: Tensor) -> Prediction:
        said = denoise(x_t, t)
        alpha_bar = alphas_cumprod[t.cpu()]
        eps = said.eps - scale * per_sample((1 - alpha_bar).sqrt(), x_t) * label_gradient(classifier, x_t, t, labels)
        return from_eps(eps, x_t, alpha_bar, said.log_variance)

    return guided


def label_gradient(classifier: Classifier, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of log p(label | x_t) over x_t, shaped as x_t."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_(True)
        chosen = classifier(x, t).log_softmax(-1).gather(1, labels[:, None])
        return torch.autograd.grad(chosen.sum(), x)[0]
