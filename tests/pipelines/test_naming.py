"""What a picture is named: a caption, or none of these."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from data.errors import DataError
from pipelines.metrics.estimates import mean_share
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.naming import NONE_OF_THESE, Namer, naming, shuffle_pixels
from tests.planted import textures, with_defect

SHUFFLED = {"a": np.tile([0, -1.0], (4, 1)), "b": np.tile([0, -1.0], (4, 1))}


def at(angle: float, count: int = 30, seed: int = 0) -> np.ndarray:
    angles = angle + np.random.default_rng([seed, round(100 * angle)]).normal(0, 0.05, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture(scope="module")
def namer() -> Namer:
    training, held_out = ({"a": at(0, seed=seed), "b": at(1, seed=seed)} for seed in (0, 1))
    return Namer.fit(training, held_out, SHUFFLED, extractor_id="x")


def test_a_picture_nearer_to_noise_than_to_its_caption_is_none_of_these(namer: Namer) -> None:
    """a lies at 0, its noise at -90 degrees, a chord of 1.41 away: the reach is half way, and so a chord of 0.75."""
    assert namer.reach["a"] == pytest.approx((0.08 + np.sqrt(2)) / 2, abs=0.05)
    angles = np.array([0.0, 1.0, -0.6, -0.9, np.pi])
    named = namer.names(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert named.tolist() == ["a", "b", "a", NONE_OF_THESE, NONE_OF_THESE]


def test_held_out_pictures_that_are_farther_than_noise_set_the_reach_themselves() -> None:
    noise = {"a": at(0, 4, 9)}
    namer = Namer.fit({"a": at(0)}, {"a": at(0, 40, 1)}, noise, extractor_id="x")
    found = naming(namer, {"a": at(0, 400, 5)})
    assert found.real_counts == ((38, 40),)  # those within the 95 % quantile
    assert 0.85 < found.right.value < 1


def test_shuffled_pictures_have_the_same_colours_at_other_places() -> None:
    pictures = textures("zigzagged", 2)
    found = shuffle_pixels(pictures)
    assert (np.sort(found.reshape(2, -1, 3), axis=1) == np.sort(pictures.reshape(2, -1, 3), axis=1)).all()
    assert np.abs(found - pictures).mean() > 0.02
    assert (shuffle_pixels(pictures) == found).all()


def test_counts_are_by_what_was_asked_and_named(namer: Namer) -> None:
    drawn = {"a": np.concatenate([at(0, 1, 7)[:0], np.tile([1.0, 0], (6, 1)), np.tile([-1.0, 0], (4, 1))])}
    drawn["b"] = np.tile([1.0, 0], (5, 1))
    found = naming(namer, drawn)
    assert found.counts.tolist() == [[6, 0, 4], [5, 0, 0]]
    assert found.right.value == pytest.approx((0.6 + 0) / 2)  # captions count alike
    assert found.none.value == pytest.approx((0.4 + 0) / 2)
    assert found.chance == 0.5


def test_one_caption_is_there_or_is_not() -> None:
    alone = Namer.fit({"a": at(0)}, {"a": at(0, seed=1)}, {"a": SHUFFLED["a"]}, extractor_id="x")
    assert alone.chance == 0.5
    found = naming(alone, {"a": np.concatenate([np.tile([1.0, 0], (9, 1)), np.tile([0, 1.0], (1, 1))])})
    assert found.right.value == pytest.approx(0.9)
    assert found.classifier == "one caption"


def test_the_share_of_groups_of_unequal_size_is_the_mean_of_their_shares() -> None:
    groups = [np.arange(100) < 50, np.arange(4) < 1]
    found = mean_share(groups, seed=0, purpose="x")
    assert found.value == pytest.approx((0.5 + 0.25) / 2)
    # worth 4 / (1 / 100 + 1 / 4) = 15 images: an interval of sqrt(p q / 15) to each side, twice
    assert found.draws.std() == pytest.approx(np.sqrt(0.375 * 0.625 / 15.4), rel=0.1)
    nothing = mean_share([np.zeros(8, bool), np.zeros(8, bool)], seed=0, purpose="x")
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(0.14, abs=0.04)


@cache
def features(name: str, start: int, defect: str = "") -> np.ndarray:
    pictures = textures(name, 30, start)
    return TextureStatistics.fitting(64).extract(with_defect(defect, pictures) if defect else pictures)


def test_real_textures_are_named_and_other_ones_are_none_of_these() -> None:
    """A classifier that has to choose calls a bubbly picture zigzagged or banded."""
    names = ("zigzagged", "banded")
    noise = {n: TextureStatistics.fitting(64).extract(shuffle_pixels(textures(n, 8))) for n in names}
    training, held_out = ({n: features(n, start) for n in names} for start in (0, 30))
    namer = Namer.fit(training, held_out, noise, extractor_id="texstat")
    fresh = naming(namer, {n: features(n, 60) for n in names})
    assert fresh.right.low > 0.75
    other = naming(namer, dict.fromkeys(names, features("bubbly", 0)))
    assert other.right.high < 0.2
    assert other.none.low > 0.8
    swapped = naming(namer, {"zigzagged": features("banded", 60), "banded": features("zigzagged", 60)})
    assert swapped.right.high < 0.2
    assert swapped.none.high < 0.3


def test_captions_without_real_pictures_are_refused(namer: Namer) -> None:
    with pytest.raises(DataError, match="asks for c; real ones: a, b"):
        naming(namer, {"c": at(0)})
