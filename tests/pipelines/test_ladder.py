"""The rungs: which condition decides, which number is told, and what is advised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.metrics.coverage import Overlap
from pipelines.metrics.distances import Estimate
from pipelines.metrics.ladder import Evidence, stand
from pipelines.metrics.learnt import references_and_others
from pipelines.metrics.naming import Naming
from pipelines.metrics.slices import SliceComparison
from pipelines.metrics.two_sample import TwoSample


def around(value: float, half_width: float = 0.05, num_images: int = 40) -> Estimate:
    return Estimate(value, value + np.linspace(-half_width, half_width, 1001), num_images)


def overlap(coverage: float, density: float = 1.0) -> Overlap:
    one = around(1.0)
    return Overlap(one, one, around(density), around(coverage), round(64 * coverage), 64)


def named(right: float, none: float = 0.0) -> Naming:
    return Naming(("a", "b"), around(right), around(0.95), around(none), np.zeros((2, 3)), ((1, 1),) * 2, 0.5, "x")


def told(share: float) -> TwoSample:
    return TwoSample(np.arange(100) < round(100 * share))


def far() -> dict[str, dict[str, SliceComparison]]:
    apart = SliceComparison("pitch", "tow pitch", "um")
    apart = replace(apart, distance=around(9), floor=around(1), ratio=9.0, ratio_low=6.0, ratio_high=12.0)
    return {"a": {"pitch": apart}}


REAL = Evidence(
    num_drawn=40,
    num_real=64,
    moved_p=0.005,
    naming=named(0.93),
    overlaps={"a": overlap(0.97), "b": overlap(0.95)},
    real_overlaps={"a": overlap(0.96), "b": overlap(0.96)},
    told=told(0.52),
    real_told=told(0.51),
    descriptors=None,
    skill=around(0.6),
    times=around(2.0),
    ceiling=around(1.2),
    alike=around(0.9),
    ceiling_overlaps={"a": overlap(0.96), "b": overlap(0.96)},
)


@pytest.mark.parametrize(
    ("changed", "rung", "said"),
    [
        ({}, 4, "Not told apart: a classifier of drawn and real pictures is right on 52% of 100 pictures"),
        ({"told": told(0.98)}, 3, "Overlapping: a classifier of drawn and real pictures is right on 98% of 100"),
        ({"told": told(0.9), "real_told": told(0.88)}, 4, "right on 90%"),  # real blocks differ as much
        ({"descriptors": far}, 3, "pitch of a is 9.0 times as far as between real blocks, where 2 is allowed"),
        ({"descriptors": dict}, 4, "Not told apart"),
        (
            {"overlaps": {"a": overlap(0.0), "b": overlap(0.5)}},
            2,
            "Recognisable: 32 of 128 real pictures have a drawn neighbour, where 122 have another real one",
        ),
        ({"overlaps": {"a": overlap(0.96, 0.4)} | {"b": overlap(0.96, 0.4)}}, 2, "a density of 0.40, where"),
        ({"overlaps": {}, "real_overlaps": {}, "told": None, "real_told": None, "num_real": 8}, 2, "8 real pictures"),
        ({"naming": named(0.5)}, 1, "the right caption of 50% of the drawn ones, where guessing gives 50%"),
        ({"naming": named(0.04, 0.93)}, 1, "Moved: a classifier of real pictures names the right caption of 4%"),
        ({"naming": named(0.04, 0.93), "moved_p": 0.3}, 0, "Unchanged: the pictures are not told apart from the base"),
        ({"moved_p": 0.3}, 4, "Not told apart"),  # a base that draws real pictures
        ({"num_drawn": 9}, None, "Cannot be judged: 9 pictures of a caption; 10 are needed"),
    ],
)
def test_the_highest_rung_is_told_with_the_number_that_stops_it(
    changed: dict[str, Any], rung: int | None, said: str
) -> None:
    found = stand(replace(REAL, **changed))
    assert found.rung == rung
    assert said in found.words
    assert found.words.endswith(".")
    assert found.is_good == (rung in (3, 4))
    assert bool(found.advice) != found.is_good
    assert found.as_json()["rung"] == rung


OVERLAPS = {"a": overlap(0.0), "b": overlap(0.0)}


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"naming": named(0.04, 0.93), "moved_p": 0.3}, "have not moved"),
        ({"naming": named(0.04, 0.93)}, "Train longer, or with a larger learning rate: the pictures move towards"),
        ({"naming": named(0.04, 0.93), "skill": around(-0.2)}, "not towards the real ones"),
        ({"naming": named(0.04, 0.1)}, "not under their captions"),
        ({"overlaps": OVERLAPS}, "Train longer"),
        ({"overlaps": OVERLAPS, "skill": around(0.95)}, "The base's autoencoder is the limit"),
        ({"overlaps": OVERLAPS, "ceiling_overlaps": OVERLAPS}, "1.2 times as far as real pictures"),
        ({"overlaps": OVERLAPS, "ceiling_overlaps": OVERLAPS, "skill": around(0.2)}, "Train longer"),
        ({"overlaps": OVERLAPS, "alike": around(0.2)}, "too alike"),
        ({"overlaps": {}, "num_real": 8}, "Give more images"),
    ],
)
def test_what_is_advised_follows_from_the_measures(changed: dict[str, Any], advice: str) -> None:
    assert advice in stand(replace(REAL, **changed)).advice


def test_descriptors_are_not_asked_where_something_else_decides() -> None:
    def descriptors() -> dict[str, dict[str, SliceComparison]]:
        raise AssertionError

    assert stand(replace(REAL, told=told(0.98), descriptors=descriptors)).rung == 3


def test_few_training_images_leave_the_floor_to_halves_of_the_held_out_ones() -> None:
    many, few = {"a": np.arange(24), "b": np.arange(64)}, {"a": np.arange(3), "b": np.arange(3)}
    assert references_and_others(many, few) == (few, many)
    references, others = references_and_others(few, {"a": np.arange(40), "b": np.arange(64)})
    assert references["a"].tolist() == list(range(20))
    assert others["b"].tolist() == list(range(32, 64))
    assert references_and_others(few, many)[1] is not few  # 24 held-out ones are too few to halve
    assert references_and_others(few, many)[1]["a"].tolist() == [0, 1, 2]
