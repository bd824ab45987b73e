"""The forward process: pictures at chosen amounts of noise, all of one draw of it."""

from __future__ import annotations

import torch
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion import noise


def noised(x0: Tensor, alphas_cumprod: Tensor, timesteps: list[int], seed: int) -> Tensor:
    """Return x_t of q(x_t | x_0) (Ho et al. 2020, eq. 4), (timesteps, B, ...), with the same noise at each of them.

    Raises SettingsError for timesteps outside the schedule.
    """
    last = len(alphas_cumprod) - 1
    outside = [str(t) for t in timesteps if not 0 <= t <= last]
    if outside:
        raise SettingsError("--timesteps", f"found {', '.join(outside)}, expected 0 to {last}.")
    eps = noise.start([seed + row for row in range(len(x0))], tuple(x0.shape[1:])).to(x0)
    left = alphas_cumprod[timesteps].to(x0.dtype)
    return torch.stack([alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps for alpha_bar in left])
