"""Whole training images as pictures, read one by one: what a search for copies goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from data.slices import evenly_spaced
from data.whole_images import WholeImages


class WholePictures(Sequence[np.ndarray]):
    """The pictures of whole images, each float32 (H, W, 3) in [0, 1], read when it is asked for and not kept."""

    def __init__(self, images: WholeImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> WholePictures: ...
    def __getitem__(self, place: int | slice) -> np.ndarray | WholePictures:
        if isinstance(place, slice):
            return WholePictures(self.images[place])
        return to_pictures(self.images[place].pixels)

    def spread(self, most: int) -> WholePictures:
        """Return at most a number of these, evenly spaced."""
        return WholePictures(self.images.at(evenly_spaced(len(self), min(most, len(self)))))

    def place(self, number: int, origin_px: tuple[int, int]) -> str:
        """Return where a window of a picture is, as "dry.tif warp 87 @ (12, 40) px"."""
        row, column = origin_px
        return f"{self.images[number].name} @ ({row}, {column}) px"


def to_pictures(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (..., 3, H, W) in [-1, 1] as pictures (..., H, W, 3) float32 in [0, 1]."""
    return np.clip((np.moveaxis(pixels, -3, -1) + 1) / 2, 0, 1).astype(np.float32)
