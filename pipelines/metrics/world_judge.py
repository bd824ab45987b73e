"""Whether a picture shows what a caption of the embedded base's world says.

The world is drawn by code, so the truth about a drawn picture is known: the colour check is tried on drawn pictures,
and the classifier of texture, shape and number is trained on them. Neither has seen a generated picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from data.randomness import derive, generator
from data.synthetic.world import GAP_TINT, NUMBERS, PALETTE, SHAPES, SIZE_PX, TEXTURES, Scene, all_scenes, draw

NAMES = tuple(PALETTE)
_REFERENCE = np.array([PALETTE[name] for name in NAMES], float)
NEAR = 70.0  # Euclidean distance in 8-bit RGB within which a pixel has a name; the closest two colours are 85 apart
BORDER_PX = 4


def colours_named(pixels: np.ndarray, scene: Scene) -> bool:
    """Return True when the two colours of the caption are the two that the picture shows, each in its place.

    pixels: uint8 (row, column, 3). A pixel has the name of the nearest palette colour, or none where that is further
    than NEAR, or where the tint that the caption's colours have in the gaps of a textured shape is nearer still.
    Textures: the two commonest names are the caption's. Shapes: the commonest name along the border is the
    background's, and the commonest other name is the shapes'.
    """
    flat = pixels.reshape(-1, 3).astype(float)
    distance = np.linalg.norm(flat[:, None] - _REFERENCE, axis=2)
    tint = np.array(PALETTE[scene.background]) * (1 - GAP_TINT) + np.array(PALETTE[scene.colour]) * GAP_TINT
    limit = np.minimum(NEAR, np.linalg.norm(flat - tint, axis=1)) if scene.shape and scene.texture else NEAR
    name = np.where(distance.min(1) < limit, distance.argmin(1), len(NAMES)).reshape(pixels.shape[:2])
    wanted = NAMES.index(scene.colour), NAMES.index(scene.background)
    counts = np.bincount(name.ravel(), minlength=len(NAMES) + 1)[:-1]
    if not scene.shape:
        return set(np.argsort(counts)[-2:]) == set(wanted)
    inner = name[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    border = counts - np.bincount(inner.ravel(), minlength=len(NAMES) + 1)[:-1]
    background = int(border.argmax())
    counts[background] = 0
    return background == wanted[1] and int(counts.argmax()) == wanted[0]


@dataclass(frozen=True)
class Reading:
    """What the classifier sees, one entry for each picture; "" where there is no texture or shape."""

    texture: list[str]
    shape: list[str]
    number: list[str]


class WorldClassifier(nn.Module):
    """A small convolutional network that names texture, shape and number of a picture of the world."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(16 * 4 * width, len(names)) for names in _ATTRIBUTES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels: (B, 3, 64, 64) in [-1, 1]. Returns logits (B, 9), (B, 5), (B, 4): texture, shape, number."""
        features = self.features(pixels).flatten(1)
        return [head(features) for head in self.heads]

    @torch.inference_mode()
    def read(self, pictures: np.ndarray) -> Reading:
        """pictures: uint8 (N, 64, 64, 3)."""
        best = [[] for _ in _ATTRIBUTES]  # type: list[list[str]]
        for start in range(0, len(pictures), 128):
            logits = self(_to_tensor(pictures[start : start + 128]))
            for names, scores, out in zip(_ATTRIBUTES, logits, best, strict=True):
                out.extend(names[i] for i in scores.argmax(1).tolist())
        return Reading(*best)


_ATTRIBUTES: tuple[tuple[str, ...], ...] = (("", *TEXTURES), ("", *SHAPES), NUMBERS)


def content_named(reading: Reading, scenes: Sequence[Scene]) -> np.ndarray:
    """Return bool (N, 3): texture, shape and number right. What a caption does not say must not be there."""
    seen = zip(reading.texture, reading.shape, reading.number, strict=True)
    return np.array([(t == s.texture, p == s.shape, n == s.number) for (t, p, n), s in zip(seen, scenes, strict=True)])


def train_classifier(seed: int, steps: int, report: Callable[[int, float], None] | None = None) -> WorldClassifier:
    """Train the classifier on pictures drawn for it, half of them blurred or noisy; batch 64, AdamW, falling rate.

    Faults are part of its training because generated pictures have them: a classifier of clean drawings only would
    judge the sharpness of an edge rather than the shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "judge"))
        model = WorldClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pictures, scenes = drawn_pictures(64, seed, f"judge-{step}", faults=True)
        targets = [
            torch.tensor([names.index(value) for value in values])
            for names, values in zip(
                _ATTRIBUTES,
                ([s.texture for s in scenes], [s.shape for s in scenes], [s.number for s in scenes]),
                strict=True,
            )
        ]
        logits = model(_to_tensor(pictures))
        loss = sum((nn.functional.cross_entropy(a, b) for a, b in zip(logits, targets, strict=True)), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step + 1, loss.item())
    return model.eval()


def drawn_pictures(count: int, seed: int, purpose: str, *, faults: bool = False) -> tuple[np.ndarray, list[Scene]]:
    """Draw scenes, a third of each kind: uint8 (count, 64, 64, 3) and what they show."""
    kinds = _scenes_by_kind()
    pictures, scenes = [], []
    for index in range(count):
        rng = generator(seed, purpose, index)
        kind = kinds[index % 3]
        scene = kind[rng.integers(len(kind))]
        picture = draw(scene, rng, SIZE_PX)
        pictures.append(_with_faults(picture, rng) if faults and rng.random() < 0.5 else picture)
        scenes.append(scene)
    return np.stack(pictures), scenes


def _scenes_by_kind() -> tuple[list[Scene], list[Scene], list[Scene]]:
    scenes = all_scenes()
    return (
        [s for s in scenes if not s.shape],
        [s for s in scenes if s.shape and not s.texture],
        [s for s in scenes if s.shape and s.texture],
    )


def _with_faults(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(picture.astype(np.float32), (sigma := rng.uniform(0, 1.2), sigma, 0))
    noisy = blurred + rng.normal(0, rng.uniform(0, 15), picture.shape)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def _to_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
