"""Inpainting with a model that was trained on whole images (Lugmayr et al. 2022, arXiv:2201.09865, "RePaint")."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion.noise import Noise
from pipelines.diffusion.posterior import fixed_variance, posterior, step_beta
from pipelines.diffusion.prediction import Denoiser
from pipelines.diffusion.samplers import Callback, finite, tell, times
from pipelines.diffusion.schedules import CLEAN, Steps


def walk(num_steps: int, jump_length: int, num_resamples: int) -> list[int]:
    """Return the heights visited, from num_steps down to 0, a height being the number of steps to the image.

    After every jump_length steps down the way goes up as far again, num_resamples - 1 times each (the paper's appendix
    B: j and r). num_resamples 1 goes straight down. The image itself is reached once.
    Raises SettingsError for numbers below 1.
    """
    problems = [
        f"--{name}: found {value}, expected 1 or more."
        for name, value in (("jump_length", jump_length), ("num_resamples", num_resamples))
        if value < 1
    ]
    if problems:
        raise SettingsError("RePaint", *problems)
    jumps = dict.fromkeys(range(1, num_steps - jump_length + 1, jump_length), num_resamples - 1)
    heights = [num_steps]
    while heights[-1] > 0:
        heights.append(heights[-1] - 1)
        if jumps.get(heights[-1], 0) > 0:
            jumps[heights[-1]] -= 1
            heights += range(heights[-1] + 1, heights[-1] + jump_length + 1)
    return heights


def repaint(
    denoise: Denoiser,
    x: Tensor,
    steps: Steps,
    *,
    known: Tensor,
    mask: Tensor,
    noise: Noise,
    known_noise: Noise,
    jump_length: int = 10,
    num_resamples: int = 10,
    callback: Callback | None = None,
) -> Tensor:
    """Return images whose unknown part is drawn and whose known part is `known`, bit for bit (algorithm 1).

    x: (B, ...) pure noise. steps: to CLEAN. known: (B, ...) clean; what it holds outside the mask is not used. mask:
    bool, True where it is known, shaped so that it broadcasts to x. noise, known_noise: for the steps down or up, and
    for the noised known part; a move of the way has the number of its draws.
    Raises SettingsError for jumps below 1, NonFiniteError for images that are not finite.
    """
    assert steps.levels[-1] == CLEAN, "inpainting ends at the image"
    assert mask.dtype == torch.bool, f"a mask is bool, found {mask.dtype}"
    levels = steps.levels[::-1]  # by height
    heights = walk(len(steps), jump_length, num_resamples)
    for number, (height, following) in enumerate(pairwise(heights)):
        level, after = levels[height], levels[following]
        alpha_bar, alpha_bar_after = steps.alpha_bar(level), steps.alpha_bar(after)
        if following > height:
            beta = step_beta(alpha_bar_after, alpha_bar)
            x = math.sqrt(1 - beta) * x + math.sqrt(beta) * noise(number).to(x)
            continue
        said = denoise(x, times(level, x))
        unknown = posterior(alpha_bar, alpha_bar_after).mean(said.x0, x)
        given = known
        if after != CLEAN:
            unknown = unknown + math.sqrt(fixed_variance(alpha_bar, alpha_bar_after, "small")) * noise(number).to(x)
            given = math.sqrt(alpha_bar_after) * known + math.sqrt(1 - alpha_bar_after) * known_noise(number).to(x)
        x = torch.where(mask, given, unknown)
        tell(callback, number, level, x, said)
    return finite(x)
