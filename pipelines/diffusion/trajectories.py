"""The way of a picture out of the noise, as a strip: what there is, and what the model sees in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.diffusion.pictures import to_images
from pipelines.diffusion.samplers import Step
from pipelines.pixel_model import PixelModel
from pipelines.sheets import Row, sheet


@dataclass
class Trajectory:
    """A callback that keeps every step of a sampler."""

    levels: list[int] = field(default_factory=list)
    x: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        self.levels.append(step.level)
        self.x.append(step.x.cpu())
        self.x0.append(step.x0.cpu())

    def shown(self, num_pictures: int) -> list[int]:
        """Return the numbers of at most so many steps, evenly spaced, the first and the last among them."""
        last = len(self.levels) - 1
        return sorted({round(place) for place in np.linspace(0, last, min(num_pictures, last + 1))})


def strip(model: PixelModel, trajectory: Trajectory, names: list[str], num_pictures: int) -> Image.Image:
    """Return two rows for each picture of the batch: x after a step, and the image that the model saw in x before it.

    names: of the pictures. num_pictures: at most so many steps are shown.
    """
    chosen = trajectory.shown(num_pictures)
    rows = []
    for row, name in enumerate(names):
        for what, kept in (("x", trajectory.x), ("the model's x0", trajectory.x0)):
            rows.append(Row(f"{name}\n{what}", [to_images(model, kept[number][row : row + 1])[0] for number in chosen]))
    columns = [f"from t = {trajectory.levels[number]}" for number in chosen]
    return sheet(rows, title="out of the noise", columns=columns)
