"""TexStat-v1 against its recipe: sizes, invariances, a second implementation, and what the numbers tell apart."""

import hashlib
import json
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage import data as photographs

from data.errors import DataError
from data.synthetic.world import TEXTURES, texture_mask
from pipelines.metrics.classifiers import NearestCentroid
from pipelines.metrics.distances import squared_centroid_distance
from pipelines.metrics.texstat import (
    CONSTANTS,
    SIZES_PX,
    TexStat,
    computed_constants,
    group_sizes,
    size_for,
    statistics,
)

A, B, C, D, E = (slice(a, b) for a, b in ((0, 11), (11, 35), (35, 59), (59, 167), (167, 245)))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Maps of 64 px are too small to share: several threads on a busy machine take many times longer than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def coloured(size: int, seed: int = 0, count: int = 1) -> torch.Tensor:
    """Smooth coloured noise with something at every scale, (count, 3, size, size) in [0.1, 0.7]."""
    rng = np.random.default_rng(seed)
    fields = sum(
        scipy.ndimage.gaussian_filter(rng.standard_normal((count, 3, size, size)), (0, 0, s, s), mode="wrap") * s
        for s in (0.7, 2, 5)
    )
    return torch.from_numpy(0.1 + 0.6 * (fields - fields.min()) / np.ptp(fields)).float()


def grey(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).float()[:, None]


# A second implementation, in numpy and double precision, one filter and one map at a time.


def reflected_amplitude(image, angle):
    y, x = np.mgrid[-4:5, -4:5].astype(float)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    g = np.exp(-(u**2 + (0.6 * v) ** 2) / (2 * 1.7**2))
    even = (g * np.cos(2 * u) - g * (g * np.cos(2 * u)).sum() / g.sum()) / g.sum()
    odd = g * np.sin(2 * u) / g.sum()
    pad = [min(4, side - 1) for side in image.shape]
    padded = np.pad(image, [(p, p) for p in pad], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9))
    responses = [np.einsum("abij,ij->ab", windows, kernel) for kernel in (even, odd)]
    return np.sqrt(responses[0] ** 2 + responses[1] ** 2 + 1e-12)


def area_resized(image, shape):
    out = np.empty(shape)
    (high, wide), (h, w) = image.shape, shape
    for i in range(h):
        for j in range(w):
            rows, columns = slice(i * high // h, -(-(i + 1) * high // h)), slice(j * wide // w, -(-(j + 1) * wide // w))
            out[i, j] = image[rows, columns].mean()
    return out


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / ((np.sqrt((a**2).sum()) + 1e-6) * (np.sqrt((b**2).sum()) + 1e-6))


def statistics_by_loops(image, levels):
    """The recipe, word by word, for one image (3, row, column)."""
    angles = [np.pi * k / 6 for k in range(6)]
    y = image.mean(0)
    z = (y - y.mean()) / (y.std(ddof=1) + 1e-3)
    std = [channel.std(ddof=1) for channel in image]
    group_a = [channel.mean() for channel in image] + [np.log(s + 1e-2) for s in std]
    group_a += [np.clip((z**3).mean(), -5, 5), np.log((z**4).mean() + 1e-3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        covariance = np.cov(image[a].ravel(), image[b].ravel())[0, 1]
        group_a.append(covariance / ((std[a] + 1e-3) * (std[b] + 1e-3)))
    pyramid = [z]
    for _ in range(levels - 1):
        smooth = pyramid[-1]
        for axis in (0, 1):
            smooth = scipy.ndimage.correlate1d(smooth, np.array([1, 4, 6, 4, 1]) / 16, axis=axis, mode="mirror")
        pyramid.append(smooth[::2, ::2])
    maps = [[reflected_amplitude(level, t) for t in angles] for level in pyramid]
    group_b = [np.log(u.mean() + 1e-3) for level in maps for u in level]
    group_c = [np.log(np.sqrt((u**2).mean()) / (u.mean() + 1e-6)) for level in maps for u in level]
    group_d = []
    for level in maps[:-1]:
        for u in level:
            rows, columns = u.shape[0] // 2, u.shape[1] // 2
            pooled = u[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))
            group_d += [np.log((reflected_amplitude(pooled, t).mean() + 1e-4) / (u.mean() + 1e-3)) for t in angles]
    group_e = []
    for j, level in enumerate(maps):
        group_e += [pearson(level[a], level[b]) for a in range(6) for b in range(a + 1, 6)]
        if j:
            group_e += [pearson(level[k], area_resized(maps[j - 1][k], level[k].shape)) for k in range(6)]
    return np.array(group_a + group_b + group_c + group_d + group_e)


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(32, 32, 4), (64, 64, 4), (67, 60, 4), (96, 129, 4), (64, 64, 5)]
)
def test_a_second_implementation_written_from_the_recipe_agrees(height, width, levels):
    image = coloured(max(height, width))[..., :height, :width]
    expected = statistics_by_loops(image[0].double().numpy(), levels)
    np.testing.assert_allclose(statistics(image, levels)[0].numpy(), expected, atol=1e-5, rtol=0)


def test_group_sizes_are_those_of_the_recipe():
    assert group_sizes(4) == (11, 24, 24, 108, 78)
    assert group_sizes(5) == (11, 30, 30, 144, 99)
    assert sum(group_sizes(4)) == 245
    assert sum(group_sizes(5)) == 314


@pytest.mark.parametrize(("size", "width"), list(zip(SIZES_PX, (245, 245, 245, 314), strict=True)))
def test_every_size_gives_finite_unit_vectors_of_its_width(size, width):
    features = TexStat(size).features(coloured(size, count=2))
    assert features.shape == (2, width)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_the_extractor_id_says_levels_and_size():
    assert [TexStat(size).extractor_id for size in SIZES_PX] == [
        "texstat-v1-j4-32px",
        "texstat-v1-j4-64px",
        "texstat-v1-j4-128px",
        "texstat-v1-j5-256px",
    ]


def test_a_grey_image_and_its_three_channel_copy_give_the_same_numbers():
    image = coloured(64)[:, :1]
    assert torch.equal(TexStat(64).features(image), TexStat(64).features(image.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_brightness_leaves_all_but_the_marginals_unchanged(gain):
    image = gain * coloured(64)
    before, after = statistics(image, 4)[0], statistics(image + 0.25, 4)[0]
    torch.testing.assert_close(after[B.start :], before[B.start :], atol=2e-5, rtol=0)
    torch.testing.assert_close(after[:3] - before[:3], torch.full((3,), 0.25))


def test_a_quarter_turn_shifts_the_angles_by_three_places():
    image = coloured(129)  # odd at every level, so that each level keeps the pixels that the turn maps to each other
    upright, turned = statistics(image, 4)[0], statistics(torch.rot90(image, 1, (2, 3)), 4)[0]
    for group in (B, C):
        expected = upright[group].reshape(4, 6).roll(3, dims=1).flatten()
        torch.testing.assert_close(turned[group], expected, atol=1e-6, rtol=0)


def test_the_dominant_angle_is_the_one_that_was_drawn():
    """A wave along the columns (angle 0 of x) at the wave number of the bank, and the same wave turned."""
    wave = 0.5 + 0.4 * torch.cos(2 * torch.arange(64.0)).expand(1, 1, 64, 64)
    for image, angle in ((wave, 0), (wave.mT, 3)):
        assert statistics(image, 4)[0, B].reshape(4, 6)[0].argmax() == angle


def test_a_batch_equals_its_images_one_by_one_bit_for_bit():
    images = coloured(64, count=5)
    whole = TexStat(64).features(images)
    assert torch.equal(whole, torch.cat([TexStat(64).features(image[None]) for image in images]))


def test_neither_gradients_nor_autocast_reach_the_numbers():
    image = coloured(64)
    plain = TexStat(64).features(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = TexStat(64).features(image.clone().requires_grad_())
    assert torch.equal(mixed, plain)
    assert not mixed.requires_grad


@pytest.mark.parametrize("level", [0.0, 231 / 255, 1.0])
def test_a_constant_image_has_no_texture_and_no_rounding_noise(level):
    raw = statistics(torch.full((1, 3, 67, 71), level), 4)[0]
    torch.testing.assert_close(raw[B], torch.full((24,), math.log(1e-3 + 1e-6)), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw[E], torch.zeros(78), atol=1e-6, rtol=0)


def test_a_larger_image_is_shrunk_by_area():
    image = coloured(128)
    small = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(TexStat(64).extract(image), TexStat(64).extract(small), atol=1e-5, rtol=0)


def test_a_long_image_is_the_average_of_evenly_spaced_squares():
    image = coloured(160)[:, :, :64]  # 64 x 160: squares start at columns 0, 48, 96
    squares = [statistics(image[..., c : c + 64], 4) for c in (0, 48, 96)]
    torch.testing.assert_close(TexStat(64).extract(image), torch.stack(squares).mean(0))
    torch.testing.assert_close(
        TexStat(64).extract(image.mT)[:, :11], TexStat(64).extract(image)[:, :11], atol=1e-5, rtol=0
    )


def test_the_size_is_the_largest_that_the_images_fill():
    assert [size_for(short) for short in (32, 63, 64, 127, 128, 512)] == [32, 32, 64, 64, 128, 128]


def test_images_too_small_are_refused_with_the_size_to_use():
    with pytest.raises(DataError, match=r"48 x 64 px, expected sides of at least 64 px.*measure at 32 px"):
        TexStat(64).features(torch.rand(1, 3, 48, 64))
    with pytest.raises(DataError, match="short side of 31 px, expected at least 32 px"):
        size_for(31)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.rand(3, 64, 64), "3 axes"),
        (torch.rand(1, 4, 64, 64), "4 channels"),
        (torch.rand(0, 3, 64, 64), "no image"),
        (2 * torch.rand(1, 3, 64, 64) - 1, r"outside \[0, 1\]"),
        (torch.full((1, 3, 64, 64), torch.nan), "not finite"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels, message):
    with pytest.raises(AssertionError, match=message):
        TexStat(64).features(pixels)


def test_the_corpus_gives_the_shipped_constants():
    shipped = json.loads(CONSTANTS.read_text())
    for size in (32, 64):
        for name, values in computed_constants(size).items():
            np.testing.assert_allclose(values, shipped[str(size)][name], atol=1e-4)


def test_the_constants_of_version_1_never_change():
    """Numbers computed with other constants need another extractor id."""
    digest = hashlib.sha256(json.dumps(json.loads(CONSTANTS.read_text())).encode()).hexdigest()[:16]
    assert digest == "86c1767afb064464"


@pytest.mark.parametrize("image", [coloured(64), torch.full((1, 3, 64, 64), 0.5)], ids=["texture", "out of range"])
def test_features_are_standardised_clamped_weighted_and_of_length_one(image):
    entry = json.loads(CONSTANTS.read_text())["64"]
    z = (statistics(image, 4)[0].double().numpy() - entry["mean"]) / (np.array(entry["std"]) + 1e-6)
    z = np.clip(z, -5, 5)
    for group in (A, B, C, D, E):
        z[group] /= np.sqrt(group.stop - group.start)
    np.testing.assert_allclose(TexStat(64).features(image)[0].numpy(), z / np.linalg.norm(z), atol=1e-5)


def test_the_nearest_centroid_tells_the_textures_of_the_world_apart():
    rng = np.random.default_rng(20)
    labels = np.repeat(TEXTURES, 20)
    train, test = (
        TexStat(64).features(grey([texture_mask(name, rng, 64) for name in labels])).numpy() for _ in range(2)
    )
    assert NearestCentroid.fit(train, labels).accuracy(test, labels) >= 0.9


def test_blur_and_noise_move_the_distance_on_grass_and_a_fresh_sample_does_not():
    grass, rng = photographs.grass() / 255, np.random.default_rng(21)
    # references from the left half, samples from the right
    corners = [(rng.integers(448), rng.integers(192) + side) for side in [0] * 24 + [256] * 24]
    crops = [grass[r : r + 64, c : c + 64] for r, c in corners]
    reference, fresh = (TexStat(64).features(grey(part)).numpy() for part in (crops[:24], crops[24:]))
    blurred = [scipy.ndimage.gaussian_filter(crop, 1) for crop in crops[24:]]
    noisy = [np.clip(crop + rng.normal(0, 0.1, crop.shape), 0, 1) for crop in crops[24:]]
    near = squared_centroid_distance(reference, fresh)
    for degraded in (blurred, noisy):
        far = squared_centroid_distance(reference, TexStat(64).features(grey(degraded)).numpy())
        assert far > 5 * abs(near)
        assert far > 0.1
