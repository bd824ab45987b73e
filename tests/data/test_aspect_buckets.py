"""Sizes for images of any proportions, and epochs whose micro-batches have one size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.aspect_buckets import (
    BucketedOrder,
    bucket_of,
    bucket_shapes,
    covering_short_side,
    next_resolution,
    shortest_side,
    unit_px,
    window_shape,
)
from data.images import resized_shape

RESOLUTIONS = st.integers(8, 1100)
SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("resolution", "unit"), [(8, 8), (64, 8), (100, 8), (128, 16), (256, 32), (512, 64), (768, 64), (1024, 64)]
)
def test_the_unit_is_an_eighth_of_the_resolution_in_eights(resolution: int, unit: int) -> None:
    assert unit_px(resolution) == unit


@settings(derandomize=True, max_examples=200, deadline=None)
@given(RESOLUTIONS)
def test_no_bucket_is_larger_than_the_square_of_the_resolution_nor_longer_than_twice_it(resolution: int) -> None:
    shapes, unit = bucket_shapes(resolution), unit_px(resolution)
    square = resolution // unit * unit
    assert (square, square) in shapes
    assert set(shapes) == {(columns, rows) for rows, columns in shapes}
    for rows, columns in shapes:
        assert rows * columns <= resolution**2
        assert rows % unit == columns % unit == 0
        assert resolution / 2 <= min(rows, columns) <= max(rows, columns) <= 2 * resolution
        # not one unit more of the short side would fit
        short, long = sorted((rows, columns))
        assert (short + unit) * long > resolution**2 or short == long


def test_the_buckets_of_512_px_are_the_usual_ones() -> None:
    lying = [(256, 1024), (256, 960), (256, 896), (256, 832), (320, 768), (320, 704), (384, 640), (448, 576)]
    assert bucket_shapes(512) == (*lying, (512, 512), *((columns, rows) for rows, columns in reversed(lying)))
    assert bucket_shapes(7) == ()


@pytest.mark.parametrize(
    ("shape", "bucket"),
    [
        ((359, 970), (320, 768)),
        ((287, 701), (320, 768)),
        ((359, 702), (320, 704)),
        ((287, 633), (320, 704)),
        ((197, 863), (256, 1024)),
        ((863, 197), (1024, 256)),
        ((10, 10), (512, 512)),
        ((1, 9000), (256, 1024)),
    ],
)
def test_an_image_comes_into_the_bucket_of_its_proportions(shape: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(shape, bucket_shapes(512)) == bucket


@settings(derandomize=True, max_examples=300, deadline=None)
@given(SIDES, SIDES, RESOLUTIONS)
def test_one_factor_covers_the_bucket_and_no_smaller_one_does(rows: int, columns: int, resolution: int) -> None:
    bucket = bucket_of((rows, columns), bucket_shapes(resolution))
    short = covering_short_side((rows, columns), bucket)
    covered = resized_shape((rows, columns), short)
    assert covered[0] >= bucket[0]
    assert covered[1] >= bucket[1]
    exact = max(bucket[0] / rows, bucket[1] / columns) * min(rows, columns)
    assert exact - 1e-6 <= short < exact + 1


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), RESOLUTIONS)
def test_a_window_lies_inside_its_slice_and_keeps_the_full_height_up_to_a_unit(
    rows: int, columns: int, resolution: int
) -> None:
    unit = unit_px(resolution)
    window = window_shape((rows, columns), resolution)
    if min(rows, columns) < shortest_side(resolution):
        assert window is None
        lower = next_resolution(min(rows, columns), resolution)
        assert lower < resolution
        assert lower == 0 or window_shape((rows, columns), lower) is not None
        return
    assert window is not None
    assert window[0] % unit == window[1] % unit == 0
    assert resolution / 2 <= min(window) <= max(window) <= 2 * resolution
    assert window[0] * window[1] <= resolution**2
    assert window[0] <= rows
    assert window[1] <= columns
    assert window[0] > min(rows, resolution) - unit


@pytest.mark.parametrize(
    ("shape", "resolution", "window"),
    [
        ((359, 970), 512, (320, 768)),
        ((287, 701), 512, (256, 640)),
        ((702, 970), 512, (512, 512)),
        ((700, 300), 512, (640, 256)),  # narrow: more rows take the room
        ((197, 863), 384, (192, 768)),
        ((197, 863), 512, None),  # 256 px are the least side
    ],
)
def test_windows_of_the_cross_sections_of_a_fabric(
    shape: tuple[int, int], resolution: int, window: tuple[int, int] | None
) -> None:
    assert window_shape(shape, resolution) == window


BUCKETS = st.lists(st.sampled_from([(8, 8), (8, 16), (16, 8), (24, 8)]), min_size=1, max_size=40)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(BUCKETS, st.integers(1, 9), st.integers(0, 5), st.integers(0, 1000))
def test_an_epoch_shows_every_item_and_each_micro_batch_has_one_size(
    buckets: list[tuple[int, int]], micro_batch: int, epoch: int, seed: int
) -> None:
    order = BucketedOrder(buckets, micro_batch=micro_batch, seed=seed)
    assert len(order) % micro_batch == 0
    positions = range(epoch * len(order), (epoch + 1) * len(order))
    items = [order.item(position) for position in positions]
    for start in range(0, len(items), micro_batch):
        assert len({buckets[item] for item in items[start : start + micro_batch]}) == 1
    times = Counter(items)
    assert set(times) == set(range(len(buckets)))
    for shape, number in Counter(buckets).items():
        of_bucket = [times[item] for item, bucket in enumerate(buckets) if bucket == shape]
        assert sum(of_bucket) == -(-number // micro_batch) * micro_batch  # not a batch more than is needed
        assert max(of_bucket) - min(of_bucket) <= 1
    assert order.num_repeats == len(items) - len(buckets) == sum(times.values()) - len(times)
    # a pure function: any order, any object
    twin = BucketedOrder(buckets, micro_batch=micro_batch, seed=seed)
    assert [twin.item(position) for position in reversed(positions)] == items[::-1]


def test_epochs_differ_and_so_does_who_is_shown_twice() -> None:
    buckets = [(8, 8)] * 5 + [(8, 16)] * 3
    order = BucketedOrder(buckets, micro_batch=4, seed=1)
    assert len(order) == 12
    epochs = [[order.item(epoch * 12 + offset) for offset in range(12)] for epoch in range(60)]
    assert len({tuple(items) for items in epochs}) == 60
    twice = Counter(item for items in epochs for item, times in Counter(items).items() if times > 1)
    assert set(twice) == set(range(8))
    # 3 of 5 and 1 of 3: 36 and 20 of 60 epochs, each within 4 standard deviations
    assert all(abs(twice[item] - 36) < 16 for item in range(5))
    assert all(abs(twice[item] - 20) < 15 for item in range(5, 8))
    firsts = Counter(buckets[items[0]] for items in epochs)
    assert set(firsts) == {(8, 8), (8, 16)}
    other = BucketedOrder(buckets, micro_batch=4, seed=2)
    assert [other.item(position) for position in range(12)] != epochs[0]


def test_the_manifest_says_buckets_and_repeats() -> None:
    order = BucketedOrder([(8, 16)] * 5 + [(8, 8)] * 4, micro_batch=4, seed=0)
    assert order.manifest() == {
        "micro_batch": 4,
        "epoch_positions": 12,
        "num_repeats": 3,
        "buckets": [
            {"size_px": [8, 8], "num_images": 4, "num_repeats": 0},
            {"size_px": [8, 16], "num_images": 5, "num_repeats": 3},
        ],
    }


def test_a_long_run_keeps_few_orders_in_memory() -> None:
    order = BucketedOrder([(8, 8)] * 1000, micro_batch=8, seed=0)
    first = [order.item(position) for position in range(10)]
    for epoch in range(20):
        order.item(epoch * 1000)
    assert [order.item(position) for position in range(10)] == first
    assert np.array_equal(sorted(order.item(position) for position in range(1000)), np.arange(1000))
