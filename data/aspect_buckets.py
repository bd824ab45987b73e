"""Aspect buckets: a few sizes of about one area for images of any proportions, and epochs in batches of one size.

A batch of a diffusion model is one array, so its images have one size. Square crops lose the ends of long images;
buckets (NovelAI 2022, "Aspect ratio bucketing") keep nearly all of each image, at the memory of a square one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data.randomness import generator

Shape = tuple[int, int]  # (rows, columns) in px
SMALLEST_UNIT_PX, LARGEST_UNIT_PX = 8, 64
UNITS_PER_SIDE = 8  # of the square bucket, at most: 512 px has 8 x 64
LARGEST_STRETCH = 2  # a side is at most this multiple of the resolution, and at least its inverse


def unit_px(resolution: int) -> int:
    """Return the step of all sides: an eighth of the resolution as a multiple of 8, 8 to 64 px."""
    eighth = resolution // UNITS_PER_SIDE
    return max(SMALLEST_UNIT_PX, min(LARGEST_UNIT_PX, eighth - eighth % SMALLEST_UNIT_PX))


def shortest_side(resolution: int) -> int:
    """Return the least side of a bucket: half the resolution, rounded up to units."""
    unit = unit_px(resolution)
    return -(-resolution // LARGEST_STRETCH // unit) * unit


def next_resolution(shortest_px: int, resolution: int) -> int:
    """Return the largest resolution below this one whose buckets may have sides of so many px; 0 where none has."""
    return next((lower for lower in range(resolution - 1, 0, -1) if shortest_side(lower) <= shortest_px), 0)


def bucket_shapes(resolution: int) -> tuple[Shape, ...]:
    """Return every bucket of a resolution, the widest first; none where the resolution is less than 8 px.

    For each long side the largest short side whose area stays within resolution^2; all sides are multiples of
    `unit_px` between half the resolution and twice the resolution. Upright and lying buckets are mirror images.
    """
    unit = unit_px(resolution)
    shapes = set()
    for long in range(unit, LARGEST_STRETCH * resolution + 1, unit):
        short = min(long, resolution**2 // long // unit * unit)
        if short >= shortest_side(resolution):
            shapes |= {(short, long), (long, short)}
    # of the squares only the largest: the others hold less of the same
    squares = [shape for shape in shapes if shape[0] == shape[1]]
    return tuple(sorted(shapes - set(sorted(squares)[:-1]), key=lambda shape: (shape[0] / shape[1], shape)))


def bucket_of(shape: Shape, buckets: Sequence[Shape]) -> Shape:
    """Return the bucket that keeps the largest part of an image after `covering_short_side`; the larger one of equals.

    shape: (rows, columns) of the image, in any unit.
    """
    wide = shape[1] / shape[0]

    def kept(bucket: Shape) -> tuple[float, int]:
        ratio = wide * bucket[0] / bucket[1]
        return min(ratio, 1 / ratio), bucket[0] * bucket[1]

    return max(buckets, key=kept)


def covering_short_side(shape: Shape, bucket: Shape) -> int:
    """Return the length of an image's short side, in px, at which the image just covers a bucket."""
    short = min(shape)
    return max(-(-side * short // size) for size, side in zip(shape, bucket, strict=True))  # rounded up


def window_shape(shape: Shape, resolution: int) -> Shape | None:
    """Return the (rows, columns) of a crop from a slice whose scale must stay; None where the slice is too small.

    The most rows that fit, at most the resolution: cross sections keep their full height. Then the most columns, then
    further rows; units, area and sides as those of `bucket_shapes`.
    """
    unit, longest = unit_px(resolution), LARGEST_STRETCH * resolution
    if min(*shape, resolution) < shortest_side(resolution):
        return None
    rows = min(shape[0], resolution) // unit * unit
    columns = min(shape[1], resolution**2 // rows, longest) // unit * unit
    return min(shape[0], resolution**2 // columns, longest) // unit * unit, columns


class BucketedOrder:
    """Which item stands at each position of a run, so that each micro-batch holds items of one bucket.

    An epoch is a fixed number of whole micro-batches: each bucket's items in an order of the epoch's own, its last
    micro-batch filled by further items of the bucket, the first of that order; then all micro-batches in an order of
    the epoch's own. So every item is there in each epoch, and which one is there twice changes.
    """

    def __init__(self, buckets: Sequence[Shape], *, micro_batch: int, seed: int) -> None:
        """buckets: that of each item. micro_batch: positions of all processes together, in one micro-step."""
        assert buckets, "an order has at least one item"
        assert micro_batch >= 1, f"a micro-batch of {micro_batch}"
        self.micro_batch, self.seed = micro_batch, seed
        self.sizes = dict(sorted(Counter(buckets).items()))
        self._items = sorted(range(len(buckets)), key=lambda item: (buckets[item], item))

    def __len__(self) -> int:
        """Return the positions of an epoch: a multiple of micro_batch."""
        return sum(self._places(number) for number in self.sizes.values())

    @property
    def num_repeats(self) -> int:
        """How many positions of an epoch show an item that the epoch has already."""
        return len(self) - len(self._items)

    def item(self, position: int) -> int:
        """Return the item at a position of the run, 0, 1, 2, ... over all epochs; a pure function of it."""
        epoch, offset = divmod(position, len(self))
        return self._items[_order(self.seed, epoch, tuple(self.sizes.values()), self.micro_batch)[offset]]

    def manifest(self) -> dict[str, object]:
        """Return buckets, counts and repeats, as JSON can hold them."""
        return {
            "micro_batch": self.micro_batch,
            "epoch_positions": len(self),
            "num_repeats": self.num_repeats,
            "buckets": [
                {"size_px": list(shape), "num_images": number, "num_repeats": self._places(number) - number}
                for shape, number in self.sizes.items()
            ],
        }

    def _places(self, num_items: int) -> int:
        return -(-num_items // self.micro_batch) * self.micro_batch


@lru_cache(maxsize=4)  # a loader needs the epoch it is in and the next one
def _order(seed: int, epoch: int, sizes: tuple[int, ...], micro_batch: int) -> np.ndarray:
    """Return the items of an epoch's positions, numbered through bucket after bucket."""
    batches = []
    first = 0
    for number, size in enumerate(sizes):
        order = first + generator(seed, "order-in-bucket", epoch, number).permutation(size)
        batches.append(np.resize(order, (-(-size // micro_batch), micro_batch)))  # goes round where it is too short
        first += size
    return generator(seed, "order-of-batches", epoch).permutation(np.concatenate(batches)).ravel()
