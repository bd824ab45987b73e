"""Coverage and diversity against closed forms and loops; collapse and dropped modes are noticed."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from data.errors import DataError
from pipelines.metrics.coverage import Coverage, coverage, expected_coverage
from pipelines.metrics.diversity import pairwise_distance, spatial_distance, vendi_ratio, vendi_score
from pipelines.metrics.extractors import TextureStatistics
from tests.planted import textures, with_defect


def scattered(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 3))


def test_the_expected_coverage_is_the_closed_form_of_equal_numbers_and_rises_with_the_generated_images() -> None:
    n, k = 20, 5
    product = 1.0
    for i in range(1, k + 1):
        product *= (n - i) / (2 * n - i)
    assert expected_coverage(n, n, k) == pytest.approx(1 - product)
    assert expected_coverage(n, n, k) == pytest.approx(0.98, abs=0.005)
    # one real neighbour and one generated image: either is as likely to be the nearer one
    assert expected_coverage(2, 1, 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("num_real", "num_generated", "k"), [(12, 12, 2), (14, 5, 3)])
def test_images_of_one_law_cover_as_much_as_expected(num_real: int, num_generated: int, k: int) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x, y = scattered(rng, num_real), scattered(rng, num_generated)
        found.append(coverage(y, x, k=k).share)
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - expected_coverage(num_real, num_generated, k)) < 4 * error


def test_the_share_is_that_of_a_loop_over_the_real_images() -> None:
    rng = np.random.default_rng(1)
    x, y, k = scattered(rng, 16), scattered(rng, 6), 3
    u, v = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    covered = 0
    for i, row in enumerate(u):
        radius = sorted(np.linalg.norm(row - other) for j, other in enumerate(u) if j != i)[k - 1]
        covered += any(np.linalg.norm(row - other) <= radius for other in v)
    assert coverage(y, x, k=k).share == covered / 16


def test_the_p_value_of_one_law_is_rarely_small() -> None:
    rng = np.random.default_rng(2)
    found = [coverage(scattered(rng, 20), scattered(rng, 20), seed=seed).p_value for seed in range(20)]
    assert np.mean(np.array(found) <= 0.05) <= 0.15


def test_full_coverage_is_never_surprising() -> None:
    real = scattered(np.random.default_rng(5), 20)
    assert (coverage(real, real).share, coverage(real, real).p_value) == (1, 1)


def test_a_vendi_ratio_compares_equal_numbers() -> None:
    rng = np.random.default_rng(3)
    real = rng.normal(size=(40, 6))
    assert vendi_ratio(real, real).value == 1
    few = vendi_ratio(real[:10], real)
    assert vendi_score(real[:10]) / vendi_score(real) < 0.9  # unequal numbers would say that it is less diverse
    assert few.value > 0.93
    assert few.low < 1 < few.high
    assert few.num_images == 10
    two_of_six = np.repeat(np.eye(6)[:2], 15, axis=0)
    assert vendi_ratio(two_of_six, np.repeat(np.eye(6), 5, axis=0)).value == pytest.approx(2 / 6)


def test_the_interval_of_a_vendi_ratio_covers_one_for_one_law() -> None:
    rng = np.random.default_rng(4)
    hits = []
    for seed in range(30):
        found = vendi_ratio(rng.normal(1, 1, (24, 5)), rng.normal(1, 1, (24, 5)), seed=seed)
        hits.append(found.low <= 1 <= found.high)
    assert np.mean(hits) >= 0.85


@cache
def features(name: str) -> np.ndarray:
    return TextureStatistics.fitting(64).extract(pictures(name))


def pictures(name: str) -> np.ndarray:
    fresh = textures("zigzagged", 40, 40)
    if name == "references":
        return textures("zigzagged", 40)
    if name == "one mode of two":
        return textures("zigzagged", 40, 80)
    if name == "both modes":
        return np.concatenate([textures("zigzagged", 20, 120), textures("bubbly", 20, 20)])
    if name == "references of two modes":
        return np.concatenate([textures("zigzagged", 20), textures("bubbly", 20)])
    return fresh if name == "fresh" else with_defect(name, fresh)


def covered(name: str, references: str = "references") -> Coverage:
    return coverage(features(name), features(references))


def test_fresh_images_are_as_diverse_as_real_ones() -> None:
    assert covered("fresh").p_value > 0.05
    ratio = vendi_ratio(features("fresh"), features("references"))
    assert ratio.low < 1 < ratio.high
    fresh, real = pairwise_distance(features("fresh")), pairwise_distance(features("references"))
    assert fresh.low < real.value < fresh.high


def test_a_collapse_to_one_image_is_noticed_by_every_measure_of_diversity() -> None:
    found = covered("collapse")
    assert found.p_value < 0.01
    assert found.ratio.high < 0.5
    assert vendi_ratio(features("collapse"), features("references")).high < 0.3
    assert pairwise_distance(features("collapse")).high == pytest.approx(0, abs=1e-6)
    assert spatial_distance(pictures("collapse")).high == pytest.approx(0, abs=1e-5)


def test_a_dropped_mode_is_noticed_by_coverage() -> None:
    both, one = (covered(name, "references of two modes") for name in ("both modes", "one mode of two"))
    assert both.p_value > 0.05
    assert one.p_value < 0.01
    assert one.ratio.high < both.ratio.low


def test_one_image_at_many_places_is_diverse_to_nobody_but_the_texture_statistics() -> None:
    """The same picture moved about: its correlations see it, where positions are averaged away."""
    one = textures("zigzagged", 1)[0]
    moved = np.stack([np.roll(one, shift, axis=(0, 1)) for shift in itertools.product((-6, 0, 6), repeat=2)])
    fresh = spatial_distance(textures("zigzagged", 9))
    assert spatial_distance(moved).high < fresh.low


@pytest.mark.parametrize(
    ("generated", "real", "message"),
    [
        (np.empty((0, 3)), np.ones((20, 3)), "generated images: found 0 images"),
        (np.ones((5, 3)), np.ones((11, 3)), "real images: found 11 images, expected at least 12"),
        (np.ones((5, 3)), np.full((20, 3), np.inf), "not finite"),
        (np.ones((5, 2)), np.ones((20, 3)), "generated 2, real 3 numbers per image"),
    ],
)
def test_sets_without_a_coverage_are_refused(generated: np.ndarray, real: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coverage(generated, real)


@pytest.mark.parametrize("bad", [np.empty((0, 3)), np.ones((1, 3)), np.full((4, 3), np.nan)])
def test_sets_without_a_diversity_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"found 0|found 1|not finite"):
        pairwise_distance(bad)
    with pytest.raises(DataError, match=r"found 0|found 1|not finite"):
        vendi_ratio(bad, np.eye(3))


def test_one_picture_has_no_spatial_distance() -> None:
    with pytest.raises(DataError, match="found 1 image, expected at least 2"):
        spatial_distance(np.zeros((1, 8, 8, 3), np.float32))
