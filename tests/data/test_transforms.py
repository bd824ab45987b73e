import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.transforms import (
    allowed_flips,
    center_crop_origin,
    crop,
    flipped,
    random_crop_origin,
    rescaled,
    rescaled_shape,
    scale_factor,
    tile_origins,
    to_model_range,
)

SIDES = st.integers(1, 40)


def numbered(rows: int, columns: int) -> np.ndarray:
    """An image in which every pixel has a value of its own."""
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


@given(SIDES, SIDES, st.integers(1, 40), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_every_crop_lies_inside_its_image(rows: int, columns: int, crop_px: int, position: int) -> None:
    shape = (rows + crop_px - 1, columns + crop_px - 1)
    image = numbered(*shape)
    for origin in (
        random_crop_origin(shape, (crop_px, crop_px), seed=1, position=position),
        center_crop_origin(shape, (crop_px, crop_px)),
    ):
        cut = crop(image, origin, (crop_px, crop_px))
        assert cut.shape == (crop_px, crop_px)
        assert cut[0, 0] == origin[0] * shape[1] + origin[1]
        assert cut[-1, -1] == (origin[0] + crop_px - 1) * shape[1] + origin[1] + crop_px - 1


def test_crops_need_not_be_square() -> None:
    image = numbered(6, 9)
    origins = {random_crop_origin((6, 9), (4, 8), seed=0, position=p) for p in range(200)}
    assert origins == {(row, column) for row in range(3) for column in range(2)}
    assert center_crop_origin((6, 9), (4, 8)) == (1, 0)
    np.testing.assert_array_equal(crop(image, (2, 1), (4, 8)), image[2:6, 1:9])
    with pytest.raises(AssertionError, match=r"a crop of \(4, 10\) px does not fit \(6, 9\) px"):
        center_crop_origin((6, 9), (4, 10))


def test_random_crops_reach_every_place_that_fits() -> None:
    origins = {random_crop_origin((6, 5), (3, 3), seed=0, position=p) for p in range(400)}
    assert origins == {(row, column) for row in range(4) for column in range(3)}


def test_a_center_crop_leaves_equal_margins() -> None:
    assert center_crop_origin((10, 7), (4, 4)) == (3, 1)


def test_a_crop_depends_on_seed_and_position_only() -> None:
    first = [random_crop_origin((90, 90), (8, 8), seed=1, position=p) for p in range(20)]
    assert first == [random_crop_origin((90, 90), (8, 8), seed=1, position=p) for p in reversed(range(20))][::-1]
    assert first != [random_crop_origin((90, 90), (8, 8), seed=2, position=p) for p in range(20)]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_tiles_fill_an_image_without_overlap(rows: int, columns: int, crop_px: int) -> None:
    rows, columns = rows + crop_px - 1, columns + crop_px - 1
    origins = tile_origins((rows, columns), crop_px)
    assert len(origins) == (rows // crop_px) * (columns // crop_px)
    covered = np.zeros((rows, columns), int)
    for origin in origins:
        view = crop(covered, origin, (crop_px, crop_px))
        view += 1
    assert covered.max(initial=0) <= 1
    assert covered.sum() == len(origins) * crop_px**2


def test_tiles_reach_both_ends_and_a_single_one_stands_in_the_middle() -> None:
    assert tile_origins((10, 23), 10) == [(0, 0), (0, 13)]
    assert tile_origins((11, 32), 10) == [(0, 0), (0, 11), (0, 22)]


def test_model_pixels_are_three_equal_channels_from_minus_one_to_one() -> None:
    pixels = to_model_range(np.array([[0, 0.25], [0.5, 1]], np.float32))
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 2, 2)
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.array([[[-1, -0.5], [0, 1]]] * 3, np.float32))


@pytest.mark.parametrize(
    ("plane", "flips"),
    [("thickness", ("left-right", "up-down")), ("warp", ("left-right",)), ("weft", ("left-right",))],
)
def test_a_plane_is_mirrored_only_as_its_material_allows(plane: str, flips: tuple[str, ...]) -> None:
    assert allowed_flips(plane) == flips


@pytest.mark.parametrize("plane", ["thickness", "warp", "weft"])
def test_flips_give_all_the_allowed_images_equally_often_and_no_other(plane: str) -> None:
    image = numbered(3, 4)
    mirrors = [image, image[:, ::-1]]
    if plane == "thickness":
        mirrors += [mirror[::-1] for mirror in mirrors]
    counts = [0] * len(mirrors)
    for position in range(800):
        seen = flipped(image, allowed_flips(plane), seed=5, position=position)
        (match,) = [i for i, mirror in enumerate(mirrors) if np.array_equal(seen, mirror)]
        counts[match] += 1
    expected = 800 / len(mirrors)
    assert max(abs(count - expected) for count in counts) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("um_per_px", [40.0, 40.0 * 1.0005, 40.0 * 0.9995])
def test_a_factor_of_one_gives_back_the_same_array(um_per_px: float) -> None:
    image = numbered(5, 6)
    factor = scale_factor(40.0, um_per_px)
    assert factor == 1.0
    assert rescaled(image, (factor, factor)) is image


def test_voxels_twice_the_pixel_size_become_two_pixels_each() -> None:
    assert scale_factor(40.0, 20.0) == 2.0
    assert rescaled_shape((10, 7), (2.0, 0.5)) == (20, 3)


@pytest.mark.parametrize("factors", [(1.0, 0.55), (2.6, 1.0), (0.31, 1.7), (1 / 3, 0.5)])
def test_a_ramp_keeps_its_slope_in_um_at_any_scale(factors: tuple[float, float]) -> None:
    # pixel i of the result has its centre at (i + 1/2) / factor - 1/2 voxels
    rows, columns = 60, 80
    image = (np.arange(rows)[:, None] * 0.01 + np.arange(columns)[None, :] * 0.002).astype(np.float32)
    result = rescaled(image, factors)
    assert result.shape == rescaled_shape((rows, columns), factors)
    row, column = ((np.arange(n) + 0.5) / f - 0.5 for n, f in zip(result.shape, factors, strict=True))
    expected = row[:, None] * 0.01 + column[None, :] * 0.002
    inside = tuple(slice(n // 4, 3 * n // 4) for n in result.shape)
    np.testing.assert_allclose(result[inside], expected[inside], atol=2e-4)


def test_a_rescaled_image_stays_in_its_range_and_keeps_its_mean() -> None:
    image = np.random.default_rng(0).random((64, 96), dtype=np.float32)
    for factors in ((0.4, 0.4), (1.8, 1.0), (0.5, 2.0)):
        result = rescaled(image, factors)
        assert result.dtype == np.float32
        assert result.min() >= 0
        assert result.max() <= 1
        assert abs(result.mean() - image.mean()) < 0.01


def test_shrinking_removes_what_the_new_scale_cannot_hold() -> None:
    # a gaussian of sigma s leaves 1 / (2 s sqrt(pi)) of the deviation of white noise (sampling alone leaves half)
    noise = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    remaining = rescaled(noise, (0.25, 0.25)).std() / noise.std()
    assert 0.8 / (2 * 1.5 * np.sqrt(np.pi)) < remaining < 1 / (2 * 1.5 * np.sqrt(np.pi))


@given(st.integers(1, 300), st.floats(0.2, 5))
@settings(max_examples=200, deadline=None)
def test_the_voxels_a_crop_needs_are_enough_after_rescaling(crop_px: int, factor: float) -> None:
    voxels = int(np.ceil(crop_px / factor - 1e-6))
    rows, _ = rescaled_shape((voxels, voxels), (factor, factor))
    assert rows >= crop_px
