"""Laws of points in the plane, with the exact denoiser and score where there are any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data.randomness import generator
from pipelines.diffusion.prediction import Denoiser, Prediction, from_x0


class Law(Protocol):
    """A law of points."""

    def sample(self, num_points: int, seed: int) -> Tensor:
        """Return points (num_points, D), float64."""
        ...


class GaussianMixture:
    """A mixture of normal laws, whose noised law, score and best denoiser are known in closed form.

    weights: (K,), positive, of sum 1. means: (K, D). covariances: (K, D, D), symmetric, not negative. float64.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = (each.double() for each in (weights, means, covariances))
        assert abs(float(self.weights.sum()) - 1) < 1e-9, "weights of a mixture have the sum 1"
        # in the axes of each component noise of any amount leaves the coordinates independent
        self._variances, self._axes = torch.linalg.eigh(self.covariances)
        assert float(self._variances.min()) >= -1e-9, "a covariance is not negative"
        self._variances = self._variances.clamp(min=0)

    def sample(self, num_points: int, seed: int) -> Tensor:
        """Return points (num_points, D), float64."""
        rng = generator(seed, "mixture", num_points)
        chosen = torch.from_numpy(rng.choice(len(self.weights), num_points, p=self.weights.numpy()))
        normal = torch.from_numpy(rng.standard_normal((num_points, self.means.shape[1])))
        along = normal * self._variances[chosen].sqrt()
        return self.means[chosen] + torch.einsum("nij,nj->ni", self._axes[chosen], along)

    def log_density(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the log density (B,) of x_t. x: (B, D). alpha_bar: (B,) in [0, 1]; 1 is the law itself."""
        return self._component_log_densities(x.double(), alpha_bar).logsumexp(-1)

    def score(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the gradient of `log_density` over x, (B, D) float64."""
        x = x.double()
        shares = self._component_log_densities(x, alpha_bar).softmax(-1)
        pull = -self._coordinates(x, alpha_bar) / self._noised_variances(alpha_bar)
        return torch.einsum("bk,kij,bkj->bi", shares, self._axes, pull)

    def posterior_mean(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return E[x_0 | x_t] (B, D), float64: what the best denoiser says.

        Each component's is the mean of a normal law given a noisy sight of it; they are mixed by the probability that
        x_t came from each.
        """
        x = x.double()
        shares = self._component_log_densities(x, alpha_bar).softmax(-1)
        gain = alpha_bar.double().sqrt()[:, None, None] * self._variances / self._noised_variances(alpha_bar)
        moved = torch.einsum("kij,bkj->bki", self._axes, gain * self._coordinates(x, alpha_bar))
        return torch.einsum("bk,bki->bi", shares, self.means + moved)

    def denoiser(self, alphas_cumprod: Tensor) -> Denoiser:
        """Return the exact denoiser of points (B, D) on a noise schedule."""

        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            alpha_bar = alphas_cumprod[t.cpu()]
            return from_x0(self.posterior_mean(x_t, alpha_bar).to(x_t.dtype), x_t, alpha_bar)

        return denoise

    def _coordinates(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return x_t from the noised mean of each component, in its axes: (B, K, D)."""
        away = x[:, None] - alpha_bar.double().sqrt()[:, None, None] * self.means
        return torch.einsum("kij,bki->bkj", self._axes, away)

    def _noised_variances(self, alpha_bar: Tensor) -> Tensor:
        """Return the variances of x_t along the axes of each component: (B, K, D)."""
        alpha_bar = alpha_bar.double()[:, None, None]
        return alpha_bar * self._variances + (1 - alpha_bar)

    def _component_log_densities(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        variances = self._noised_variances(alpha_bar)
        distance = self._coordinates(x, alpha_bar).square() / variances
        return self.weights.log() - 0.5 * (distance + variances.log() + math.log(2 * math.pi)).sum(-1)


@dataclass(frozen=True)
class Spiral:
    """Points along an Archimedean spiral around the origin, uniform in angle, with normal noise across and along.

    turns: of the spiral. radius: at its outer end. width: standard deviation of the noise.
    """

    turns: float = 1.75
    radius: float = 2.0
    width: float = 0.05

    def sample(self, num_points: int, seed: int) -> Tensor:
        """Return points (num_points, 2), float64."""
        rng = generator(seed, "spiral", num_points)
        part = np.sqrt(rng.uniform(0.02, 1, num_points))  # the root makes the density along the line more even
        angle = 2 * np.pi * self.turns * part
        line = self.radius * part[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return torch.from_numpy(line + self.width * rng.standard_normal((num_points, 2)))


ONE_GAUSSIAN = GaussianMixture(
    torch.ones(1), torch.tensor([[0.5, -0.3]]), torch.tensor([[[1.0, 0.6], [0.6, 0.8]]]).double()
)
TWO_GAUSSIANS = GaussianMixture(
    torch.tensor([0.3, 0.7]).double(),
    torch.tensor([[-1.5, 0.5], [1.2, -0.4]]),
    torch.tensor([[[0.10, 0.05], [0.05, 0.20]], [[0.25, -0.08], [-0.08, 0.10]]]),
)
LAWS: Mapping[str, Law] = MappingProxyType(
    {"one_gaussian": ONE_GAUSSIAN, "two_gaussians": TWO_GAUSSIANS, "spiral": Spiral()}
)
