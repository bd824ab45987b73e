"""Pictures that share what was decided until a timestep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.diffusion.drawing import Way, denoiser
from pipelines.diffusion.pictures import to_images
from pipelines.diffusion.progressive import shared_counts, siblings, spread
from pipelines.diffusion.schedules import strided
from pipelines.pixel_model import PixelModel
from pipelines.sheets import Row, save_png, sheet


@torch.no_grad()
def write(
    path: Path,
    model: PixelModel,
    *,
    num_steps: int,
    num_rows: int,
    num_pictures: int,
    label: str | None,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Draw rows of pictures that part later and later (Ho et al. 2020, figure 7), the shared x_t at the left.

    label: of a model with labels. The spread within a row, in [0, 1], is what was not yet decided.
    """
    steps = strided(model.alphas_cumprod, num_steps)
    labels = None
    if label is not None:
        labels = torch.tensor([model.class_labels.index(label)])
    shape = (model.channels, model.size_px, model.size_px)
    rows, numbers = [], []
    for count in shared_counts(steps, num_rows):

        def denoise(x_t: torch.Tensor, t: torch.Tensor) -> Any:
            told = None if labels is None else labels.expand(len(x_t))
            return denoiser(model, Way(), told)(x_t, t)

        drawn, shared = siblings(denoise, shape, steps, shared_steps=count, num_pictures=num_pictures, seed=seed)
        level = steps.levels[count]
        rows.append(Row(f"shared until t = {level}", list(to_images(model, torch.cat([shared, drawn])))))
        numbers.append({"shared_until_t": level, "spread": spread(model.to_unit(drawn))})
        if progress is not None:
            progress(1)
    columns = ["shared x_t", *(f"picture {number}" for number in range(num_pictures))]
    save_png(sheet(rows, title="what is decided when", columns=columns), path)
    return {"num_steps": num_steps, "seed": seed, "label": label, "rows": numbers}
