"""Real images of a run: halves of the held-out ones, for choosing and for reporting."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.real_images import RealImages


def _images(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 3), np.float32)


def test_halves_are_of_neighbours_and_share_no_held_out_image() -> None:
    real = RealImages(
        {"a": _images(100, 30), "b": _images(200, 5)}, {"a": _images(0, 21), "b": _images(50, 20)}, 2.0, True
    )
    halves = real.halves()
    assert halves is not None
    for half, of_a, of_b in zip(halves, (range(10), range(10, 21)), (range(50, 60), range(60, 70)), strict=True):
        assert half.held_out["a"][:, 0, 0, 0].tolist() == list(of_a)
        assert half.held_out["b"][:, 0, 0, 0].tolist() == list(of_b)
        assert half.training is real.training
        assert (half.um_per_px, half.are_slices) == (2.0, True)


def test_too_few_to_say_anything_of_a_half_are_not_cut() -> None:
    training = {"a": _images(0, 30), "b": _images(0, 30)}
    assert RealImages(training, {"a": _images(0, 40), "b": _images(0, 19)}, None, False).halves() is None
    assert RealImages(training, {}, None, False).halves() is None
