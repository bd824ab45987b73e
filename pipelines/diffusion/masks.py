"""Masks of inpainting: which pixels of a picture are known. The six of RePaint (Lugmayr et al. 2022, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from data.errors import SettingsError
from data.images import read_image
from data.randomness import generator

Mask = np.ndarray
"""bool (row, column), True where the pixel is known."""


def wide(size_px: int, seed: int = 0) -> Mask:
    """Return a mask whose unknown part is a few thick strokes (after LaMa's wide masks, Suvorov et al. 2022)."""
    return _strokes(size_px, seed, "wide", num_strokes=2, width=size_px // 6)


def thin(size_px: int, seed: int = 0) -> Mask:
    """Return a mask whose unknown part is many thin strokes (after LaMa's narrow masks)."""
    return _strokes(size_px, seed, "thin", num_strokes=5, width=max(2, size_px // 24))


def expand(size_px: int) -> Mask:
    """Return a mask that knows the middle square alone, of half the side: the outside is drawn."""
    known = np.zeros((size_px, size_px), dtype=bool)
    inside = slice(size_px // 4, size_px // 4 + size_px // 2)
    known[inside, inside] = True
    return known


def half(size_px: int) -> Mask:
    """Return a mask that knows the left half."""
    known = np.zeros((size_px, size_px), dtype=bool)
    known[:, : size_px // 2] = True
    return known


def every_second_pixel(size_px: int) -> Mask:
    """Return a mask that knows one pixel of each 2 x 2: super-resolution by 2."""
    known = np.zeros((size_px, size_px), dtype=bool)
    known[::2, ::2] = True
    return known


def alternate_lines(size_px: int) -> Mask:
    """Return a mask that knows every second row."""
    known = np.zeros((size_px, size_px), dtype=bool)
    known[::2] = True
    return known


MASKS: Mapping[str, Callable[[int], Mask]] = MappingProxyType(
    {
        "wide": wide,
        "thin": thin,
        "expand": expand,
        "half": half,
        "every_second_pixel": every_second_pixel,
        "alternate_lines": alternate_lines,
    }
)


def read_mask(path: Path, size_px: int) -> Mask:
    """Return the mask of a picture: white is to be drawn, black is known, as in diffusers' inpainting.

    Raises DataError for a file that is no picture, SettingsError for another size than size_px squared, for greys in
    between, and for a mask without a known or without an unknown pixel.
    """
    grey = np.asarray(read_image(path), dtype=np.float64).mean(axis=-1)
    problems = []
    if grey.shape != (size_px, size_px):
        problems.append(f"found {grey.shape[0]} x {grey.shape[1]} px, expected {size_px} x {size_px}.")
    levels = np.unique(grey)
    between = levels[(levels > 0) & (levels < grey.max())]
    if between.size:
        problems.append(f"found {between.size} greys between black and white, expected black and white alone.")
    if levels.size < 2:
        problems.append("found one colour alone, expected white where to draw and black where the picture is known.")
    if problems:
        raise SettingsError(str(path), *problems)
    return grey == 0


def _strokes(size_px: int, seed: int, purpose: str, *, num_strokes: int, width: int) -> Mask:
    rng = generator(seed, "mask", purpose, size_px)
    canvas = Image.new("1", (size_px, size_px), 1)
    pen = ImageDraw.Draw(canvas)
    for _ in range(num_strokes):
        corners = [tuple(float(value) for value in rng.uniform(0, size_px, 2)) for _ in range(4)]
        pen.line(corners, fill=0, width=width, joint="curve")
    return np.array(canvas, dtype=bool)
