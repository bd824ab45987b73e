"""Real pictures whose law is known, and defects planted in them: what the measures of the evaluation have to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import ndimage

from data.synthetic.textures import texture
from data.synthetic.weave import weave

SIZE_PX = 64
WHITE = 50_000  # the brightest grey of the generated scans


@cache
def textures(name: str, count: int, start: int = 0) -> np.ndarray:
    """Return the middles of drawn textures of one class, float32 (count, 64, 64, 3) in [0, 1]."""
    return np.stack([shifted_texture(name, number) for number in range(start, start + count)])


def shifted_texture(name: str, number: int, rows: int = 0, columns: int = 0) -> np.ndarray:
    """Return the part of a drawn texture that lies this far below and to the right of its middle, (64, 64, 3)."""
    picture = texture(name, number)
    top, left = (picture.shape[0] - SIZE_PX) // 2 + rows, (picture.shape[1] - SIZE_PX) // 2 + columns
    return picture[top : top + SIZE_PX, left : left + SIZE_PX].astype(np.float32) / 255


@cache
def weaves(state: str, num_volumes: int, start: int = 0) -> np.ndarray:
    """Return grey pictures of warp slices of small volumes, three of each, float32 (3 num_volumes, 64, 64, 3)."""
    found = []
    for seed in range(start, start + num_volumes):
        grey = np.clip(weave(state, seed, (80, 96, 72)).grey / WHITE, 0, 1).astype(np.float32)
        found += [grey[8:72, row, 4:68] for row in (12, 48, 84)]
    return np.repeat(np.stack(found)[..., None], 3, axis=-1)


def _noisy(pictures: np.ndarray) -> np.ndarray:
    return pictures + np.random.default_rng(0).normal(0, 0.08, (*pictures.shape[:3], 1))


def _stretched(pictures: np.ndarray) -> np.ndarray:
    higher = ndimage.zoom(pictures, (1, 1.25, 1, 1), order=1, grid_mode=True, mode="reflect")
    return np.asarray(higher[:, 8 : 8 + SIZE_PX])


def _rotated(pictures: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.rotate(pictures, 10, axes=(2, 1), reshape=False, order=1, mode="reflect"))


def _without_colour(pictures: np.ndarray) -> np.ndarray:
    return np.repeat(pictures.mean(-1, keepdims=True), 3, axis=-1)


DEFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blur": lambda pictures: ndimage.gaussian_filter(pictures, (0, 1, 1, 0)),
    "noise": _noisy,
    "gamma": lambda pictures: pictures**1.3,
    "stretch": _stretched,
    "rotation": _rotated,
    "collapse": lambda pictures: np.repeat(pictures[:1], len(pictures), axis=0),
    "colour loss": _without_colour,
}


def with_defect(name: str, pictures: np.ndarray) -> np.ndarray:
    """Return pictures with a defect, float32 in [0, 1]."""
    return np.clip(DEFECTS[name](pictures), 0, 1).astype(np.float32)


def directions(rng: np.random.Generator, count: int, mean: Sequence[float], spread: float = 0.3) -> np.ndarray:
    """Return feature vectors scattered about a mean, (count, D)."""
    return np.asarray(mean, dtype=np.float64) + rng.normal(0, spread, (count, len(mean)))
