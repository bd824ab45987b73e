"""The variational bound on the bits that an image costs, term by term, and the rate and distortion along the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion.noise import Noise
from pipelines.diffusion.posterior import Variance, fixed_variance, posterior
from pipelines.diffusion.prediction import Denoiser, Prediction
from pipelines.diffusion.samplers import learned_deviation, times
from pipelines.diffusion.schedules import CLEAN, Steps


@dataclass(frozen=True)
class Bound:
    """The terms of the bound, in bits for each number of an image (bits per dimension), float64.

    levels: (S,) the level that each step comes from. prior: (B,) L_T. terms: (S, B), L_{t-1} of each step from the
    noisiest on, the last one being the decoder's L_0. squared_errors: (S, B), mean over an image of (x0 - the image
    that the denoiser sees in x_t)^2, in the model's range.
    """

    levels: tuple[int, ...]
    prior: Tensor
    terms: Tensor
    squared_errors: Tensor

    @property
    def total(self) -> Tensor:
        """The bound (B,): an image's bits per dimension are at most this."""
        return self.prior + self.terms.sum(0)

    @property
    def rate(self) -> Tensor:
        """What a receiver has been sent when it holds x_t, (S, B): L_T and the terms of the steps down to t.

        Ho et al. 2020, section 4.3.
        """
        return self.prior + self.terms.cumsum(0) - self.terms


def variational_bound(
    denoise: Denoiser,
    x0: Tensor,
    steps: Steps,
    *,
    noise: Noise,
    variance: Variance = "small",
    num_values: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    progress: Callable[[int], object] | None = None,
) -> Bound:
    """Return the variational bound of images under the process of these steps (Ho et al. 2020, eqs. 5, 8 and 13).

    x0: (B, ...) on the grid of num_values values from low to high (`quantised`). steps: to CLEAN, two or more; fewer
    than the timesteps of training give the bound of that shorter process, which is a bound too. noise: one draw for
    each step. variance: of the reverse steps; as beta~ is 0 at the image, the decoder has that of the step before.
    Raises SettingsError for fewer than two steps or values.
    """
    assert steps.levels[-1] == CLEAN, "the bound ends at the image"
    problems = []
    if len(steps) < 2:
        problems.append(f"number of steps: found {len(steps)}, expected 2 or more.")
    if num_values < 2:
        problems.append(f"number of grey values: found {num_values}, expected 2 or more.")
    if problems:
        raise SettingsError("variational bound", *problems)
    terms, errors = [], []
    exact = x0.double()
    for number, (level, after) in enumerate(steps.pairs):
        alpha_bar = steps.alpha_bar(level)
        x_t = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * noise(number).to(x0)
        said = denoise(x_t, times(level, x0))
        deviation = _deviation(said, steps, level, after, variance)
        image = said.x0.double()
        if after == CLEAN:
            nats = -discretised_gaussian_log_likelihood(exact, image, deviation, num_values, low, high)
        else:
            law = posterior(alpha_bar, steps.alpha_bar(after))
            nats = gaussian_kl(law.x0_weight * (exact - image), _number(law.variance), deviation**2)
        terms.append(_bits(nats))
        errors.append(_mean((exact - image).square()))
        if progress is not None:
            progress(1)
    return Bound(
        steps.levels[:-1], prior_bits(exact, steps.alpha_bar(steps.levels[0])), *map(torch.stack, (terms, errors))
    )


def prior_bits(x0: Tensor, alpha_bar: float) -> Tensor:
    """Return L_T (B,) in bits per dimension: the divergence of q(x_T | x_0) from pure noise."""
    return _bits(gaussian_kl(math.sqrt(alpha_bar) * x0.double(), _number(1 - alpha_bar), _number(1.0)))


def gaussian_kl(difference: Tensor, variance: Tensor, other: Tensor) -> Tensor:
    """Return KL(N(m, variance) || N(m', other)) in nats, per number. difference: m - m'."""
    ratio = variance / other
    return 0.5 * (ratio - 1 - ratio.log() + difference.square() / other)


def discretised_gaussian_log_likelihood(
    x: Tensor, mean: Tensor, deviation: Tensor, num_values: int, low: float = -1.0, high: float = 1.0
) -> Tensor:
    """Return the log of the mass of a normal law in the bin of each number, nats, float64 (Ho et al. 2020, eq. 13).

    x: on a grid of num_values values from low to high; bins reach half way to the neighbours, the outer to infinity.
    """
    half = (high - low) / (num_values - 1) / 2
    distance = x.double() - mean.double()
    upper, lower = (distance + half) / deviation, (distance - half) / deviation
    upper = torch.where(x > high - half, torch.inf, upper)
    lower = torch.where(x < low + half, -torch.inf, lower)
    # in the right tail both cumulated masses round to 1, so its mirror image is computed
    mirrored = lower > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    larger, smaller = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return larger + torch.log(-torch.expm1(smaller - larger))


def quantised(x0: Tensor, num_values: int = 256, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Return x0, clipped, on the grid of num_values values from low to high."""
    scale = (num_values - 1) / (high - low)
    return ((x0.double().clamp(low, high) - low) * scale).round().div(scale).add(low).to(x0.dtype)


def _deviation(said: Prediction, steps: Steps, level: int, after: int, variance: Variance) -> Tensor:
    if variance == "learned":
        return learned_deviation(said, steps, level, after).double()
    if after == CLEAN and variance == "small":
        level, after = steps.pairs[-2]
    if after == CLEAN:
        return _number(1 - steps.alpha_bar(level)).sqrt()
    return _number(fixed_variance(steps.alpha_bar(level), steps.alpha_bar(after), variance)).sqrt()


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _bits(nats: Tensor) -> Tensor:
    return _mean(nats) / math.log(2)


def _mean(values: Tensor) -> Tensor:
    return values.mean(dim=tuple(range(1, values.dim())))
