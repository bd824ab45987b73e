"""Distances in units of the real: closed forms, whatever the number of pictures, and the skill."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.metrics.distances import Estimate
from pipelines.metrics.real_units import NUM_PICTURES, SetDistance, set_distance, skill, times_as_far


def on_circle(count: int, seed: int, centre: float = 0.0, spread: float = np.pi) -> np.ndarray:
    angles = centre + np.random.default_rng(seed).uniform(-spread, spread, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_two_single_pictures_have_the_root_of_twice_their_distance() -> None:
    one, other = np.tile([1.0, 0], (5, 1)), np.tile([0, 3.0], (7, 1))
    assert set_distance(one, other, seed=0).value == pytest.approx(np.sqrt(2 * np.sqrt(2)))
    assert set_distance(one, one, seed=0).value == 0


def test_sets_of_that_size_have_the_plain_energy_distance() -> None:
    """With NUM_PICTURES in each set, the means over all pairs, a picture's own distance of 0 to itself included."""
    x, y = on_circle(NUM_PICTURES, 0), on_circle(NUM_PICTURES, 1, 1, 0.5)
    mean = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1).mean()  # noqa: E731
    energy = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert set_distance(x, y, seed=0).value == pytest.approx(np.sqrt(energy), rel=1e-6)


def test_one_law_has_the_distance_that_its_spread_gives_however_many_pictures_there_are() -> None:
    """Of a circle, E |x - x'| = 4 / pi, so d^2 = 2 / NUM_PICTURES 4 / pi."""
    expected = 8 / np.pi / NUM_PICTURES
    for count in (12, 400):
        squares = [
            set_distance(on_circle(count, seed), on_circle(count, 100 + seed), seed=0).value ** 2 for seed in range(30)
        ]
        error = np.std(squares) / np.sqrt(len(squares))
        assert abs(np.mean(squares) - expected) < 4 * error + 1e-3


def test_times_are_ratios_and_not_squared() -> None:
    """Far pictures at one place: twice the distance across is not four times as far."""
    real, training = on_circle(200, 0, 0, 0.2), on_circle(200, 1, 0, 0.2)
    near, far = (set_distance(real, on_circle(200, 2, centre, 0.2), seed=0) for centre in (0.8, 1.6))
    floor = set_distance(real, training, seed=0)
    times = [times_as_far(each, floor) for each in (near, far, floor)]
    assert times[0] is not None
    assert times[1] is not None
    assert times[2] is not None
    assert times[2].value == times[2].low == times[2].high == 1
    assert times[0].value == pytest.approx(near.value / floor.value)
    assert 1.2 < times[1].value / times[0].value < 1.6  # the root of the chord's ratio, 1.84
    assert times_as_far(floor, set_distance(real[:1].repeat(3, 0), real[:1].repeat(3, 0), seed=0)) is None


def test_a_change_of_spread_alone_is_seen() -> None:
    """Centroids are blind to it."""
    real, training, single = on_circle(100, 0, 0, 0.5), on_circle(100, 1, 0, 0.5), on_circle(100, 2, 0, 1e-6)
    found = times_as_far(set_distance(real, single, seed=0), set_distance(real, training, seed=0))
    assert found is not None
    assert found.low > 1.5


def test_counts_stand_for_repeated_pictures() -> None:
    x, y = on_circle(6, 0, 0, 0.5), on_circle(5, 1, 1.5, 0.5)
    pair = SetDistance.between(x, y)
    counts = np.array([[2.0, 1, 0, 1, 1, 1]])
    # a picture is not compared with its own copies
    within = [np.linalg.norm(x[i] - x[j]) * counts[0, i] * counts[0, j] for i in range(6) for j in range(6) if i != j]
    pairs = counts.sum() ** 2 - (counts**2).sum()
    across = (counts @ np.linalg.norm(x[:, None] - y, axis=-1)).sum() / 6 / 5
    of_y = np.linalg.norm(y[:, None] - y, axis=-1).sum() / 20
    expected = 2 * across - (1 - 1 / NUM_PICTURES) * (sum(within) / pairs + of_y)
    assert pair(counts, np.ones((1, 5)))[0] == pytest.approx(np.sqrt(expected), rel=1e-6)


def around(value: float, half_width: float = 0.01, num_images: int = 20) -> Estimate:
    return Estimate(value, value + np.linspace(-half_width, half_width, 101), num_images)


@pytest.mark.parametrize(("tuned", "expected"), [(0.9, 0.0), (0.1, 1.0), (0.5, 0.5), (1.7, -1.0), (0.0, 1.125)])
def test_skill_runs_from_the_base_at_0_to_the_ceiling_at_1(tuned: float, expected: float) -> None:
    found = skill(around(tuned), around(0.9), around(0.1))
    assert found is not None
    assert found.value == pytest.approx(expected)
    assert found.low <= expected + 1e-9
    assert found.high >= expected - 1e-9


def test_skill_carries_the_paired_spread() -> None:
    """Draws that move together cancel; those of the tuned model alone are divided by the distance to close."""
    exact = skill(around(0.5), around(0.9), around(0.1))
    assert exact is not None
    assert exact.high - exact.low == pytest.approx(0, abs=1e-9)
    spread = skill(around(0.5, half_width=0.08), around(0.9, half_width=0), around(0.1, half_width=0))
    assert spread is not None
    assert spread.high - spread.low == pytest.approx(0.95 * 0.16 / 0.8)


@pytest.mark.parametrize(
    ("tuned", "base", "floor"),
    [
        (around(0.1), around(0.2, half_width=0.1), around(0.1, half_width=0.1)),  # the intervals overlap
        (around(0.1), around(0.1), around(0.9)),  # base nearer than the ceiling
        (around(0.5, num_images=9), around(0.9), around(0.1)),
        (around(0.5), around(0.9, num_images=9), around(0.1)),
        (None, around(0.9), around(0.1)),
    ],
)
def test_skill_is_undefined_without_a_way_to_go_or_with_too_few_images(
    tuned: Estimate | None, base: Estimate, floor: Estimate
) -> None:
    assert skill(tuned, base, floor) is None
