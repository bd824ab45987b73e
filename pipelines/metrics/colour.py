"""Colours of pictures: whether a model still draws in colour after training on grey scans, and in the right ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import Comparison, compared, ratio_over_prompts, written
from pipelines.metrics.inputs import checked_pictures, luminance

_NUM_BINS = 128
# what 8-bit sRGB colours reach in CIELAB (D65)
_LAB_RANGES = {"L": (0.0, 100.0), "a": (-87.0, 99.0), "b": (-108.0, 95.0)}


def saturation(pictures: np.ndarray) -> np.ndarray:
    """Return the mean HSV saturation of each picture, (N,), 0 (grey) to 1: (max - min) / max, and 0 for black.

    pictures: float32 (N, H, W, 3) in [0, 1].
    """
    pictures = checked_pictures(pictures, "saturation")
    largest, smallest = pictures.max(-1), pictures.min(-1)
    spread = np.divide(largest - smallest, largest, out=np.zeros_like(largest), where=largest > 0)
    return np.asarray(spread.mean((1, 2), dtype=np.float64))


def tint(pictures: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean over pixels of the largest difference of two channels, 0 to 1: 0 for pictures that are grey.

    pictures: float32 (N, H, W, 3) in [0, 1]. Resampled over pictures.
    """
    pictures = checked_pictures(pictures, "tint")
    spread = (pictures.max(-1) - pictures.min(-1)).mean((1, 2), dtype=np.float64)
    return bootstrap_interval(lambda counts: counts @ spread / counts.sum(1), [len(spread)], seed=seed)


def colourfulness(pictures: np.ndarray) -> np.ndarray:
    """Return the colourfulness of each picture, (N,), 0 (grey) to about 150, in units of 8-bit colours.

    M = sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2) with rg = R - G and yb = (R + G) / 2 - B.
    Source: D. Hasler and S. Suesstrunk, "Measuring colourfulness in natural images", 2003, equation M^(3).
    pictures: float32 (N, H, W, 3) in [0, 1].
    """
    red, green, blue = np.moveaxis(checked_pictures(pictures, "colourfulness").astype(np.float64) * 255, -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(opponents.var((2, 3)).sum(0))
    offset = np.sqrt(np.square(opponents.mean((2, 3))).sum(0))
    return np.asarray(spread + 0.3 * offset)


@dataclass(frozen=True)
class ColourRetention:
    """Saturation and colourfulness of the tuned model's images over the base model's; 1 is unchanged.

    floor_saturation, floor_colourfulness: the same of base images with other seeds. None where the base draws in grey.
    """

    saturation: Estimate | None
    colourfulness: Estimate | None
    floor_saturation: Estimate | None
    floor_colourfulness: Estimate | None

    @property
    def verdict(self) -> Comparison | None:
        """Whether the saturation is higher or lower than that of base images with other seeds; None without colour."""
        if self.saturation is None or self.floor_saturation is None:
            return None
        return compared(self.saturation, self.floor_saturation)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "saturation": written(self.saturation),
            "colourfulness": written(self.colourfulness),
            "floor_saturation": written(self.floor_saturation),
            "floor_colourfulness": written(self.floor_colourfulness),
            "verdict": self.verdict,
        }


def colour_retention(
    tuned: Sequence[np.ndarray], base: Sequence[np.ndarray], base_other: Sequence[np.ndarray], *, seed: int = 0
) -> ColourRetention:
    """Return how much colour the tuned model has kept on the prompts of a ring.

    Pictures of each prompt, float32 (N, H, W, 3) in [0, 1]: tuned and base with the same seeds; base_other: as many of
    the base with other seeds. Sums over all images before dividing; resampled over images and prompts.
    Raises DataError for sets of different sizes.
    """
    sizes = [[len(pictures) for pictures in group] for group in (tuned, base, base_other)]
    if sizes[0] != sizes[1] or sizes[0] != sizes[2]:
        raise DataError(
            "colour", f"found {sizes[0]} tuned, {sizes[1]} base and {sizes[2]} other base images, expected as many."
        )
    found: list[Estimate | None] = []
    for group in (tuned, base_other):
        for measure in (saturation, colourfulness):
            of_group, of_base = [[measure(pictures) for pictures in each] for each in (group, base)]
            has_colour = max(float(each.max()) for each in of_base) > 0
            found.append(ratio_over_prompts(of_group, of_base, seed=seed) if has_colour else None)
    return ColourRetention(*found)


def grey_distance(one: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the 1-Wasserstein distance of the brightness of two sets' pixels, 0 to 1: the area between their laws.

    one, other: pictures, float32 (N, H, W, 3) and (M, H, W, 3) in [0, 1]; resampled over images. Brightness is
    counted in 128 steps. Never negative: hold it against that of two sets of real images.
    """
    one, other = (checked_pictures(each, f"{name} pictures") for each, name in ((one, "first"), (other, "second")))
    return _histogram_distance(luminance(one), luminance(other), (0.0, 1.0), seed)


def lab_distances(one: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Mapping[str, Estimate]:
    """Return the 1-Wasserstein distances of the CIELAB lightness "L" and colours "a", "b" of two sets' pixels.

    In units of CIELAB, where a difference of about 2 is just seen; arguments as of `grey_distance`.
    """
    from skimage.color import rgb2lab

    one, other = (checked_pictures(each, f"{name} pictures") for each, name in ((one, "first"), (other, "second")))
    converted = rgb2lab(one), rgb2lab(other)
    return {
        name: _histogram_distance(converted[0][..., place], converted[1][..., place], limits, seed)
        for place, (name, limits) in enumerate(_LAB_RANGES.items())
    }


def _histogram_distance(one: np.ndarray, other: np.ndarray, limits: tuple[float, float], seed: int) -> Estimate:
    """one, other: (N, H, W), (M, H, W) of one channel."""
    width = (limits[1] - limits[0]) / _NUM_BINS
    laws = [
        np.stack([np.histogram(image, _NUM_BINS, limits)[0] / image.size for image in images]).cumsum(1)
        for images in (one, other)
    ]

    def distance(in_one: np.ndarray, in_other: np.ndarray) -> np.ndarray:
        first, second = (
            (counts @ law) / counts.sum(1, keepdims=True) for counts, law in zip((in_one, in_other), laws, strict=True)
        )
        return np.asarray(np.abs(first - second).sum(1) * width)

    return bootstrap_interval(distance, [len(one), len(other)], seed=seed)
