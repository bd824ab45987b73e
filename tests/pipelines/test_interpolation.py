"""Where planted images lie between two sets: along the line, and beside it."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.metrics.interpolation import Interpolation, interpolation

ONE, OTHER = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])


def cloud(centre: np.ndarray, count: int = 40, seed: int = 0, std: float = 0.03) -> np.ndarray:
    return centre + np.random.default_rng(seed).normal(0, std, (count, len(centre)))


def planted(share: float, beside: float = 0.0, count: int = 40) -> Interpolation:
    """Images of unit length at this share of the chord between two directions, and beside it in a third."""
    on_line = (1 - share) * ONE + share * OTHER
    height = np.sqrt(1 - on_line @ on_line - beside**2)
    # of the two directions that are left, one keeps the length, which the real sets share with it
    lifted = np.array([*on_line[:2], height, beside])
    real = (cloud(np.append(each[:2], [0.0, 0.0]), seed=number) for number, each in enumerate((ONE, OTHER)))
    found = interpolation(cloud(lifted, count, seed=5), *real, seed=0)
    assert found is not None
    return found


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_planted_share_is_found(share: float) -> None:
    found = planted(share)
    assert found.share.low <= share <= found.share.high
    assert found.share.value == pytest.approx(share, abs=0.02)
    assert found.generated.mean() == pytest.approx(share, abs=0.02)
    assert found.one.mean() == pytest.approx(0, abs=1e-9)
    assert found.other.mean() == pytest.approx(1, abs=1e-9)


def test_without_noise_both_numbers_are_the_closed_form() -> None:
    """The foot of (0.6, 0, 0.8) on the chord from e1 to e2 is at 0.2, its distance sqrt(0.72)."""
    rng = np.random.default_rng(0)
    tiny = [cloud(np.array(c), 20, n, 1e-6) for n, c in enumerate(([0.6, 0, 0.8, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]))]
    wide = [tiny[0], *(each + rng.normal(0, 1e-4, each.shape) for each in tiny[1:])]
    found = interpolation(*wide, seed=0)
    assert found is not None
    assert found.share.value == pytest.approx(0.2, abs=1e-3)
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in wide[1:]]
    spread = np.sqrt(np.mean([((u - u.mean(0)) ** 2).sum() / (len(u) - 1) for u in units]))
    assert found.residual.value * spread == pytest.approx(np.sqrt(0.72), rel=1e-3)


def test_a_mixture_of_both_sets_is_on_the_line() -> None:
    one, other = cloud(ONE), cloud(OTHER, seed=1)
    mixture = np.concatenate([cloud(ONE, 30, seed=2), cloud(OTHER, 10, seed=3)])
    found = interpolation(mixture, one, other, seed=0)
    assert found is not None
    assert found.share.value == pytest.approx(0.25, abs=0.02)
    assert found.residual.value < 1
    assert found.mixed.low <= 1 <= found.mixed.high
    assert found.words.startswith("a mixture: some images like the first, about 25% like the second")


@pytest.mark.parametrize(("share", "words"), [(0.3, "nearer to the first"), (0.7, "nearer to the second")])
def test_images_that_each_lie_between_are_no_mixture(share: float, words: str) -> None:
    """On a short line, so that the chord is near the sphere."""
    ends = [np.array([1.0, 0.2 * side, 0, 0]) for side in (-1, 1)]
    one, other = (cloud(end, seed=number) for number, end in enumerate(ends))
    between = cloud((1 - share) * ends[0] + share * ends[1], seed=5)
    found = interpolation(between, one, other, seed=0)
    assert found is not None
    assert abs(found.mixed.value) < 0.2
    assert found.words == f"between the two; {words}"
    # the same mean, of pictures at the two ends
    count = round(40 * share)
    mixed = np.concatenate([cloud(ends[0], 40 - count, seed=6), cloud(ends[1], count, seed=7)])
    of_both = interpolation(mixed, one, other, seed=0)
    assert of_both is not None
    assert of_both.share.value == pytest.approx(found.share.value, abs=0.05)
    assert of_both.mixed.low > 0.5
    assert of_both.words.startswith("a mixture")


def test_what_is_said_follows_from_the_intervals() -> None:
    one, other = cloud(ONE), cloud(OTHER, seed=1)
    assert planted(0.5).words.startswith("beside the line")  # the chord is well below the sphere
    same = interpolation(cloud(ONE, seed=7), one, other, seed=0)
    assert same is not None
    assert same.words == "inconclusive"
    few = interpolation(cloud(ONE, 6, seed=8), one, other, seed=0)
    assert few is not None
    assert few.words.startswith("no verdict")


def test_sets_that_do_not_differ_have_no_line() -> None:
    assert interpolation(cloud(OTHER), cloud(ONE), cloud(ONE, seed=1), seed=0) is None
