"""Which spatial frequencies of pictures the noise destroys, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.errors import DataError, SettingsError
from pipelines.diffusion.charts import draw_lines, new_figure, save_figure
from pipelines.diffusion.forward import noised
from pipelines.diffusion.fourier import Bands, band_powers, coherence, lost_at, snr_by_band
from pipelines.diffusion.schedules import SCHEDULES, Schedule, alphas_cumprod


def write(
    path: Path, pixels: Tensor, *, schedule: Schedule, num_train_timesteps: int, num_bands: int, seed: int
) -> dict[str, Any]:
    """Draw signal over noise of each band against t, and when each band is lost, for pixels (B, C, n, n) in [-1, 1].

    Measured beside it: how alike clean and noisy coefficients are. Raises SettingsError for too many bands, DataError
    for pictures without any contrast.
    """
    if not 2 <= num_bands <= pixels.shape[-1] // 2:
        raise SettingsError("--bands", f"found {num_bands}, expected 2 to {pixels.shape[-1] // 2}, half of the side.")
    bands = band_powers(pixels, num_bands)
    if not bands.power.max() > 0:
        raise DataError("pictures", "show one grey value each. Choose pictures with some contrast.")
    left = alphas_cumprod(schedule, num_train_timesteps)
    probed = sorted({round(share * (num_train_timesteps - 1)) for share in np.linspace(0, 1, 6)})
    measured = [coherence(pixels, x_t, num_bands) for x_t in noised(pixels, left, probed, seed)]
    lost = {name: lost_at(bands, alphas_cumprod(name, num_train_timesteps)) for name in SCHEDULES}
    _draw(path, bands, snr_by_band(bands, left), lost, schedule)
    return {
        "schedule": schedule,
        "num_train_timesteps": num_train_timesteps,
        "num_images": len(pixels),
        "bands": [
            {
                "from_cycles_per_px": float(bands.edges[band]),
                "to_cycles_per_px": float(bands.edges[band + 1]),
                "power": float(bands.power[band]),
                "lost_at_t": {name: timesteps[band] for name, timesteps in lost.items()},
                "coherence": {str(t): float(alike[band]) for t, alike in zip(probed, measured, strict=True)},
            }
            for band in range(num_bands)
        ],
    }


def _draw(
    path: Path, bands: Bands, ratio: np.ndarray, lost: dict[Schedule, list[int | None]], schedule: Schedule
) -> None:
    figure = new_figure((11, 4))
    along = list(range(len(ratio)))
    names = [f"{low:.2f} to {high:.2f}" for low, high in zip(bands.edges[:-1], bands.edges[1:], strict=True)]
    lines = {name: (along, list(ratio[:, band])) for band, name in enumerate(names)}
    left, right = figure.subplots(1, 2)
    draw_lines(left, lines, title=f"signal over noise by band, {schedule}", x="t", y="signal / noise", log_y=True)
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.get_legend().set_title("cycles per px")
    never = len(ratio)
    ends = {
        name: (list(bands.centres), [never if t is None else t for t in timesteps]) for name, timesteps in lost.items()
    }
    draw_lines(right, ends, title="first t with more noise than signal", x="frequency, cycles per px", y="t")
    save_figure(figure, path)
