"""Noise schedules side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.diffusion.charts import draw_lines, new_figure, save_figure
from pipelines.diffusion.fourier import mean_signal_to_noise
from pipelines.diffusion.schedules import SCHEDULES, alphas_cumprod, betas, log_snr


def write(path: Path, *, num_train_timesteps: int) -> dict[str, Any]:
    """Draw alpha_bar, log SNR and beta of every schedule against t."""
    along = list(range(num_train_timesteps))
    every = {name: alphas_cumprod(name, num_train_timesteps) for name in SCHEDULES}
    figure = new_figure((14, 4))
    panels = (
        ("signal variance left", "alpha_bar", {name: (along, left.tolist()) for name, left in every.items()}, False),
        (
            "log signal to noise",
            "log SNR",
            {name: (along, log_snr(left).tolist()) for name, left in every.items()},
            False,
        ),
        ("noise of a step", "beta", {name: (along, betas(left).tolist()) for name, left in every.items()}, True),
    )
    for axes, (title, y, lines, log_y) in zip(figure.subplots(1, 3), panels, strict=True):
        draw_lines(axes, lines, title=title, x="t", y=y, log_y=log_y)
    save_figure(figure, path)
    return {
        "num_train_timesteps": num_train_timesteps,
        "schedules": {
            name: {
                "alpha_bar_first": float(left[0]),
                "alpha_bar_last": float(left[-1]),
                "log_snr_last": float(log_snr(left)[-1]),
                "half_of_the_signal_left_at_t": int((left < 0.5).int().argmax()),
                "largest_beta": float(betas(left).max()),
            }
            for name, left in every.items()
        },
    }


def write_offset(
    path: Path, *, num_train_timesteps: int, sides: tuple[int, ...], offsets: tuple[float, ...]
) -> dict[str, Any]:
    """Draw how much of a picture's mean is left in the last timestep, against the strength of offset noise.

    Stable Diffusion's schedule (scaled linear, 0.00085 to 0.012, 1000 steps) stands beside ours, for latents of the
    sides: it is the one that leaves enough to be read.
    """
    lasts: dict[str, float] = {name: float(alphas_cumprod(name, num_train_timesteps)[-1]) for name in SCHEDULES}
    lasts |= {"Stable Diffusion": _stable_diffusion_last()}
    figure = new_figure((11, 4))
    numbers: dict[str, Any] = {}
    for axes, side in zip(figure.subplots(1, len(sides), squeeze=False)[0], sides, strict=True):
        lines = {}
        for name, last in lasts.items():
            ratios = [mean_signal_to_noise(side, last, offset) for offset in offsets]
            lines[name] = (list(offsets), ratios)
            numbers[f"{name}, {side} px"] = {str(o): ratio for o, ratio in zip(offsets, ratios, strict=True)}
        draw_lines(
            axes,
            lines,
            title=f"mean of {side} x {side} px at the last t",
            x="offset noise, standard deviation",
            y="signal / noise of the mean",
            log_y=True,
        )
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    save_figure(figure, path)
    return {"num_train_timesteps": num_train_timesteps, "signal_to_noise_of_the_mean": numbers}


def _stable_diffusion_last() -> float:
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return float((1 - roots.square()).prod())
