"""The random numbers of a sampler: each image has a seed of its own and sees the same ones in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.randomness import derive

Noise = Callable[[int], Tensor]
"""The number of a draw, 0, 1, 2, ... -> standard normal numbers (B, ...), the same whenever it is asked again."""


def start(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return the pure noise (B, *shape), float32, from which each seed's image is drawn."""
    return _normal([derive(seed, "diffusion-start") for seed in seeds], shape)


def seeded(seeds: Sequence[int], shape: tuple[int, ...], purpose: str = "diffusion-step") -> Noise:
    """Return the noise that the steps of each seed's image draw, (B, *shape) float32."""
    return lambda number: _normal([derive(seed, purpose, number) for seed in seeds], shape)


def _normal(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
