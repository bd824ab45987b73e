"""Known cases: pictures whose rank the eye knows, and what the verdict and every measure say of them.

    python benchmarks/known_cases.py                                # defects of real slices, made without training
    python benchmarks/known_cases.py --runs runs/known/8 runs/known/30 ...   # and what these runs draw

Each case takes the place of a model's pictures, 48 of each caption of sf_dry and sf_injected or of the runs' own
captions, judged against held-out slices. Prints a table in Markdown, and writes known_cases.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from data.randomness import generator
from pipelines.metrics.learnt import Learnt

Pictures = Mapping[str, np.ndarray]  # by caption, float32 (N, H, W, 3) in [0, 1]

COLUMNS = (
    "rung",
    "times_drawn",
    "skill",
    "right_caption",
    "none_of_these",
    "precision",
    "recall",
    "density",
    "coverage",
    "told",
)


@dataclass(frozen=True)
class Case:
    """What stands in the place of drawn pictures.

    make: from fresh real pictures, and training pictures, by caption. rungs: those that the eye allows.
    """

    make: Callable[[Pictures, Pictures], Pictures]
    rungs: tuple[int, ...]


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Pictures, Pictures], Pictures]:
    """Return a case that changes the fresh pictures of every caption."""
    return lambda fresh, _: {caption: _clipped(change(pictures)) for caption, pictures in fresh.items()}


def blurred(sigma_px: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pictures: ndimage.gaussian_filter(pictures, (0, sigma_px, sigma_px, 0))


def noisy(std: float) -> Callable[[np.ndarray], np.ndarray]:
    """Grey noise, of as many pixels as the pictures have."""

    def change(pictures: np.ndarray) -> np.ndarray:
        rng = generator(0, "noise", *pictures.shape)
        return pictures + rng.normal(0, std, (*pictures.shape[:3], 1))

    return change


def stretched(pictures: np.ndarray) -> np.ndarray:
    size = pictures.shape[1]
    higher = ndimage.zoom(pictures, (1, 1.5, 1, 1), order=1, grid_mode=True, mode="reflect")
    start = (higher.shape[1] - size) // 2
    return np.asarray(higher[:, start : start + size])


def turned(pictures: np.ndarray) -> np.ndarray:
    return np.rot90(pictures, axes=(1, 2))


def cast(pictures: np.ndarray) -> np.ndarray:
    return pictures * np.array([1.0, 0.9, 0.6], dtype=np.float32)


def collapsed(pictures: np.ndarray) -> np.ndarray:
    return np.repeat(pictures[:1], len(pictures), axis=0)


def _clipped(pictures: np.ndarray) -> np.ndarray:
    return np.clip(pictures, 0, 1).astype(np.float32)


def _next(fresh: Pictures) -> dict[str, np.ndarray]:
    """The pictures of the next caption, in a circle."""
    captions = list(fresh)
    return {caption: fresh[captions[(place + 1) % len(captions)]] for place, caption in enumerate(captions)}


def _mixture(fresh: Pictures, _: Pictures) -> Pictures:
    other = _next(fresh)
    return {c: np.concatenate([p[: len(p) // 2], other[c][len(p) // 2 :]]) for c, p in fresh.items()}


def _cross_fade(fresh: Pictures, _: Pictures) -> Pictures:
    other = _next(fresh)
    return {c: _clipped((p + other[c][: len(p)]) / 2) for c, p in fresh.items()}


def _copies(fresh: Pictures, training: Pictures) -> Pictures:
    return {c: training[c][: len(p)] for c, p in fresh.items()}


def _noisy_copies(fresh: Pictures, training: Pictures) -> Pictures:
    return {c: _clipped(noisy(0.1)(training[c][: len(p)])) for c, p in fresh.items()}


CASES: dict[str, Case] = {
    "real": Case(lambda fresh, _: fresh, (4,)),
    "copies of training pictures": Case(_copies, (4,)),
    "copies with noise": Case(_noisy_copies, (1, 2)),
    "gamma 1.1": Case(each(lambda pictures: pictures**1.1), (2, 3, 4)),
    "gamma 2": Case(each(lambda pictures: pictures**2), (1, 2)),
    "noise 0.02": Case(each(noisy(0.02)), (2, 3, 4)),
    "noise 0.1": Case(each(noisy(0.1)), (1, 2)),
    "blur 0.5 px": Case(each(blurred(0.5)), (2, 3)),
    "blur 1 px": Case(each(blurred(1.0)), (1, 2)),
    "blur 3 px": Case(each(blurred(3.0)), (1,)),
    "stretched by a half": Case(each(stretched), (1, 2)),
    "colour cast": Case(each(cast), (1, 2)),
    "turned by 90 degrees": Case(each(turned), (1, 2)),
    "one picture again and again": Case(each(collapsed), (1, 2)),
    "half of another caption": Case(_mixture, (1, 2)),
    "cross-fade of two captions": Case(_cross_fade, (1, 2)),
    "under wrong captions": Case(lambda fresh, _: _next(fresh), (1,)),
}


def table(found: Mapping[str, Learnt]) -> str:
    """Return the answers as a table in Markdown, a row for each case."""
    lines = ["| case | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, one in found.items():
        answers = one.as_json() | {"rung": one.standing.rung}
        lines.append(f"| {name} | " + " | ".join(_cell(answers[column]) for column in COLUMNS) + " |")
    return "\n".join(lines)


def _cell(answer: object) -> str:
    if isinstance(answer, dict):
        return f"{answer['value']:.2f}"
    return "–" if answer is None else str(answer)
