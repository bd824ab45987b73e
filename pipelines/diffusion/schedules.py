"""Noise schedules: how much of the signal's variance is left at each timestep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from data.errors import SettingsError

Schedule = Literal["linear", "cosine", "sigmoid"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
Spacing = Literal["linear", "quadratic"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

CLEAN = -1  # the level of an image without noise: one step below timestep 0

_LARGEST_BETA = 0.999  # Nichol and Dhariwal 2021, section 3.2: keeps the last steps from dividing by nothing
_COSINE_OFFSET = 0.008
_SIGMOID_START, _SIGMOID_END = -3.0, 3.0


def alphas_cumprod(schedule: Schedule, num_train_timesteps: int) -> Tensor:
    """Return alpha_bar (T,) float64, strictly falling inside (0, 1), of x_t = sqrt(a) x_0 + sqrt(1 - a) eps.

    linear: beta from 1e-4 to 0.02 (Ho et al. 2020, arXiv:2006.11239, section 4) at 1000 timesteps; for another number
    both ends are multiplied by 1000 / T, as Nichol and Dhariwal do, so that the whole is as noisy at the end.
    cosine: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17, s = 0.008. sigmoid: Jabri et al. 2022,
    arXiv:2212.11972, in the form of Chen 2023, arXiv:2301.10972, algorithm 1, start -3, end 3, tau 1 (not the sigmoid
    over betas of diffusers' DDPMScheduler). No beta is above 0.999.
    Raises SettingsError for an unknown schedule or fewer than 2 timesteps.
    """
    problems = []
    if schedule not in SCHEDULES:
        problems.append(f"schedule: found {schedule!r}, expected one of {', '.join(SCHEDULES)}.")
    if num_train_timesteps < 2:
        problems.append(f"number of training timesteps: found {num_train_timesteps}, expected 2 or more.")
    if problems:
        raise SettingsError("noise schedule", *problems)
    if schedule == "linear":
        scale = 1000 / num_train_timesteps
        betas = torch.linspace(scale * 1e-4, scale * 0.02, num_train_timesteps, dtype=torch.float64)
    else:
        time = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
        left = _cosine(time) if schedule == "cosine" else _sigmoid(time)
        betas = 1 - left[1:] / left[:-1]
    return (1 - betas.clamp(max=_LARGEST_BETA)).cumprod(0)


def _cosine(time: Tensor) -> Tensor:
    return torch.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2


def _sigmoid(time: Tensor) -> Tensor:
    ends = torch.tensor([_SIGMOID_START, _SIGMOID_END], dtype=torch.float64).sigmoid()
    here = (_SIGMOID_START + time * (_SIGMOID_END - _SIGMOID_START)).sigmoid()
    return (ends[1] - here) / (ends[1] - ends[0])


def betas(alphas_cumprod: Tensor) -> Tensor:
    """Return beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} (T,), float64, with alpha_bar_{-1} = 1."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod.double()[:-1]])
    return 1 - alphas_cumprod.double() / before


def log_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return log(alpha_bar / (1 - alpha_bar)), natural logarithm (Kingma et al. 2021, arXiv:2107.00630, equation 2)."""
    return alphas_cumprod.double().logit()


@dataclass(frozen=True)
class Steps:
    """The way of a sampler down from noise: it goes from each level to the next.

    alphas_cumprod: (T,) of the schedule that the denoiser was trained with. levels: timesteps, strictly falling; a
    last CLEAN is the image itself. Two or more.
    """

    alphas_cumprod: Tensor
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.levels) > 1, f"found {len(self.levels)} levels, a way has two or more"
        assert all(a > b for a, b in pairwise(self.levels)), "levels fall"
        assert self.levels[0] < len(self.alphas_cumprod), f"level {self.levels[0]} is beyond the schedule"
        assert self.levels[-1] >= CLEAN, f"level {self.levels[-1]} is below the image"

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.levels) - 1

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The two levels of each step, from the first."""
        return tuple(pairwise(self.levels))

    def alpha_bar(self, level: int) -> float:
        """Return how much of the signal's variance is left at a level; 1 at CLEAN."""
        return 1.0 if level == CLEAN else float(self.alphas_cumprod[level])

    def until(self, number: int) -> Steps:
        """Return the first steps of this way, so many."""
        return Steps(self.alphas_cumprod, self.levels[: number + 1])

    def after(self, number: int) -> Steps:
        """Return what is left of this way after so many steps."""
        return Steps(self.alphas_cumprod, self.levels[number:])


def strided(alphas_cumprod: Tensor, num_steps: int, spacing: Spacing = "linear") -> Steps:
    """Return a way of num_steps steps from the last timestep to the clean image.

    linear: timesteps evenly spaced from 0 to T - 1, both among them (Nichol and Dhariwal 2021, section 4). quadratic:
    closer together near the image (Song et al. 2021, arXiv:2010.02502, appendix D.2; stretched to T - 1, as sampling
    begins in pure noise). Both give every timestep where num_steps is T; one step goes from T - 1.
    Raises SettingsError for a number of steps outside 1 to T, or an unknown spacing.
    """
    last = len(alphas_cumprod) - 1
    problems = []
    if not 1 <= num_steps <= last + 1:
        problems.append(f"number of steps: found {num_steps}, expected 1 to {last + 1}, the timesteps of training.")
    if spacing not in SPACINGS:
        problems.append(f"spacing: found {spacing!r}, expected one of {', '.join(SPACINGS)}.")
    if problems:
        raise SettingsError("sampling steps", *problems)
    numbers = range(num_steps)
    share = [number / (num_steps - 1) for number in numbers] if num_steps > 1 else [1.0]
    if spacing == "quadratic":
        share = [part**2 for part in share]
    # halves go up, so that no two steps meet; where squares are closer than 1 they stand next to each other
    rising = [max(number, math.floor(part * last + 0.5)) for number, part in zip(numbers, share, strict=True)]
    return Steps(alphas_cumprod, (*reversed(rising), CLEAN))
