"""A small classifier of noisy pictures, whose gradient leads a sampler to a label.

Dhariwal and Nichol 2021, arXiv:2105.05233, section 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import NonFiniteError, SettingsError
from data.json_files import parsed
from data.randomness import derive
from pipelines.pixel_model import PixelModel

FACTS_NAME, WEIGHTS_NAME = "noisy_classifier.json", "noisy_classifier.safetensors"
LEARNING_RATE = 2e-3
_TIME_WIDTH = 64


class NoisyClassifier(nn.Module):
    """A convolution with the timestep added, three strided ones, then mean and largest value over the picture.

    Called with x_t (B, C, H, W) in the range of the pixel model and t (B,); gives logits (B, labels).
    """

    def __init__(self, channels: int, labels: tuple[str, ...], width: int = 32) -> None:
        super().__init__()
        self.channels, self.labels, self.width = channels, labels, width
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(_TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        sizes = (width, 2 * width, 4 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, stride=2, padding=1))
            for a, b in zip(sizes, (*sizes[1:], 4 * width), strict=True)
        )
        self.leave = nn.Linear(8 * width, len(labels))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        features = self.enter(x_t) + self.time(get_timestep_embedding(t, _TIME_WIDTH))[:, :, None, None]
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.leave(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))
        return logits

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the weights, and beside them the labels and other facts."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS_NAME)
        known = {"labels": list(self.labels), "channels": self.channels, "width": self.width}
        (folder / FACTS_NAME).write_text(json.dumps({**known, **facts}, indent=1) + "\n", encoding="utf-8")


def train_classifier(
    model: PixelModel,
    pictures: Mapping[str, Tensor],
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[float], object] | None = None,
) -> NoisyClassifier:
    """Return a classifier of pictures at all noise levels of the model's schedule; the same for the same seed.

    pictures: by label, (N, C, H, W) in the model's range, two labels or more. progress: called with each step's loss.
    Raises SettingsError for fewer than two labels, NonFiniteError where the loss is not finite.
    """
    labels = tuple(pictures)
    if len(labels) < 2:
        raise SettingsError("classifier", f"found the label {labels[0]!r} alone, expected two or more to tell apart.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "noisy-classifier"))
        classifier = NoisyClassifier(model.channels, labels)
    every = torch.cat([pictures[label] for label in labels])
    truth = torch.cat([torch.full((len(pictures[label]),), number) for number, label in enumerate(labels)])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        generator = torch.Generator().manual_seed(derive(seed, "noisy-classifier-batch", step))
        chosen = torch.randint(len(every), (batch_size,), generator=generator)
        x_t, t = noised(model, every[chosen], generator)
        loss = nn.functional.cross_entropy(classifier(x_t, t), truth[chosen])
        if not torch.isfinite(loss):
            raise NonFiniteError(f"step {step + 1}", "the loss is not finite. Nothing was written.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
        if progress is not None:
            progress(float(loss.detach()))
    return classifier.requires_grad_(False).eval()


def noised(model: PixelModel, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return x_t and t for pictures, each at a timestep of its own, uniform over the schedule."""
    t = torch.randint(model.num_train_timesteps, (len(x0),), generator=generator)
    left = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    eps = torch.randn(x0.shape, generator=generator)
    return (left.sqrt().float() * x0 + (1 - left).sqrt().float() * eps), t


@torch.no_grad()
def accuracies(
    model: PixelModel, classifier: NoisyClassifier, pictures: Mapping[str, Tensor], num_levels: int, seed: int
) -> dict[int, float]:
    """Return the share of pictures whose label is named, by timestep, at evenly spaced timesteps."""
    every = torch.cat([pictures[label] for label in classifier.labels])
    truth = torch.cat([torch.full((len(pictures[name]),), n) for n, name in enumerate(classifier.labels)])
    found = {}
    for level in torch.linspace(0, model.num_train_timesteps - 1, num_levels).round().long().tolist():
        eps = torch.randn(every.shape, generator=torch.Generator().manual_seed(derive(seed, "accuracy", level)))
        left = float(model.alphas_cumprod[level])
        x_t = left**0.5 * every + (1 - left) ** 0.5 * eps
        named = classifier(x_t, torch.full((len(every),), level)).argmax(1)
        found[level] = float((named == truth).double().mean())
    return found


def load_classifier(folder: Path, model: PixelModel) -> NoisyClassifier:
    """Return the classifier of a folder, for the pictures of a model; SettingsError where it does not fit them."""
    try:
        facts = parsed((folder / FACTS_NAME).read_bytes())
        classifier = NoisyClassifier(facts["channels"], tuple(facts["labels"]), facts["width"])
        classifier.load_state_dict(load_file(folder / WEIGHTS_NAME))
        taught = (facts["channels"], facts["num_train_timesteps"], facts["schedule"], facts["normalized"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise SettingsError(
            str(folder),
            f"holds no classifier of noisy pictures: {reason}. Train one: "
            "python pipelines/train_noisy_classifier.py --model RUN",
        ) from None
    expected = (model.channels, model.num_train_timesteps, model.schedule, model.normalized)
    problems = [
        f"it was trained with {name} {found!r}, the model has {wanted!r}."
        for name, found, wanted in zip(
            ("channels", "timesteps", "schedule", "normalized"), taught, expected, strict=True
        )
        if found != wanted
    ]
    if model.class_labels and classifier.labels != model.class_labels:
        problems.append(f"it knows {', '.join(classifier.labels)}, the model {', '.join(model.class_labels)}.")
    if problems:
        raise SettingsError(str(folder), *problems, "Train it for this model.")
    return classifier.requires_grad_(False).eval()
