"""Distances and classifiers against closed forms, explicit loops and their own symmetries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.metrics.classifiers import NearestCentroid
from pipelines.metrics.distances import (
    Discrepancy,
    bootstrap_interval,
    cubic_kernel,
    linear_kernel,
    squared_centroid_distance,
)


def cubic(x, y):
    return Discrepancy.between(x, y, cubic_kernel).value


DISTANCES = (squared_centroid_distance, cubic)


def on_circle(rng, count, mean, spread):
    """Unit vectors at normally distributed angles."""
    angle = rng.normal(mean, spread, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def expected_cosine(order, turn, variance):
    """E cos(order x d) for d ~ N(turn, variance)."""
    return math.exp(-(order**2) * variance / 2) * math.cos(order * turn)


def expected_linear(turn, variance):
    return expected_cosine(1, turn, variance)


def expected_cubic(turn, variance):
    """E (1 + cos d)^3, by cos^2 d = (1 + cos 2d) / 2 and cos^3 d = (3 cos d + cos 3d) / 4."""
    one, two, three = (expected_cosine(order, turn, variance) for order in (1, 2, 3))
    return 1 + 3 * one + 3 * (1 + two) / 2 + (3 * one + three) / 4


def closed_form(expected, turn, s, t):
    return expected(0, 2 * s**2) + expected(0, 2 * t**2) - 2 * expected(turn, s**2 + t**2)


@pytest.mark.parametrize(("distance", "expected"), list(zip(DISTANCES, (expected_linear, expected_cubic), strict=True)))
@pytest.mark.parametrize(("turn", "s", "t"), [(0.0, 0.5, 0.5), (0.4, 0.3, 0.3), (0.0, 0.2, 0.9), (1.0, 0.1, 0.6)])
def test_the_average_over_draws_is_the_closed_form_even_for_few_images(distance, expected, turn, s, t):
    rng = np.random.default_rng(1)
    values = [distance(on_circle(rng, 5, 0, s), on_circle(rng, 4, turn, t)) for _ in range(2000)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - closed_form(expected, turn, s, t)) < 4 * error


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_laws_give_negative_values_as_well(distance):
    rng = np.random.default_rng(2)
    values = [distance(on_circle(rng, 12, 0, 0.5), on_circle(rng, 12, 0, 0.5)) for _ in range(200)]
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_point_masses_give_the_kernel_at_their_angle():
    x, y = np.tile([1.0, 0.0], (3, 1)), np.tile([math.cos(0.7), math.sin(0.7)], (4, 1))
    assert squared_centroid_distance(x, y) == pytest.approx(2 - 2 * math.cos(0.7))
    assert cubic(x, y) == pytest.approx(16 - 2 * (1 + math.cos(0.7)) ** 3)


def test_the_centroid_distance_is_blind_to_a_pure_change_of_spread_and_the_cubic_kernel_is_not():
    x, y = np.tile([[0, 1.0], [0, -1.0]], (500, 1)), np.tile([[1.0, 0], [-1.0, 0]], (500, 1))
    assert squared_centroid_distance(x, y) == pytest.approx(0, abs=0.01)
    assert cubic(x, y) > 1


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_both_distances_equal_explicit_double_loops(n, m, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 5)), rng.normal(0.3, 2, size=(m, 5))
    u, v = ([row / math.sqrt(sum(row**2)) for row in rows] for rows in (x, y))
    for distance, power, shift in ((squared_centroid_distance, 1, 0), (cubic, 3, 1)):
        within_x = [(a @ b + shift) ** power for i, a in enumerate(u) for j, b in enumerate(u) if i != j]
        within_y = [(a @ b + shift) ** power for i, a in enumerate(v) for j, b in enumerate(v) if i != j]
        across = [(a @ b + shift) ** power for a in u for b in v]
        expected = np.mean(within_x) + np.mean(within_y) - 2 * np.mean(across)
        assert distance(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_distance_ignores_the_order_of_the_sets_and_images_and_the_length_of_vectors(distance):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(9, 6)), rng.normal(1, 1, size=(7, 6))
    value = distance(x, y)
    assert distance(y, x) == pytest.approx(value, abs=1e-12)
    assert distance(x[::-1] * rng.uniform(0.1, 9, (9, 1)), y) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((1, 3)), np.ones((4, 3)), "1 and 4 images, expected at least two"),
        (np.ones(3), np.ones((4, 3)), r"x: found shape \(3,\)"),
        (np.ones((4, 3)), np.ones((4, 2)), "3 numbers per image but y has 2"),
        (np.ones((4, 3)), np.full((4, 3), np.nan), "y: found values that are not finite"),
        (np.zeros((4, 3)), np.ones((4, 3)), "x: found a feature vector of length zero"),
    ],
)
@pytest.mark.parametrize("distance", DISTANCES)
def test_features_without_a_distance_are_refused(distance, x, y, message):
    with pytest.raises(ValueError, match=message):
        distance(x, y)


def test_counting_an_image_twice_equals_giving_it_twice_without_the_pair_with_itself():
    rng = np.random.default_rng(4)
    x, y = on_circle(rng, 4, 0, 0.5), on_circle(rng, 3, 1, 0.5)
    gram = x @ x.T
    counts = np.array([2, 1, 0, 1])
    pairs = [(i, j) for i in (0, 0, 1, 3) for j in (0, 0, 1, 3) if i != j]
    expected = np.mean([gram[pair] for pair in pairs])
    expected += np.mean([y[i] @ y[j] for i in range(3) for j in range(3) if i != j])
    expected -= 2 * np.mean(x[[0, 0, 1, 3]] @ y.T)
    found = Discrepancy.between(x, y, linear_kernel)(counts[None].astype(float), np.ones((1, 3)))
    assert found[0] == pytest.approx(expected)


def estimate(x, y, seed=0):
    distance = Discrepancy.between(x, y, linear_kernel)
    return bootstrap_interval(distance, distance.sizes, seed=seed, num_resamples=400)


def test_the_resamples_are_centred_on_the_estimate():
    """Comparing images with their own copies would move the centre by (1 - mean cosine)(1/n + 1/m), 0.045 here."""
    rng = np.random.default_rng(5)
    shifts = []
    for seed in range(40):
        found = estimate(on_circle(rng, 10, 0, 0.5), on_circle(rng, 10, 0, 0.5), seed)
        shifts.append(found.draws.mean() - found.value)
    assert abs(np.mean(shifts)) < 0.005


@pytest.mark.parametrize(("turn", "at_least"), [(0.0, 0.95), (0.5, 0.85)])
def test_the_interval_covers_the_true_distance(turn, at_least):
    rng, truth = np.random.default_rng(6), closed_form(expected_linear, turn, 0.5, 0.5)
    hits = [
        found.low <= truth <= found.high
        for found in (estimate(on_circle(rng, 20, 0, 0.5), on_circle(rng, 20, turn, 0.5), seed) for seed in range(100))
    ]
    assert np.mean(hits) >= at_least


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    scores = np.random.default_rng(7).normal(3, 2, 400)
    found = bootstrap_interval(lambda counts: counts @ scores / counts.sum(1), [400], seed=8, num_resamples=4000)
    half_width = 1.96 * scores.std() / math.sqrt(400)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half_width, abs=0.02)
    assert found.high == pytest.approx(scores.mean() + half_width, abs=0.02)


def test_the_draws_depend_on_the_seed_alone_and_pair_sets_of_one_size():
    rng = np.random.default_rng(9)
    x, y = on_circle(rng, 12, 0, 0.5), on_circle(rng, 15, 0.3, 0.5)
    assert np.array_equal(estimate(x, y, seed=1).draws, estimate(x, y, seed=1).draws)
    assert not np.array_equal(estimate(x, y, seed=1).draws, estimate(x, y, seed=2).draws)
    scores = rng.normal(size=12)
    alone, beside = (
        bootstrap_interval(statistic, sizes, seed=1).draws
        for statistic, sizes in ((lambda c: c @ scores, [12]), (lambda c, _: c @ scores, [12, 30]))
    )
    assert np.array_equal(alone, beside)


def test_two_sets_of_one_size_are_drawn_independently():
    scores = np.random.default_rng(11).normal(size=50)
    found = bootstrap_interval(lambda a, b: (a - b) @ scores / 50, [50, 50], seed=1)
    assert found.draws.std() == pytest.approx(scores.std() * math.sqrt(2 / 50), rel=0.1)


def test_resamples_of_one_single_image_are_left_out_of_the_interval():
    found = estimate(np.eye(2), np.eye(2)[::-1])
    assert np.isnan(found.draws).any()
    assert found.low == found.high == pytest.approx(-1)


@pytest.mark.parametrize(("count", "verdict"), [(2, "none"), (9, "none"), (10, "weak"), (19, "weak"), (20, "sound")])
def test_the_verdict_follows_the_smallest_set(count, verdict):
    rng = np.random.default_rng(10)
    assert estimate(on_circle(rng, count, 0, 1), on_circle(rng, 30, 0, 1)).verdict == verdict
    assert estimate(on_circle(rng, 30, 0, 1), on_circle(rng, count, 0, 1)).verdict == verdict


def test_the_nearest_centroid_follows_the_angle_not_the_length():
    classifier = NearestCentroid.fit(
        np.array([[9.0, 1], [1, -0.1], [0, 2], [0.1, 1]]), ["warp", "warp", "weft", "weft"]
    )
    assert classifier.labels.tolist() == ["warp", "weft"]
    assert classifier.predict(np.array([[0.1, 0.02], [3.0, 50.0]])).tolist() == ["warp", "weft"]
    assert classifier.accuracy(np.array([[1.0, 0], [1, 0], [0, 1], [1, 0]]), ["warp", "weft", "weft", "weft"]) == 0.5


def test_the_centroid_is_the_mean_direction_and_not_the_mean_vector():
    """One long vector does not outvote three short ones."""
    features = np.array([[100.0, 0], [0, 1], [0, 1], [0, 1], [-1, 0]])
    classifier = NearestCentroid.fit(features, ["a", "a", "a", "a", "b"])
    np.testing.assert_allclose(classifier.centroids[0], np.array([1, 3]) / math.sqrt(10))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((3, 2)), ["a", "b"], "3 features and 2 labels"),
        (np.ones((0, 2)), [], "0 features and 0 labels"),
        (np.array([[1.0, 0], [-1.0, 0]]), ["a", "a"], "length zero"),
        (np.array([[1.0, np.inf]]), ["a"], "not finite"),
    ],
)
def test_a_class_without_a_direction_is_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        NearestCentroid.fit(features, labels)
