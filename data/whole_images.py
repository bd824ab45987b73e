"""Training images as they are before they are cut: everything that a run can have seen of them, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class WholeImage:
    """One training image at the scale of the run's crops, each side as long as theirs or longer.

    pixels: float32 (3, H, W) in [-1, 1]. caption: its own, even where the run drops some. name: where it is from.
    """

    pixels: np.ndarray
    caption: str
    name: str


class WholeImages(Sequence[WholeImage]):
    """A sequence of whole images, each read when it is asked for and not kept."""

    def __init__(self, num_images: int, read: Callable[[int], WholeImage]) -> None:
        """read: returns the image at a place, 0 to num_images - 1."""
        self._num_images, self._read = num_images, read

    def __len__(self) -> int:
        return self._num_images

    @overload
    def __getitem__(self, place: int) -> WholeImage: ...
    @overload
    def __getitem__(self, place: slice) -> WholeImages: ...
    def __getitem__(self, place: int | slice) -> WholeImage | WholeImages:
        places = range(self._num_images)[place]
        return self._read(places) if isinstance(places, int) else self.at(places)

    def at(self, places: Sequence[int]) -> WholeImages:
        """Return the images at these places."""
        return WholeImages(len(places), lambda place: self._read(places[place]))
