"""Judgements of drawn pictures: kinds stay apart, are combined without resampling, and named where none is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from data.errors import DataError
from pipelines.diffusion import judgement
from pipelines.diffusion.drawing import Way
from pipelines.diffusion.judgement import (
    RealPictures,
    by_kind,
    draw_in_turn,
    judged,
    judged_together,
    mean_of,
    texture_distance,
)
from pipelines.diffusion.pictures import open_pictures
from pipelines.metrics.distances import Estimate
from pipelines.pixel_model import load_pixel_model
from tests.tiny_pixels import LABELS, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # its use of numpy

BLURS = {"warp": (0.5, 2.5), "weft": (2.5, 0.5)}


def _slices(seed: int, count: int, blur: tuple[float, float]) -> np.ndarray:
    """Grey noise of one grain, (N, 32, 32, 1) in [0, 1]."""
    noise = np.random.default_rng(seed).standard_normal((count, 32, 32))
    smooth = gaussian_filter(noise, (0, *blur), mode="wrap")
    smooth = (smooth - smooth.mean((1, 2), keepdims=True)) / smooth.std((1, 2), keepdims=True)
    return (0.5 + 0.15 * smooth).clip(0, 1).astype(np.float32)[..., None]


def _planes(seed: int, count: int) -> dict[str, np.ndarray]:
    return {kind: _slices(seed + place, count, blur) for place, (kind, blur) in enumerate(BLURS.items())}


REAL = RealPictures(_planes(10, 16), _planes(20, 16))


def test_planes_are_held_against_themselves_and_not_against_their_mixture() -> None:
    """Both planes swapped are the same mixture, and as far from what they are called as can be."""
    drawn = _planes(30, 16)
    swapped = dict(zip(drawn, reversed(drawn.values()), strict=True))
    mixed = [np.concatenate(list(each.values())) for each in (drawn, swapped, REAL.held_out)]
    assert texture_distance(mixed[0], mixed[2]).value == pytest.approx(texture_distance(mixed[1], mixed[2]).value)
    near, far = judged_together(drawn, REAL), judged_together(swapped, REAL)
    assert far.distance.low > near.distance.high
    assert near.slice_ratio is not None
    assert far.slice_ratio is not None
    assert near.slice_ratio.high < far.slice_ratio.low


def test_kinds_of_one_picture_on_a_side_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path, labels=True, size_px=32)
    model, dataset = load_pixel_model(run), open_pictures(run)

    def few(_: object, __: object, side: str, ___: int) -> dict[str, torch.Tensor]:
        counts = {LABELS[0]: 4, LABELS[1]: 1 if side == "held-out" else 4}
        return {label: torch.zeros(count, 1, 32, 32) for label, count in counts.items() if label in left}

    monkeypatch.setattr(judgement, "pictures", few)
    left = set(LABELS)
    real = RealPictures.of(model, dataset, 8)
    assert (real.kinds, real.left_out) == ((LABELS[0],), (LABELS[1],))
    left = {LABELS[1]}
    with pytest.raises(DataError, match="no kind with two or more"):
        RealPictures.of(model, dataset, 8)


def test_training_pictures_judged_as_drawn_are_the_floor_of_one() -> None:
    found = judged_together(REAL.training, REAL)
    apart = [texture_distance(REAL.training[kind], REAL.held_out[kind]).value for kind in BLURS]
    assert found.distance.value == pytest.approx(np.mean(apart))
    assert found.slice_ratio is not None
    assert found.slice_ratio.value <= 1
    assert 0 < found.num_measured <= found.num_descriptors


def test_the_ratio_is_the_median_over_the_descriptors_of_all_kinds() -> None:
    drawn = _planes(30, 12)
    each = [judged(drawn[kind], REAL.training[kind], REAL.held_out[kind], None) for kind in BLURS]
    ratios = [found.ratio for one in each for found in (one.slices or {}).values() if found.ratio is not None]
    together = judged_together(drawn, REAL)
    assert together.slice_ratio is not None
    assert together.slice_ratio.value == pytest.approx(np.median(ratios))
    assert together.slice_ratio.low <= together.slice_ratio.value <= together.slice_ratio.high
    assert together.num_measured == len(ratios)
    assert together.distance.value == pytest.approx(np.mean([one.distance.value for one in each]))


def test_a_mean_of_estimates_is_taken_draw_by_draw() -> None:
    one, other = Estimate(1.0, np.array([0.0, 2.0]), 12), Estimate(3.0, np.array([5.0, 1.0]), 7)
    mean = mean_of([one, other])
    assert (mean.value, mean.num_images) == (2.0, 7)
    assert mean.draws.tolist() == [2.5, 1.5]


def test_kinds_that_are_told_are_believed() -> None:
    drawn = _slices(1, 5, (1, 1))
    found, said = by_kind(drawn, REAL, ["weft", "warp", "weft", "weft", "warp"])
    assert {kind: len(each) for kind, each in found.items()} == {"weft": 3, "warp": 2}
    np.testing.assert_array_equal(found["warp"], drawn[[1, 4]])
    assert said == ""


def test_kinds_that_are_not_told_are_named_and_rare_ones_left_out() -> None:
    drawn = np.concatenate([_slices(1, 12, BLURS["warp"]), _slices(2, 6, BLURS["weft"])])
    found, said = by_kind(drawn, REAL)
    assert list(found) == ["warp"]
    np.testing.assert_array_equal(found["warp"], drawn[:12])
    assert said.endswith("(right for 100% of the held-out ones) names the kind of what it draws: warp 67%, weft 33%")


def test_fewer_than_two_pictures_are_refused() -> None:
    one = _slices(1, 1, (1, 1))
    with pytest.raises(DataError, match=r"found 1 drawn, 16 training, 16 held-out, expected two or more"):
        judged(one, REAL.training["warp"], REAL.held_out["warp"], None)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_labels_are_told_in_turn(labels: bool, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, labels=labels, size_px=32)
    model = load_pixel_model(run)
    real = RealPictures.of(model, open_pictures(run), 8)
    assert real.kinds == LABELS
    assert {kind: len(each) for kind, each in real.held_out.items()} == dict.fromkeys(LABELS, 4)
    images, told = draw_in_turn(model, Way(num_steps=2), real, 5)
    alone, _ = draw_in_turn(model, Way(num_steps=2), real, 5, batch_size=1)
    assert images.shape == (5, 32, 32, 3)
    np.testing.assert_allclose(images, alone, atol=1e-5)
    assert told == ([LABELS[number % 2] for number in range(5)] if labels else [])
