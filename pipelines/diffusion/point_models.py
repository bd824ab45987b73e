"""A small network that denoises points of the plane, and the folder that keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.diffusion.points import LAWS
from pipelines.diffusion.prediction import Denoiser, Prediction, from_eps
from pipelines.diffusion.schedules import SCHEDULES, Schedule, alphas_cumprod

FACTS_NAME, WEIGHTS_NAME = "point_model.json", "point_model.safetensors"


class PointNet(nn.Module):
    """A multilayer perceptron from a noisy point (B, 2) and its timestep (B,) to the noise in it."""

    def __init__(self, width: int = 96, num_layers: int = 3) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(2, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(num_layers)
        )
        self.leave = nn.Linear(width, 2)

    def forward(self, points: Tensor, t: Tensor) -> Tensor:
        features = self.enter(points) + self.time(get_timestep_embedding(t, self.width))
        for layer in self.layers:
            features = features + layer(features)
        out: Tensor = self.leave(features)
        return out


@dataclass(frozen=True, eq=False)
class PointModel:
    """A trained network of points: which law it was shown, on which noise schedule."""

    net: PointNet
    law: str
    schedule: Schedule
    num_train_timesteps: int

    @property
    def alphas_cumprod(self) -> Tensor:
        return alphas_cumprod(self.schedule, self.num_train_timesteps)

    @property
    def denoiser(self) -> Denoiser:
        """The network as a denoiser of points (B, 2) float32."""
        left = self.alphas_cumprod

        @torch.no_grad()
        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            return from_eps(self.net(x_t, t), x_t, left[t])

        return denoise

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.net.state_dict().items()}, folder / WEIGHTS_NAME)
        facts = {"law": self.law, "schedule": self.schedule, "num_train_timesteps": self.num_train_timesteps}
        (folder / FACTS_NAME).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_point_model(folder: Path) -> PointModel:
    """Return the point model of a folder; SettingsError where it holds none."""
    try:
        facts: dict[str, Any] = parsed((folder / FACTS_NAME).read_bytes())
        law, schedule, length = facts["law"], facts["schedule"], facts["num_train_timesteps"]
        net = PointNet()
        net.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise SettingsError(
            str(folder), f"holds no point model: {reason}. Train one: python finetune/points.py"
        ) from None
    if law not in LAWS or schedule not in SCHEDULES or not isinstance(length, int):
        raise SettingsError(
            str(folder / FACTS_NAME), f"found law {law!r}, schedule {schedule!r}, {length!r} timesteps."
        )
    return PointModel(net.requires_grad_(False).eval(), law, schedule, length)
