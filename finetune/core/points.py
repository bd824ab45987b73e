"""Training of a small denoiser of points: the fast, exact check of objective and samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import NonFiniteError
from data.randomness import derive
from finetune.core import draws
from finetune.core.objective import noise_losses
from pipelines.diffusion.point_models import PointModel, PointNet
from pipelines.diffusion.points import LAWS
from pipelines.diffusion.schedules import Schedule, alphas_cumprod

LEARNING_RATE = 2e-3
_NO_CONDITIONING = torch.empty(0)


def train_points(
    law: str,
    *,
    schedule: Schedule,
    num_train_timesteps: int,
    num_steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[float], object] | None = None,
) -> PointModel:
    """Return a network that predicts the noise in points of a law, one of LAWS; the same for the same seed.

    The loss is that of `noise_losses`, at timesteps and noise drawn afresh for each step; AdamW, its rate falling to
    0 as a cosine. progress: called with the loss after each step.
    Raises NonFiniteError where the loss is not finite.
    """
    left = alphas_cumprod(schedule, num_train_timesteps).float()
    points = LAWS[law].sample(batch_size * 64, derive(seed, "points")).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "point-net"))
        net = PointNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        generator = torch.Generator().manual_seed(derive(seed, "point-batch", step))
        chosen = torch.randint(len(points), (batch_size,), generator=generator)
        loss = noise_losses(
            lambda noisy, t, _: net(noisy, t),
            x0=points[chosen],
            noise=draws.normal(seed, "point-noise", [step], (batch_size, points.shape[1]))[0],
            timesteps=torch.randint(num_train_timesteps, (batch_size,), generator=generator),
            conditioning=_NO_CONDITIONING,
            alphas_cumprod=left,
            prediction_type="epsilon",
        ).mean()
        _refuse(loss, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
        if progress is not None:
            progress(float(loss.detach()))
    return PointModel(net.requires_grad_(False).eval(), law, schedule, num_train_timesteps)


def _refuse(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteError(f"step {step + 1}", "the loss is not finite. Nothing was written.")
