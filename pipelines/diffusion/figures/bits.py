"""What pictures cost in bits under a pixel model, and what they look like for fewer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.diffusion import noise
from pipelines.diffusion.bound import Bound, quantised, variational_bound
from pipelines.diffusion.charts import draw_lines, new_figure, save_figure
from pipelines.diffusion.drawing import Way, denoiser, pixel_range
from pipelines.diffusion.posterior import Variance
from pipelines.diffusion.schedules import strided
from pipelines.metrics.distances import bootstrap_interval
from pipelines.pixel_model import PixelModel


@torch.no_grad()
def measure(
    model: PixelModel,
    by_caption: Mapping[str, Tensor],
    *,
    num_steps: int,
    variance: Variance,
    num_values: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> Bound:
    """Return the bound of pictures (N, C, H, W) by caption, on a grid of num_values grey values.

    Images are clipped to the model's range, as Ho et al. 2020 do. A model with labels is told the captions.
    """
    low, high = pixel_range(model)
    steps = strided(model.alphas_cumprod, num_steps)
    found: list[Bound] = []
    for caption, pixels in by_caption.items():
        labels = None
        if model.class_labels:
            labels = torch.full((len(pixels),), model.class_labels.index(caption))
        first = sum(len(bound.prior) for bound in found)
        chance = noise.seeded(range(seed + first, seed + first + len(pixels)), tuple(pixels.shape[1:]), "bound")
        found.append(
            variational_bound(
                denoiser(model, Way(), labels),
                quantised(pixels, num_values, low, high),
                steps,
                noise=chance,
                variance=variance,
                num_values=num_values,
                low=low,
                high=high,
                progress=progress,
            )
        )
    return Bound(
        found[0].levels,
        torch.cat([bound.prior for bound in found]),
        torch.cat([bound.terms for bound in found], dim=1),
        torch.cat([bound.squared_errors for bound in found], dim=1),
    )


def write_bits(path: Path, bound: Bound) -> dict[str, Any]:
    """Draw the bound's terms against t and give the bits per dimension with their interval over pictures."""
    along = list(bound.levels)
    terms = bound.terms.mean(1)
    figure = new_figure((11, 4))
    left, right = figure.subplots(1, 2)
    draw_lines(left, {"term": (along, terms.tolist())}, title="terms of the bound", x="t", y="bits / dim", log_y=True)
    draw_lines(
        right,
        {"sum from t = T": (along, (bound.rate.mean(1) + terms).tolist())},
        title=f"bound {float(bound.total.mean()):.3f} bits per dimension",
        x="t",
        y="bits / dim",
    )
    save_figure(figure, path)
    return {
        "bits_per_dimension": _interval(bound.total),
        "prior": float(bound.prior.mean()),
        "decoder": float(terms[-1]),
        "terms": {str(t): float(value) for t, value in zip(along, terms, strict=True)},
    }


def write_rate(path: Path, bound: Bound, model: PixelModel) -> dict[str, Any]:
    """Draw distortion against rate (Ho et al. 2020, figure 5): the error of the model's image of x_t against the bits
    sent by then. Distortion: root mean squared error on the scale 0 to 255."""
    low, high = pixel_range(model)
    distortion = bound.squared_errors.mean(1).sqrt() * 255 / (high - low)
    rate = bound.rate.mean(1)
    along = list(bound.levels)
    figure = new_figure((14, 4))
    panels = (
        ("t", along, distortion.tolist(), "distortion (0 to 255)"),
        ("t", along, rate.tolist(), "rate, bits / dim"),
        ("rate, bits / dim", rate.tolist(), distortion.tolist(), "distortion (0 to 255)"),
    )
    for axes, (x, values, heights, y) in zip(figure.subplots(1, 3), panels, strict=True):
        draw_lines(axes, {y: (values, heights)}, title=f"{y} against {x}", x=x, y=y)
    save_figure(figure, path)
    return {
        "bits_per_dimension": _interval(bound.total),
        "curve": [
            {"t": t, "rate_bits_per_dimension": float(r), "distortion": float(d)}
            for t, r, d in zip(along, rate, distortion, strict=True)
        ],
    }


def _interval(values: Tensor) -> dict[str, float | int]:
    numbers = np.asarray(values)
    found = bootstrap_interval(lambda counts: counts @ numbers / counts.sum(1), [len(numbers)], seed=0)
    assert math.isfinite(found.value), "a bound is finite"
    return {"value": found.value, "low": found.low, "high": found.high, "num_images": len(numbers)}
