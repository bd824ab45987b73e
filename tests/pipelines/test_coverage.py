"""Coverage and diversity against closed forms and loops; collapse and dropped modes are noticed."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest

from data.errors import DataError
from pipelines.metrics.coverage import Overlap, overlap
from pipelines.metrics.diversity import pairwise_distance, spatial_distance, vendi_ratio, vendi_score
from pipelines.metrics.estimates import difference
from pipelines.metrics.extractors import TextureStatistics
from tests.planted import textures, with_defect


def scattered(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 3))


def expected_coverage(num_real: int, num_generated: int, k: int) -> float:
    """Naeem et al. 2020, section 3.3, for unequal numbers: none of the k pictures nearest to a real one is drawn."""
    return 1 - math.prod((num_real - i) / (num_real - i + num_generated) for i in range(1, k + 1))


@pytest.mark.parametrize(("num_real", "num_generated", "k"), [(12, 12, 2), (14, 5, 3)])
def test_images_of_one_law_cover_as_much_as_expected(num_real: int, num_generated: int, k: int) -> None:
    rng = np.random.default_rng(0)
    found = [overlap(scattered(rng, num_generated), scattered(rng, num_real), k=k) for _ in range(60)]
    for values, expected in (
        ([one.coverage.value for one in found], expected_coverage(num_real, num_generated, k)),
        ([one.density.value for one in found], (num_real / (num_real - 1))),  # each ball holds k of n - 1 others
    ):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error


def test_all_four_are_those_of_loops() -> None:
    rng = np.random.default_rng(1)
    x, y, k = scattered(rng, 16), scattered(rng, 6), 3
    u, v = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def balls(points: np.ndarray) -> list[float]:
        return [
            sorted(np.linalg.norm(row - other) for j, other in enumerate(points) if j != i)[k - 1]
            for i, row in enumerate(points)
        ]

    in_real = [[np.linalg.norm(drawn - row) <= radius for row, radius in zip(u, balls(u), strict=True)] for drawn in v]
    in_drawn = [[np.linalg.norm(row - drawn) <= radius for drawn, radius in zip(v, balls(v), strict=True)] for row in u]
    found = overlap(y, x, k=k)
    assert found.precision.value == np.mean([any(each) for each in in_real])
    assert found.recall.value == np.mean([any(each) for each in in_drawn])
    assert found.density.value == pytest.approx(np.sum(in_real) / k / 6)
    assert found.coverage.value == np.mean(np.any(in_real, axis=0))
    assert (found.num_covered, found.num_real) == (int(np.any(in_real, axis=0).sum()), 16)


@pytest.mark.parametrize(("count", "width"), [(20, 3), (40, 8)])
def test_pictures_of_the_real_law_are_rarely_found_to_cover_less_than_other_real_ones(count: int, width: int) -> None:
    """The rule of rung 3: the interval of the difference lies below 0 in at most one case of ten."""
    rng = np.random.default_rng(2)
    failed = {"coverage": 0, "density": 0}
    for seed in range(60):
        drawn, other, real = (rng.normal(1, 1, (n, width)) for n in (count, count, 40))
        one, floor = (overlap(each, real, seed=seed) for each in (drawn, other))
        for name in failed:
            failed[name] += difference(getattr(one, name), getattr(floor, name)).high < 0
    assert max(failed.values()) <= 6


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


def covered(name: str, references: str = "references") -> Overlap:
    return overlap(features(name), features(references))


def test_fresh_images_are_as_diverse_as_real_ones() -> None:
    assert covered("fresh").coverage.low > 0.8
    ratio = vendi_ratio(features("fresh"), features("references"))
    assert ratio.low < 1 < ratio.high
    fresh, real = pairwise_distance(features("fresh")), pairwise_distance(features("references"))
    assert fresh.low < real.value < fresh.high


def test_a_collapse_to_one_image_is_noticed_by_every_measure_of_diversity() -> None:
    found = covered("collapse")
    assert found.coverage.high < 0.5
    assert found.recall.high < 0.5
    assert vendi_ratio(features("collapse"), features("references")).high < 0.3
    assert pairwise_distance(features("collapse")).high == pytest.approx(0, abs=1e-6)
    assert spatial_distance(pictures("collapse")).high == pytest.approx(0, abs=1e-5)


def test_a_dropped_mode_is_noticed_by_coverage() -> None:
    both, one = (covered(name, "references of two modes") for name in ("both modes", "one mode of two"))
    assert one.coverage.high < both.coverage.low
    assert one.precision.value > 0.8  # what is drawn is right


def test_one_image_at_many_places_is_diverse_to_nobody_but_the_texture_statistics() -> None:
    """The same picture moved about: its correlations see it, where positions are averaged away."""
    one = textures("zigzagged", 1)[0]
    moved = np.stack([np.roll(one, shift, axis=(0, 1)) for shift in itertools.product((-6, 0, 6), repeat=2)])
    fresh = spatial_distance(textures("zigzagged", 9))
    assert spatial_distance(moved).high < fresh.low


@pytest.mark.parametrize(
    ("generated", "real", "message"),
    [
        (np.empty((0, 3)), np.ones((20, 3)), "drawn pictures: found 0 images"),
        (np.ones((5, 3)), np.ones((11, 3)), "real pictures: found 11 images, expected at least 12"),
        (np.ones((5, 3)), np.full((20, 3), np.inf), "not finite"),
        (np.ones((5, 2)), np.ones((20, 3)), "drawn 2, real 3 numbers per image"),
    ],
)
def test_sets_without_a_coverage_are_refused(generated: np.ndarray, real: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        overlap(generated, real)


@pytest.mark.parametrize("bad", [np.empty((0, 3)), np.ones((1, 3)), np.full((4, 3), np.nan)])
def test_sets_without_a_diversity_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"found 0|found 1|not finite"):
        pairwise_distance(bad)
    with pytest.raises(DataError, match=r"found 0|found 1|not finite"):
        vendi_ratio(bad, np.eye(3))


def test_one_picture_has_no_spatial_distance() -> None:
    with pytest.raises(DataError, match="found 1 image, expected at least 2"):
        spatial_distance(np.zeros((1, 8, 8, 3), np.float32))
