"""The Gaussian steps between two noise levels, as numbers: q(x_t | x_s), q(x_s | x_t, x_0) and the DDIM family.

t is the noisier level, s the cleaner one, which need not be t - 1: all that matters is alpha_bar at both. alpha_bar_s
is 1 where s is the image itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Variance = Literal["small", "large", "learned"]
VARIANCES: tuple[Variance, ...] = get_args(Variance)


@dataclass(frozen=True)
class Gaussian:
    """A normal law of x_s whose mean is x0_weight x_0 + xt_weight x_t and whose variance is the same everywhere."""

    x0_weight: float
    xt_weight: float
    variance: float

    def mean(self, x0: Tensor, x_t: Tensor) -> Tensor:
        return self.x0_weight * x0 + self.xt_weight * x_t


def step_beta(alpha_bar_t: float, alpha_bar_s: float) -> float:
    """Return the variance of q(x_t | x_s) = N(sqrt(1 - beta) x_s, beta) (Ho et al. 2020, eq. 2): beta_t over a step."""
    return 1 - alpha_bar_t / alpha_bar_s


def posterior(alpha_bar_t: float, alpha_bar_s: float) -> Gaussian:
    """Return q(x_s | x_t, x_0) (Ho et al. 2020, eqs. 6 and 7), its variance beta~_t; at the image it is x_0."""
    beta = step_beta(alpha_bar_t, alpha_bar_s)
    return Gaussian(
        x0_weight=math.sqrt(alpha_bar_s) * beta / (1 - alpha_bar_t),
        xt_weight=math.sqrt(1 - beta) * (1 - alpha_bar_s) / (1 - alpha_bar_t),
        variance=(1 - alpha_bar_s) / (1 - alpha_bar_t) * beta,
    )


def ddim(alpha_bar_t: float, alpha_bar_s: float, eta: float) -> Gaussian:
    """Return the step of the DDIM family (Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16).

    Its standard deviation is eta times that of `posterior`: 0 is deterministic, 1 is `posterior`. eta: 0 to 1. (Where
    notes write sigma^2 = eta beta~, their eta is the square of this one; 0 and 1 are the same.)
    """
    variance = eta**2 * posterior(alpha_bar_t, alpha_bar_s).variance
    # the noise in x_t, eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), is kept in part
    kept = math.sqrt(max(0.0, 1 - alpha_bar_s - variance) / (1 - alpha_bar_t))
    return Gaussian(math.sqrt(alpha_bar_s) - kept * math.sqrt(alpha_bar_t), kept, variance)


def fixed_variance(alpha_bar_t: float, alpha_bar_s: float, variance: Literal["small", "large"]) -> float:
    """Return the variance of a step: small is beta~_t, large is beta_t (Ho et al. 2020, section 3.2).

    They are what is best for data of one point and for data of unit variance. The last step adds no noise either way.
    """
    if alpha_bar_s == 1.0:
        return 0.0
    if variance == "large":
        return step_beta(alpha_bar_t, alpha_bar_s)
    return posterior(alpha_bar_t, alpha_bar_s).variance


def log_variance_bounds(alpha_bar_t: float, alpha_bar_s: float, small_at_image: float) -> tuple[float, float]:
    """Return log beta~_t and log beta_t, between which a learned variance lies (Nichol and Dhariwal 2021, eq. 15).

    small_at_image: what stands for beta~ at the image, where it is 0 and has no logarithm.
    """
    small = posterior(alpha_bar_t, alpha_bar_s).variance if alpha_bar_s < 1.0 else small_at_image
    return math.log(small), math.log(step_beta(alpha_bar_t, alpha_bar_s))
