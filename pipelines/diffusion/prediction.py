"""What a denoiser says of a noisy image, in the three forms that say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps.

    eps, x0: shaped as x_t, and consistent with it. log_variance: of the step from t to t - 1, shaped as x_t, for
    models that learn it.
    """

    eps: Tensor
    x0: Tensor
    log_variance: Tensor | None = None


Denoiser = Callable[[Tensor, Tensor], Prediction]
"""(x_t (B, ...), t (B,) int64) -> Prediction."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return one number for each sample, (B,), shaped to multiply `like` (B, ...), in its dtype and on its device."""
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))


def from_eps(eps: Tensor, x_t: Tensor, alpha_bar: Tensor, log_variance: Tensor | None = None) -> Prediction:
    """Return the prediction of a model that says the noise (Ho et al. 2020, eq. 15). alpha_bar: (B,) in (0, 1)."""
    signal, noise = _scales(alpha_bar, x_t)
    return Prediction(eps, (x_t - noise * eps) / signal, log_variance)


def from_x0(x0: Tensor, x_t: Tensor, alpha_bar: Tensor, log_variance: Tensor | None = None) -> Prediction:
    """Return the prediction of a model that says the image. alpha_bar: (B,) in (0, 1)."""
    signal, noise = _scales(alpha_bar, x_t)
    return Prediction((x_t - signal * x0) / noise, x0, log_variance)


def from_v(v: Tensor, x_t: Tensor, alpha_bar: Tensor, log_variance: Tensor | None = None) -> Prediction:
    """Return the prediction of a model that says v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0.

    Salimans and Ho 2022, arXiv:2202.00512, appendix D. alpha_bar: (B,) in (0, 1).
    """
    signal, noise = _scales(alpha_bar, x_t)
    return Prediction(signal * v + noise * x_t, signal * x_t - noise * v, log_variance)


# by what a network says, in diffusers' names
READINGS = {"epsilon": from_eps, "sample": from_x0, "v_prediction": from_v}


def clipped(denoise: Denoiser, alphas_cumprod: Tensor, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Return a denoiser whose image never leaves [low, high]; the noise is what then explains x_t.

    The static clipping of Ho et al. 2020 ("thresholding" in Saharia et al. 2022, section 2.3).
    """

    def denoise_clipped(x_t: Tensor, t: Tensor) -> Prediction:
        said = denoise(x_t, t)
        return from_x0(said.x0.clamp(low, high), x_t, alphas_cumprod[t.cpu()], said.log_variance)

    return denoise_clipped


def _scales(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(alpha_bar) and sqrt(1 - alpha_bar), rounded once, after the root."""
    exact = alpha_bar.to(torch.float64)
    return per_sample(exact.sqrt(), like), per_sample((1 - exact).sqrt(), like)
