"""Random tensors of a run, drawn on the CPU and keyed by (seed, purpose, position): the same on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.randomness import derive, generator


def normal(seed: int, purpose: str, positions: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers (B, *shape), float32, row b drawn for positions[b] alone."""
    rows = [
        torch.randn(shape, generator=torch.Generator().manual_seed(derive(seed, purpose, position)))
        for position in positions
    ]
    return torch.stack(rows)


def timesteps(seed: int, positions: Sequence[int], num_timesteps: int, high_noise_share: float = 0.0) -> Tensor:
    """Return timesteps (B,), int64 in [0, num_timesteps).

    high_noise_share: this share is drawn from the upper half of the schedule, the rest from the whole of it.
    """
    drawn = []
    for position in positions:
        rng = generator(seed, "timestep", position)
        lowest = num_timesteps // 2 if rng.random() < high_noise_share else 0
        drawn.append(int(rng.integers(lowest, num_timesteps)))
    return torch.tensor(drawn)
