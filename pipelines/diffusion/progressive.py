"""Progressive generation: pictures that share what was decided until a timestep (Ho et al. 2020, figure 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion import noise
from pipelines.diffusion.prediction import Denoiser
from pipelines.diffusion.samplers import ancestral
from pipelines.diffusion.schedules import Steps


def siblings(
    denoise: Denoiser, shape: tuple[int, ...], steps: Steps, *, shared_steps: int, num_pictures: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return pictures (num_pictures, *shape) that are one until so many steps, and the x_t (1, *shape) they share.

    Ancestral sampling. The shared part depends on the seed alone, so more shared steps go on from fewer; what follows
    has noise of its own for each picture. Raises SettingsError for shared steps outside 0 to steps - 1.
    """
    if not 0 <= shared_steps < len(steps):
        raise SettingsError("shared steps", f"found {shared_steps}, expected 0 to {len(steps) - 1}.")
    shared = noise.start([seed], shape)
    if shared_steps:
        shared = ancestral(denoise, shared, steps.until(shared_steps), noise=noise.seeded([seed], shape))
    own = noise.seeded(range(num_pictures), shape, f"sibling-{seed}")
    rest = steps.after(shared_steps)
    return ancestral(denoise, shared.expand(num_pictures, *shape).clone(), rest, noise=own), shared


def spread(pictures: Tensor) -> float:
    """Return the root mean square over pixels of the standard deviation between pictures (N, ...), N of 2 or more."""
    return float(pictures.var(0).mean().sqrt())


def shared_counts(steps: Steps, num_rows: int) -> list[int]:
    """Return numbers of shared steps for so many rows, evenly spaced from 0 to all but the last, each once."""
    places = torch.linspace(0, len(steps) - 1, num_rows).round().long().tolist()
    return sorted(set(places))
