"""Schedulers of diffusers on any noise schedule and any denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.errors import SettingsError, nearest
from data.randomness import derive
from pipelines.components import SAMPLERS
from pipelines.diffusion.prediction import Denoiser
from pipelines.diffusion.samplers import Callback, finite, tell, times
from pipelines.diffusion.schedules import betas


def scheduled(
    denoise: Denoiser,
    x: Tensor,
    alphas_cumprod: Tensor,
    scheduler: type[Any],
    num_steps: int,
    *,
    seeds: Sequence[int],
    callback: Callback | None = None,
) -> Tensor:
    """Return samples of a scheduler of diffusers, one of SAMPLERS, on this noise schedule.

    x: (B, ...) standard normal. Steps are spaced "trailing", from the last timestep on. A scheduler that draws noise
    draws it from a generator for each of the seeds. Some evaluate the denoiser more often than num_steps.
    Raises SettingsError for a number of steps that the schedule has not, NonFiniteError for samples not finite.
    """
    if not 1 <= num_steps <= len(alphas_cumprod):
        raise SettingsError(
            "sampling steps", f"number of steps: found {num_steps}, expected 1 to {len(alphas_cumprod)}."
        )
    method = _scheduler(scheduler, alphas_cumprod)
    method.set_timesteps(num_steps)
    chance: dict[str, Any] = {}
    if "generator" in inspect.signature(method.step).parameters:
        chance["generator"] = [torch.Generator().manual_seed(derive(seed, "diffusion-scheduler")) for seed in seeds]
    x = x * float(method.init_noise_sigma)
    for number, time in enumerate(method.timesteps):
        level = round(float(time))
        said = denoise(method.scale_model_input(x, time), times(level, x))
        x = method.step(said.eps, time, x, **chance).prev_sample.to(x.dtype)
        tell(callback, number, level, x, said)
    return finite(x)


def named_scheduler(name: str) -> type[Any]:
    """Return the scheduler of diffusers with this class name; SettingsError where it is none of SAMPLERS."""
    classes: dict[str, type[Any]] = {cls.__name__: cls for cls in SAMPLERS}
    if name not in classes:
        raise SettingsError("--sampler", f"found {name!r}.{nearest(name, ['ancestral', 'ddim', *classes])}")
    return classes[name]


def _scheduler(cls: type[Any], alphas_cumprod: Tensor) -> Any:
    options: dict[str, Any] = {
        "num_train_timesteps": len(alphas_cumprod),
        "trained_betas": betas(alphas_cumprod).tolist(),
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    if "clip_sample" in inspect.signature(cls.__init__).parameters:
        options["clip_sample"] = False  # the denoiser clips, where it is asked to, for every scheduler alike
    return cls(**options)
