"""Samplers, as functions of one shape: from x at a way's first level to x at its last, with a callback after each step.

A denoiser is any function (x_t, t) -> Prediction, of images or of points; what changes what it says (clipping,
guidance) is wrapped around it. Coefficients are computed in float64 and applied in the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import NonFiniteError, SettingsError
from pipelines.diffusion.noise import Noise
from pipelines.diffusion.posterior import Variance, ddim, fixed_variance, log_variance_bounds, posterior
from pipelines.diffusion.prediction import Denoiser, Prediction
from pipelines.diffusion.schedules import CLEAN, Steps


@dataclass(frozen=True)
class Step:
    """What a callback is told after a step: its number from 0, the level it came from, x at the level it went to, and
    the image that the denoiser saw in x before."""

    number: int
    level: int
    x: Tensor
    x0: Tensor


Callback = Callable[[Step], object]


def ancestral(
    denoise: Denoiser,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise,
    variance: Variance = "small",
    callback: Callback | None = None,
) -> Tensor:
    """Return samples of the reverse process (Ho et al. 2020, algorithm 2), over every timestep or strided.

    x: (B, ...) at the first level, pure noise at the last timestep. variance: beta~ (small), beta (large), or what the
    model has learnt, which for strided steps lies at the same share of the way between the step's own two (Nichol and
    Dhariwal 2021, sections 3.1 and 4). The number of a step is the number of its draw of noise.
    Raises SettingsError for a learned variance that the model does not say, NonFiniteError for samples that are not
    finite.
    """
    for number, (level, after) in enumerate(steps.pairs):
        said = denoise(x, times(level, x))
        alpha_bar_t, alpha_bar_s = steps.alpha_bar(level), steps.alpha_bar(after)
        mean = posterior(alpha_bar_t, alpha_bar_s).mean(said.x0, x)
        if after == CLEAN:
            x = mean
        elif variance == "learned":
            x = mean + learned_deviation(said, steps, level, after) * noise(number).to(x)
        else:
            x = mean + math.sqrt(fixed_variance(alpha_bar_t, alpha_bar_s, variance)) * noise(number).to(x)
        tell(callback, number, level, x, said)
    return finite(x)


def ddim_sampler(
    denoise: Denoiser,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """Return samples of the DDIM family (Song et al. 2021, arXiv:2010.02502, eq. 12).

    eta: 0 is deterministic and needs no noise, 1 equals `ancestral` with the small variance.
    Raises SettingsError for eta outside 0 to 1, NonFiniteError for samples that are not finite.
    """
    if not 0 <= eta <= 1:
        raise SettingsError("--eta", f"found {eta}, expected 0 (deterministic) to 1 (as ancestral sampling).")
    assert noise is not None or eta == 0, "with eta above 0 a step draws noise"
    for number, (level, after) in enumerate(steps.pairs):
        said = denoise(x, times(level, x))
        law = ddim(steps.alpha_bar(level), steps.alpha_bar(after), eta)
        x = law.mean(said.x0, x)
        if law.variance > 0:
            assert noise is not None, "a step with variance has noise"
            x = x + math.sqrt(law.variance) * noise(number).to(x)
        tell(callback, number, level, x, said)
    return finite(x)


def ddim_inversion(
    denoise: Denoiser,
    x: Tensor,
    steps: Steps,
    *,
    num_iterations: int = 1,
    callback: Callback | None = None,
) -> Tensor:
    """Return the x at the first level of a way from which deterministic DDIM gives x at its last level.

    Each step solves x_s = a x_t + b eps(x_t, t) for x_t by num_iterations of x_t <- (x_s - b eps(x_t, t)) / a, begun at
    x_s. One is the usual inversion, eps taken where the step begins (Song et al. 2021, section 4.3); more come nearer
    to the exact inverse where they converge (Pan et al. 2023, arXiv:2309.04907). The denoiser is not to clip: what is
    clipped cannot be inverted. NonFiniteError where the iteration diverges.
    """
    if num_iterations < 1:
        raise SettingsError("iterations of the inversion", f"found {num_iterations}, expected 1 or more.")
    for number, (level, below) in enumerate(reversed(steps.pairs)):
        alpha_bar_t, alpha_bar_s = steps.alpha_bar(level), steps.alpha_bar(below)
        a = math.sqrt(alpha_bar_s / alpha_bar_t)
        b = math.sqrt(1 - alpha_bar_s) - a * math.sqrt(1 - alpha_bar_t)
        guess = x
        for _ in range(num_iterations):
            said = denoise(guess, times(level, x))
            guess = (x - b * said.eps) / a
        x = guess
        tell(callback, number, level, x, said)
    return finite(x)


def learned_deviation(said: Prediction, steps: Steps, level: int, after: int) -> Tensor:
    """Return the standard deviation of a step to a level above the image, from the model's log variance at `level`.

    The model's log variance is that of the step from t to t - 1. Its share v of the way from log beta~ to log beta
    holds for a longer step too (Nichol and Dhariwal 2021, eq. 15).
    """
    if said.log_variance is None:
        raise SettingsError(
            "--variance", "found learned, but this model was trained without a learned variance. Use small or large."
        )
    first = posterior(steps.alpha_bar(1), steps.alpha_bar(0)).variance
    low, high = log_variance_bounds(steps.alpha_bar(level), steps.alpha_bar(level - 1), first)
    share = (said.log_variance - low) / (high - low)
    wide_low, wide_high = log_variance_bounds(steps.alpha_bar(level), steps.alpha_bar(after), first)
    return (0.5 * (wide_low + share * (wide_high - wide_low))).exp()


def times(level: int, x: Tensor) -> Tensor:
    """Return the timestep of a level for each sample of x, (B,) int64."""
    return torch.full((len(x),), level, dtype=torch.int64, device=x.device)


def tell(callback: Callback | None, number: int, level: int, x: Tensor, said: Prediction) -> None:
    """Call a callback, where there is one, with a step that was made."""
    if callback is not None:
        callback(Step(number, level, x, said.x0))


def finite(x: Tensor) -> Tensor:
    """Return x; NonFiniteError where a number in it is not finite."""
    if not torch.isfinite(x).all():
        lost = [str(row) for row in range(len(x)) if not torch.isfinite(x[row]).all()]
        raise NonFiniteError(
            "sampling",
            f"{len(lost)} of {len(x)} samples are not finite (rows {', '.join(lost[:8])}). Sample with clipping, with "
            "more steps, or with a model that was trained longer.",
        )
    return x
