"""How images become the samples of a run: their sizes, order, places, mirrorings, and words that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.aspect_buckets import BucketedOrder, Shape, bucket_shapes, unit_px
from data.captions import is_dropped
from data.errors import SettingsError
from data.randomness import permuted_index
from data.transforms import Flip, center_crop_origin, crop, flipped, random_crop_origin


class Order(Protocol):
    """Which item stands at each position of a run."""

    def __len__(self) -> int:
        """Return the positions of an epoch."""

    def item(self, position: int) -> int:
        """Return the item at a position of the run, 0, 1, 2, ... over all epochs."""


@dataclass(frozen=True)
class ShuffledOrder:
    """Each of a number of items once in an epoch, in an order of the epoch's own."""

    num_items: int
    seed: int

    def __len__(self) -> int:
        return self.num_items

    def item(self, position: int) -> int:
        """Return the item at a position of the run; a pure function of it."""
        return permuted_index(self.seed, position, self.num_items)


@dataclass(frozen=True)
class Crops:
    """What is done to every image of a run, as a function of its position.

    resolution: side of a square crop in px; of aspect buckets, the root of the largest area. seed: of all draws.
    random_flip: mirror each image as its material allows, or not, by chance. center_crop: crop the middle, not a drawn
    place. proportion_empty_prompts: of the samples lose their caption. bucket_batch: the positions of a micro-batch
    over all processes, whose images share one aspect bucket; None for square crops.
    """

    resolution: int
    seed: int
    random_flip: bool = False
    center_crop: bool = False
    proportion_empty_prompts: float = 0.0
    bucket_batch: int | None = None

    @property
    def square(self) -> Shape:
        """The shape of a square crop."""
        return self.resolution, self.resolution

    def order(self, shapes: Sequence[Shape]) -> Order:
        """Return which item stands at each position. shapes: the (rows, columns) of each item's crop."""
        if self.bucket_batch is None:
            return ShuffledOrder(len(shapes), self.seed)
        return BucketedOrder(shapes, micro_batch=self.bucket_batch, seed=self.seed)

    def cut(
        self, pixels: np.ndarray, crop_shape: Shape, flips: Sequence[Flip], position: int
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the crop of an image (row, column[, channel]), as a view, and the (row, column) it was cut at."""
        shape = pixels.shape[0], pixels.shape[1]
        if self.center_crop:
            origin = center_crop_origin(shape, crop_shape)
        else:
            origin = random_crop_origin(shape, crop_shape, seed=self.seed, position=position)
        cropped = crop(pixels, origin, crop_shape)
        return flipped(cropped, flips, seed=self.seed, position=position) if self.random_flip else cropped, origin

    def is_dropped(self, position: int) -> bool:
        """Return whether the sample at a position loses its caption."""
        return is_dropped(proportion=self.proportion_empty_prompts, seed=self.seed, position=position)

    def manifest(self) -> dict[str, object]:
        """Return these settings as JSON can hold them."""
        return {
            "resolution_px": self.resolution,
            "seed": self.seed,
            "random_flip": self.random_flip,
            "center_crop": self.center_crop,
            "proportion_empty_prompts": self.proportion_empty_prompts,
        }

    def problems(self) -> list[str]:
        """Return one sentence for each value out of range."""
        problems = []
        if self.resolution < 1:
            problems.append(f"--resolution: found {self.resolution}, expected at least 1 px.")
        elif self.bucket_batch is not None and not bucket_shapes(self.resolution):
            problems.append(
                f"--aspect_buckets: their sides are multiples of {unit_px(self.resolution)} px. Give a --resolution of "
                f"at least {unit_px(self.resolution)}, found {self.resolution}."
            )
        if not 0 <= self.proportion_empty_prompts <= 1:
            problems.append(f"--proportion_empty_prompts: found {self.proportion_empty_prompts}, expected 0 to 1.")
        return problems


def refuse_settings(crops: Crops, *others: str) -> None:
    """Raise SettingsError with everything that is out of range. others: further problems of the data's settings."""
    if problems := [*crops.problems(), *others]:
        raise SettingsError("data settings", *problems)


def count_problems(images_per_class: int | None) -> list[str]:
    """Return what is wrong with a limit of images."""
    if images_per_class is None or images_per_class >= 1:
        return []
    return [f"--images_per_class: found {images_per_class}, expected at least 1."]


def bucket_note(order: Order, num_images: int, judged_px: int) -> str:
    """Return what is to be told of the buckets of a run; "" where there are none."""
    if not isinstance(order, BucketedOrder):
        return ""
    sizes = ", ".join(f"{rows} x {columns}: {number}" for (rows, columns), number in order.sizes.items())
    return (
        f"buckets     {num_images} images by size (rows x columns: images): {sizes}. "
        f"An epoch has {len(order)} positions, {order.num_repeats} of them repeats, so that each micro-batch of "
        f"{order.micro_batch} has one size. "
        f"Held-out images are judged as squares of {judged_px} px."
    )
