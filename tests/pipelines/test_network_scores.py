"""FID, KID and CMMD: closed forms, and the pitfalls that are known of FID."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import DataError
from pipelines.metrics.distances import squared_centroid_distance
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.network_scores import cmmd, fid, kid
from tests.planted import textures


def normal(count: int, seed: int, mean: float = 0.0, std: float = 1.0, width: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, (count, width))


def test_the_frechet_distance_of_normal_laws_is_the_closed_form() -> None:
    """Of equal covariances the squared distance of means; of aligned ones the sum over (sd_x - sd_y)^2 besides."""
    x = normal(400, 0)
    assert fid(x, x + np.array([1, 2, 0])) == pytest.approx(5)
    assert fid(x, 3 * x) == pytest.approx(4 * np.square(x.mean(0)).sum() + 4 * np.trace(np.cov(x, rowvar=False)))
    assert fid(x, x) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_one_law_falls_as_one_over_the_number_of_images() -> None:
    """The known bias: a score of few images says how few they are."""
    mean = lambda n: np.mean([fid(normal(n, s, width=8), normal(n, 99 + s, width=8)) for s in range(20)])  # noqa: E731
    few, more = mean(50), mean(200)
    assert few / more == pytest.approx(4, rel=0.25)
    kids = [kid(normal(50, seed, width=8), normal(50, 99 + seed, width=8)).value for seed in range(40)]
    assert abs(np.mean(kids)) < 4 * np.std(kids) / np.sqrt(40)  # which has no such bias


def test_the_kernel_distance_is_that_of_loops() -> None:
    x, y = normal(5, 0), normal(4, 1)
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within = [np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
    across = np.mean([k(a, b) for a in x for b in y])
    assert kid(x, y).value == pytest.approx(sum(within) - 2 * across)


def test_cmmd_is_ten_times_the_squared_centroid_distance() -> None:
    """On unit vectors its exponent stays below 0.02, where exp(-s) is 1 - s; and it counts an image with itself."""
    x, y = normal(80, 0, 1), normal(80, 1, -1)
    biased = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y)]
    centroids = np.square(biased[0].mean(0) - biased[1].mean(0)).sum()
    assert cmmd(x, y).value == pytest.approx(10 * centroids, rel=0.02)
    assert squared_centroid_distance(x, y) < centroids
    found = cmmd(x, y)
    assert found.low < found.value < found.high


def test_how_images_were_resized_moves_the_frechet_distance_of_the_same_pictures() -> None:
    """Of our own features, which is true of Inception's: the same pictures, shrunk by area or by dropping pixels."""
    large = textures("bubbly", 60)
    by_area = large.reshape(60, 32, 2, 32, 2, 3).mean((2, 4))
    dropped = np.ascontiguousarray(large[:, ::2, ::2])
    extractor = TextureStatistics.fitting(32)
    alike, apart = extractor.extract(by_area), extractor.extract(dropped)
    assert fid(alike, apart) > 10 * abs(fid(alike, alike))
    halves, moved = fid(alike[:30], alike[30:]), fid(alike[:30], apart[:30])
    assert moved > 0.2 * halves  # as much as a fifth of what other pictures would do


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DataError, match="drawn images: found 1 image, expected at least 2"):
        fid(normal(1, 0), normal(5, 1))
    with pytest.raises(DataError, match="drawn 3, real 4 numbers per image"):
        cmmd(normal(5, 0), normal(5, 1, width=4))
