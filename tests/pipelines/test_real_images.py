"""Real images of a run: halves of the held-out ones, for choosing and for reporting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.whole_images import WholeImage, WholeImages
from pipelines.evaluation.real_images import MOST_OF_ONE, RealImages, captions_of, num_captions_left_out
from pipelines.evaluation.states import AskedRun


def _images(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 3), np.float32)


WHOLE = WholeImages(35, lambda place: WholeImage(np.zeros((3, 4, 4), np.float32), "a", str(place)))


def test_halves_are_of_neighbours_and_share_no_held_out_image() -> None:
    real = RealImages(
        {"a": _images(100, 30), "b": _images(200, 5)}, {"a": _images(0, 21), "b": _images(50, 20)}, WHOLE, "", 2.0, True
    )
    halves = real.halves()
    assert halves is not None
    for half, of_a, of_b in zip(halves, (range(10), range(10, 21)), (range(50, 60), range(60, 70)), strict=True):
        assert half.held_out["a"][:, 0, 0, 0].tolist() == list(of_a)
        assert half.held_out["b"][:, 0, 0, 0].tolist() == list(of_b)
        assert half.training is real.training
        assert half.whole is real.whole
        assert (half.um_per_px, half.are_slices) == (2.0, True)


def test_too_few_to_say_anything_of_a_half_are_not_cut() -> None:
    training = {"a": _images(0, 30), "b": _images(0, 30)}
    assert RealImages(training, {"a": _images(0, 40), "b": _images(0, 19)}, WHOLE, "", None, False).halves() is None
    assert RealImages(training, {}, WHOLE, "", None, False).halves() is None


def _of(*captions: str | None) -> list[dict[str, Any]]:
    return [{"caption": caption, "file": f"{number}.png"} for number, caption in enumerate(captions)]


@pytest.mark.parametrize(
    ("data", "captions", "num_left_out"),
    [
        (
            {"cells": [{"caption": "sf_dry sf_warp"}, {"caption": "sf_dry sf_weft"}]},
            ("sf_dry sf_warp", "sf_dry sf_weft"),
            0,
        ),
        ({"training": _of("dtd_zigzagged", "dtd_zigzagged")}, ("dtd_zigzagged",), 0),
        ({"training": _of("a", "b", "a", None, "c"), "held_out": _of("d", "d")}, ("a",), 2),
        ({"training": _of(*"abcdefghij")}, tuple("abcdefghij")[:MOST_OF_ONE], 2),
        ({"training": _of("a", "a"), "wording": {"a": ["a <new>", "the <new>"]}}, ("a <new>",), 0),
        ({}, (), 0),
    ],
    ids=["slices", "one class", "some of one", "all of one", "other words", "nothing said"],
)
def test_the_captions_of_a_run_stand_in_its_manifest(
    data: dict[str, Any], captions: tuple[str, ...], num_left_out: int
) -> None:
    run = AskedRun(Path("run"), "run", {"data": data})
    assert captions_of(run) == captions
    assert num_captions_left_out(run) == num_left_out
