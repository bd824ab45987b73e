import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.splits import (
    DECORRELATED,
    SMALLEST_GAP_PX,
    Block,
    effective_sample_size,
    manifest_hash,
    slice_autocorrelation,
    slice_axes,
    slice_correlation,
    split_volume,
    whole_block,
)
from data.volume_specs import PLANES, VolumeSpec
from data.volumes import Volume

MAPS = [dict(zip(PLANES, axes, strict=True)) for axes in itertools.permutations(range(3))]
DEFAULT = MAPS[0]


def volume_of(voxels: np.ndarray, planes: dict[str, int] = DEFAULT) -> Volume:
    return Volume(VolumeSpec("dry", Path("dry.tif"), planes), voxels, None, (0.0, 1.0))


def numbered(shape: tuple[int, int, int], planes: dict[str, int] = DEFAULT) -> Volume:
    """A volume in which every voxel has a value of its own."""
    return volume_of(np.arange(np.prod(shape), dtype=np.int64).reshape(shape), planes)


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(7).random(shape, dtype=np.float32)


def voxels_of(volume: Volume, block: Block, plane: str) -> np.ndarray:
    return np.concatenate([block.plane(volume, plane, i).ravel() for i in block.indices(volume, plane)])


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(24, 60)),
    fraction=st.floats(0.05, 0.6),
    smallest_px=st.integers(1, 12),
    planes=st.sampled_from(MAPS),
)
@settings(max_examples=120, deadline=None)
def test_no_voxel_is_shared_and_the_gap_is_kept(
    shape: tuple[int, int, int], fraction: float, smallest_px: int, planes: dict[str, int]
) -> None:
    sizes = [0, 0, 0]
    for plane, size in zip(PLANES, shape, strict=True):
        sizes[planes[plane]] = size
    volume = numbered((sizes[0], sizes[1], sizes[2]), planes)
    num_held_out = max(smallest_px, round(shape[2] * fraction))
    if shape[2] - num_held_out - SMALLEST_GAP_PX < smallest_px:  # these are too short for a measured gap above 16
        with pytest.raises(DataError, match="Choose a smaller --resolution"):
            split_volume(volume, smallest_px=smallest_px, held_out_fraction=fraction)
        return
    split = split_volume(volume, smallest_px=smallest_px, held_out_fraction=fraction)
    axis = planes["weft"]
    assert split.axis == axis
    assert split.gap_px >= SMALLEST_GAP_PX
    seen = {side: {plane: voxels_of(volume, block, plane) for plane in PLANES}
            for side, block in (("training", split.training), ("held_out", split.held_out))}  # fmt: skip
    for plane, other in itertools.product(PLANES, PLANES):
        assert not np.intersect1d(seen["training"][plane], seen["held_out"][other]).size
    last = max(np.unravel_index(seen["training"][plane], volume.shape)[axis].max() for plane in PLANES)
    first = min(np.unravel_index(seen["held_out"][plane], volume.shape)[axis].min() for plane in PLANES)
    assert first - last - 1 == split.gap_px
    assert first == volume.shape[axis] - num_held_out
    assert last + 1 >= smallest_px


@pytest.mark.parametrize("planes", MAPS)
def test_slices_of_a_block_hold_each_of_its_voxels_once(planes: dict[str, int]) -> None:
    volume = numbered((5, 6, 7), planes)
    block = Block(((1, 4), (2, 6), (0, 5)))
    expected = volume.voxels[1:4, 2:6, 0:5]
    for plane in PLANES:
        slices = [block.plane(volume, plane, i) for i in block.indices(volume, plane)]
        assert {image.shape for image in slices} == {block.slice_shape(volume, plane)}
        np.testing.assert_array_equal(np.sort(np.ravel(slices)), expected.ravel())


@pytest.mark.parametrize("planes", MAPS)
def test_cross_planes_stand_upright_in_any_file_order(planes: dict[str, int]) -> None:
    # values change along the thickness only
    shape = [3, 3, 3]
    shape[planes["thickness"]] = 4
    ramp = np.arange(4.0).reshape([4 if axis == planes["thickness"] else 1 for axis in range(3)])
    volume = volume_of(np.broadcast_to(ramp, shape).copy(), planes)
    block = whole_block(volume)
    for plane in ("warp", "weft"):
        np.testing.assert_array_equal(block.plane(volume, plane, 0), np.arange(4.0)[:, None].repeat(3, axis=1))
        assert slice_axes(volume, plane)[0] == planes["thickness"]
    assert np.ptp(block.plane(volume, "thickness", 2)) == 0


@pytest.mark.parametrize("planes", MAPS)
def test_columns_of_thickness_slices_run_along_the_weft_planes_axis(planes: dict[str, int]) -> None:
    ramp = np.arange(4.0).reshape([4 if axis == planes["weft"] else 1 for axis in range(3)])
    volume = volume_of(np.broadcast_to(ramp, [4, 4, 4]).copy(), planes)
    np.testing.assert_array_equal(whole_block(volume).plane(volume, "thickness", 1), np.arange(4.0)[None].repeat(4, 0))


def test_a_block_says_where_its_slices_begin() -> None:
    volume = numbered((5, 6, 7))
    block = Block(((1, 4), (2, 6), (3, 5)))
    for plane, origin in (("thickness", (2, 3)), ("warp", (1, 3)), ("weft", (1, 2))):
        assert block.origin(volume, plane) == origin
        index = block.indices(volume, plane)[0]
        assert block.plane(volume, plane, index)[0, 0] == volume.plane(plane, index)[origin]


def test_the_held_out_slab_is_wide_enough_for_a_crop() -> None:
    volume = volume_of(noise((4, 5, 160)))
    assert split_volume(volume, smallest_px=64).held_out.bounds[2] == (96, 160)
    assert split_volume(volume, smallest_px=8).held_out.bounds[2] == (128, 160)
    assert split_volume(volume, smallest_px=64).training.bounds == ((0, 4), (0, 5), (0, 80))


def test_a_volume_too_short_for_two_crops_is_refused_with_the_crop_that_fits() -> None:
    volume = volume_of(noise((4, 5, 100)))
    with pytest.raises(DataError, match=r"dry\.tif: found 100 voxels along axis X.*at most 42 voxels fits") as refusal:
        split_volume(volume, smallest_px=43)
    assert "--um_per_px" in str(refusal.value)
    assert split_volume(volume, smallest_px=42).training.bounds[2] == (0, 42)


def test_the_correlation_of_a_sine_is_the_cosine_of_its_shift() -> None:
    # sin(w x + phase) over all phases: two slices k apart correlate as cos(w k)
    period = 32
    phase = np.linspace(0, 2 * np.pi, 400, endpoint=False).reshape(20, 20, 1)
    voxels = 30_000 + 20_000 * np.sin(2 * np.pi * np.arange(128) / period + phase)
    curve = slice_correlation(voxels.astype(np.uint16), 2, max_lag=40)
    np.testing.assert_allclose(curve, np.cos(2 * np.pi * np.arange(1, 41) / period), atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_correlation_is_that_of_corrcoef_along_any_axis(axis: int) -> None:
    voxels = noise((7, 8, 9))
    slices = np.moveaxis(voxels, axis, 0).reshape(voxels.shape[axis], -1)
    matrix = np.corrcoef(slices)
    expected = [np.diagonal(matrix, lag).mean() for lag in range(1, 6)]
    np.testing.assert_allclose(slice_correlation(voxels, axis, max_lag=5), expected, atol=1e-5)


def test_a_moving_average_of_noise_sets_the_gap_where_its_correlation_falls() -> None:
    # the mean of 40 neighbours correlates as 1 - lag / 40: below 0.2 from lag 33 on
    voxels = np.lib.stride_tricks.sliding_window_view(noise((64, 64, 439)), 40, axis=2).mean(axis=3)
    split = split_volume(volume_of(voxels), smallest_px=8)
    assert split.correlation[19] == pytest.approx(0.5, abs=0.02)
    assert 31 <= split.gap_px <= 35
    assert split.correlation[split.gap_px - 1] < DECORRELATED <= split.correlation[split.gap_px - 2]
    assert "the first with a correlation below" in split.gap_reason


def test_where_no_lag_decorrelates_the_gap_is_the_lowest_point_and_says_so() -> None:
    fixed = noise((8, 8, 1)) * 4
    wave = np.cos(2 * np.pi * np.arange(320) / 48 + np.linspace(0, 6, 8)[:, None, None])
    split = split_volume(volume_of(fixed + wave), smallest_px=8)
    assert min(split.correlation) > DECORRELATED
    assert split.gap_px == 24  # half the period
    assert len(split.correlation) == 40
    assert "no lag up to 40 has a correlation below 0.2; the lowest" in split.gap_reason


def test_slices_that_say_nothing_do_not_shorten_the_gap() -> None:
    flat = np.full((4, 4, 80), 9, np.uint8)
    assert slice_correlation(flat, 2, max_lag=3) == (1.0, 1.0, 1.0)
    half = np.concatenate([flat[:, :, :40], np.repeat(noise((4, 4, 1)) * 255, 40, axis=2).astype(np.uint8)], axis=2)
    np.testing.assert_allclose(slice_correlation(half, 2, max_lag=3), 1.0, atol=1e-6)
    assert split_volume(volume_of(flat), smallest_px=8).gap_px == SMALLEST_GAP_PX


def test_values_that_are_not_finite_leave_the_correlation_finite() -> None:
    voxels = np.repeat(noise((16, 16, 1)), 50, axis=2)
    voxels[3, 4, ::2] = np.nan
    voxels[5, 6, 1::2] = np.inf
    voxels[:, :, 10] = np.nan
    curve = slice_correlation(voxels, 2, max_lag=4)
    assert min(curve) > 0.95


def test_the_manifest_is_plain_json_and_its_hash_tells_splits_apart() -> None:
    volume = volume_of(noise((4, 5, 160)))
    manifest = split_volume(volume, smallest_px=8).manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["training"] == [[0, 4], [0, 5], [0, 112]]
    assert manifest["held_out"] == [[0, 4], [0, 5], [128, 160]]
    assert manifest["gap_px"] == 16
    assert manifest_hash(manifest) == manifest_hash(dict(reversed(manifest.items())))
    assert manifest_hash(manifest) != manifest_hash(split_volume(volume, smallest_px=40).manifest())
    assert len(manifest_hash(manifest)) == 32


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_autocorrelation_leaves_out_what_all_slices_share(axis: int) -> None:
    # each slice is the mean of 8 neighbours of noise, on layers that every slice shows: 1 - lag / 8 and then nothing
    moving = np.lib.stride_tricks.sliding_window_view(noise((24, 24, 407)), 8, axis=2).mean(axis=3)
    layers = 5 * np.random.default_rng(1).random((24, 24, 1))
    voxels = np.moveaxis(moving + layers, 2, axis)
    curve = slice_autocorrelation(voxels, axis)
    assert len(curve) == 399
    np.testing.assert_allclose(curve[:12], np.maximum(0, 1 - np.arange(1, 13) / 8), atol=0.03)
    assert min(slice_correlation(voxels, axis, max_lag=20)) > 0.9
    assert effective_sample_size(curve, 400) == pytest.approx(400 / 8, rel=0.1)


def test_slices_that_do_not_differ_are_worth_one() -> None:
    copies = np.repeat(noise((6, 6, 1)), 30, axis=2)
    assert slice_autocorrelation(copies, 2) == (1.0,) * 29
    assert effective_sample_size(slice_autocorrelation(copies, 2), 30) == 1
    copies[0, 0, 3] = np.nan
    assert np.isfinite(slice_autocorrelation(copies, 2)).all()


@pytest.mark.parametrize("coefficient", [0.2, 0.5, 0.9])
def test_the_effective_size_of_an_autoregressive_sequence_is_the_known_one(coefficient: float) -> None:
    # rho_k = a^k, whose sum is a / (1 - a): n (1 - a) / (1 + a)
    curve = coefficient ** np.arange(1, 400)
    assert effective_sample_size(curve.tolist(), 1000) == pytest.approx(1000 * (1 - coefficient) / (1 + coefficient))


@pytest.mark.parametrize(
    ("correlation", "num_slices", "expected"),
    [
        ((), 7, 7.0),
        ((-0.3, 0.9, 0.9), 7, 7.0),  # what follows the first value below zero is a period that comes back
        ((0.5, 0.25, 0.0, 0.9), 10, 10 / 2.5),
        ((1.0,) * 100, 50, 1.0),  # copies of one slice
        ((0.5, 0.5, 0.5), 2, 1.0),  # two slices are one step apart at most
        ((0.5,), 1, 1.0),
        ((0.5,), 0, 0.0),
    ],
)
def test_only_the_first_positive_lags_count(correlation: tuple[float, ...], num_slices: int, expected: float) -> None:
    assert effective_sample_size(correlation, num_slices) == pytest.approx(expected)


def test_the_voxels_of_a_block_are_those_between_its_bounds() -> None:
    volume = numbered((5, 6, 7))
    np.testing.assert_array_equal(Block(((1, 4), (2, 6), (3, 5))).voxels(volume), volume.voxels[1:4, 2:6, 3:5])
