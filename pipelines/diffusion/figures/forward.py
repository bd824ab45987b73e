"""Pictures going into the noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.diffusion.forward import noised
from pipelines.diffusion.schedules import Schedule, alphas_cumprod, log_snr
from pipelines.sheets import Row, save_png, sheet


def write(
    path: Path,
    pictures: Mapping[str, Tensor],
    *,
    schedules: tuple[Schedule, ...],
    num_train_timesteps: int,
    timesteps: list[int],
    seed: int,
) -> dict[str, Any]:
    """Draw pictures (C, H, W) in [-1, 1], by name, at timesteps of each schedule, the same noise everywhere."""
    import torch

    rows, numbers = [], {}
    for schedule in schedules:
        left = alphas_cumprod(schedule, num_train_timesteps)
        x_t = noised(torch.stack(list(pictures.values())), left, timesteps, seed)
        for row, name in enumerate(pictures):
            shown = ((x_t[:, row] + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
            rows.append(Row(f"{schedule}\n{name}", list(shown)))
        numbers[schedule] = {
            str(t): {"alpha_bar": float(left[t]), "log_snr": float(log_snr(left)[t])} for t in timesteps
        }
    save_png(sheet(rows, title="the forward process", columns=[f"t = {t}" for t in timesteps]), path)
    return {"num_train_timesteps": num_train_timesteps, "seed": seed, "schedules": numbers}
