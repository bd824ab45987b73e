"""Colour measures against the standard library, closed forms and planted loss of colour."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from scipy import stats

from data.errors import DataError
from pipelines.metrics.colour import colour_retention, colourfulness, grey_distance, lab_distances, saturation
from tests.planted import textures, weaves, with_defect


def noise(seed: int, count: int = 3, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).random((count, side, side, 3), dtype=np.float32)


def test_the_saturation_is_that_of_the_standard_library() -> None:
    pictures = noise(0)
    pictures[0, :4] = 0  # black has none
    expected = [
        np.mean([colorsys.rgb_to_hsv(*map(float, pixel))[1] for pixel in each.reshape(-1, 3)]) for each in pictures
    ]
    np.testing.assert_allclose(saturation(pictures), expected, atol=1e-6)


def test_the_colourfulness_of_one_colour_is_its_distance_from_grey() -> None:
    """Red alone: rg = 255, yb = 127.5, and no spread: 0.3 times the length of both."""
    red = np.zeros((1, 4, 4, 3), np.float32)
    red[..., 0] = 1
    assert colourfulness(red)[0] == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_the_colourfulness_of_two_colours_adds_their_spread() -> None:
    """Half red, half green: rg = +-255, yb = 127.5 throughout."""
    halves = np.zeros((1, 4, 4, 3), np.float32)
    halves[:, :2, :, 0] = halves[:, 2:, :, 1] = 1
    assert colourfulness(halves)[0] == pytest.approx(255 + 0.3 * 127.5)


def test_grey_has_no_colour() -> None:
    grey = np.repeat(noise(1)[..., :1], 3, axis=-1)
    assert saturation(grey).tolist() == [0, 0, 0]
    np.testing.assert_allclose(colourfulness(grey), 0, atol=1e-3)


def test_an_unchanged_model_keeps_its_colour_exactly() -> None:
    rings = [textures("bubbly", 12), textures("marbled", 12)]
    others = [textures("bubbly", 12, 20), textures("marbled", 12, 20)]
    found = colour_retention(rings, rings, others)
    assert found.saturation is not None
    assert (found.saturation.low, found.saturation.value, found.saturation.high) == (1, 1, 1)
    assert found.saturation.num_images == 24
    assert found.verdict == "inconclusive"
    assert found.floor_saturation is not None
    assert found.floor_saturation.low < 1 < found.floor_saturation.high


def test_half_of_the_colour_lost_is_told_as_half_and_all_of_it_as_none_left() -> None:
    base = [textures("bubbly", 20), textures("marbled", 20)]
    others = [textures("bubbly", 20, 20), textures("marbled", 20, 20)]
    pale = [0.5 * each + 0.5 * each.mean(-1, keepdims=True) for each in base]
    half = colour_retention(pale, base, others)
    assert half.colourfulness is not None
    assert half.colourfulness.value == pytest.approx(0.5, abs=1e-4)
    assert half.colourfulness.high - half.colourfulness.low < 1e-4  # paired by image
    none = colour_retention([with_defect("colour loss", each) for each in base], base, others)
    assert none.saturation is not None
    assert none.saturation.high == 0
    assert half.verdict == none.verdict == "lower"


def test_a_base_that_draws_in_grey_has_no_colour_to_keep() -> None:
    grey = [weaves("dry", 1)]
    found = colour_retention(grey, grey, grey)
    assert found.saturation is None
    assert found.verdict is None
    assert found.as_json()["saturation"] is None


def test_the_grey_distance_is_the_wasserstein_distance_of_all_pixels() -> None:
    one, other = noise(2), noise(3) ** 2
    expected = stats.wasserstein_distance(
        *((each @ np.array([0.299, 0.587, 0.114], np.float32)).ravel() for each in (one, other))
    )
    assert grey_distance(one, other).value == pytest.approx(expected, abs=0.004)
    assert grey_distance(one, one).value == 0


def test_the_lab_distances_are_those_of_the_converted_pixels() -> None:
    from skimage.color import rgb2lab

    one, other = noise(4), noise(5) * np.array([1, 0.6, 0.8], np.float32)
    found = lab_distances(one, other)
    for place, name in enumerate("Lab"):
        expected = stats.wasserstein_distance(*(rgb2lab(each)[..., place].ravel() for each in (one, other)))
        assert found[name].value == pytest.approx(expected, abs=1.0)


def test_a_planted_gamma_moves_the_greys_and_fresh_images_do_not() -> None:
    real, fresh = weaves("dry", 12), weaves("dry", 12, 12)
    floor = grey_distance(fresh, real)
    darker = grey_distance(with_defect("gamma", fresh), real)
    assert darker.low > floor.high
    assert darker.num_images == 36


def test_a_lost_colour_moves_a_and_b() -> None:
    real, fresh = textures("banded", 60), textures("banded", 60, 60)
    floor, found = lab_distances(fresh, real), lab_distances(with_defect("colour loss", fresh), real)
    assert found["a"].low > floor["a"].high
    assert found["b"].low > floor["b"].high


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((0, 4, 4, 3), np.float32), "found 0 images, expected at least 1"),
        (np.full((2, 4, 4, 3), np.nan, np.float32), "2 images of 2 are not finite, the first is number 0"),
        (np.zeros((2, 3, 4, 4), np.float32), r"shape \(2, 3, 4, 4\), expected \(images, rows, columns, 3\)"),
        (np.full((2, 4, 4, 3), 2, np.float32), r"in \[2, 2\], expected floats in \[0, 1\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "found uint8 pictures"),
    ],
)
def test_what_is_not_a_picture_is_refused(pictures: np.ndarray, message: str) -> None:
    for measure in (saturation, colourfulness):
        with pytest.raises(DataError, match=message):
            measure(pictures)


def test_rings_of_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"found \[3\] tuned, \[2\] base and \[3\] other base images"):
        colour_retention([noise(0)], [noise(0, 2)], [noise(0)])
