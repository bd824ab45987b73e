"""Pictures of a pixel model against held-out ones, kind by kind, beside real against real; and copies are found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipelines import judge_pixels
from pipelines.diffusion import judgement
from pipelines.diffusion.drawing import Way
from pipelines.diffusion.judgement import in_colour
from pipelines.judge_pixels import judged_with_copies, lines
from pipelines.metrics.training_images import TrainingImages
from tests.tiny_pixels import LABELS, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # its use of numpy


def _slices(seed: int, count: int, blur: float = 1.5) -> np.ndarray:
    """Grey noise of one grain, (N, 48, 48, 1) in [0, 1]."""
    noise = np.random.default_rng(seed).standard_normal((count, 48, 48))
    smooth = gaussian_filter(noise, (0, blur, blur), mode="wrap")
    smooth = (smooth - smooth.mean((1, 2), keepdims=True)) / smooth.std((1, 2), keepdims=True)
    return (0.5 + 0.15 * smooth).clip(0, 1).astype(np.float32)[..., None]


def _index(training: np.ndarray) -> TrainingImages:
    return TrainingImages(in_colour(training))


def test_pictures_of_the_same_law_are_as_near_as_real_ones_and_others_are_not() -> None:
    training, held_out = _slices(1, 24), _slices(2, 24)
    same = judged_with_copies(_slices(3, 24), training, held_out, _index(training), None)
    other = judged_with_copies(_slices(3, 24, blur=4.0), training, held_out, _index(training), None)
    assert same["texture"]["distance"]["low"] < same["texture"]["floor"]["high"]
    assert other["texture"]["distance"]["low"] > other["texture"]["floor"]["high"]
    assert max(each["ratio"] for each in same["slices"].values() if each["ratio"] is not None) < 5
    assert max(each["ratio"] for each in other["slices"].values() if each["ratio"] is not None) > 5
    assert same["copying"]["auc"]["low"] < 0.7
    assert same["num_images"] == {"drawn": 24, "training": 24, "held-out": 24}


def test_copies_of_training_pictures_are_found() -> None:
    training, held_out = _slices(1, 24), _slices(2, 24)
    moved = np.roll(training[:16], (3, -2), axis=(1, 2))
    found = judged_with_copies(moved, training, held_out, _index(training), None)["copying"]
    assert found["auc"]["value"] > 0.95
    assert sum(match["image"] == match["training"] for match in found["matches"]) >= 15


def test_pictures_in_colour_have_no_slice_descriptors() -> None:
    drawn, training, held_out = (np.repeat(_slices(seed, 12), 3, axis=-1) for seed in (1, 2, 3))
    assert judged_with_copies(drawn, training, held_out, _index(training), None)["slices"] is None


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_every_kind_is_judged_by_itself(
    labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judgement, "FEWEST_OF_A_KIND", 1)  # an untrained model draws nothing of a kind for sure
    run = tiny_run(tmp_path, labels=labels, size_px=32)
    judge_pixels.main(["--model", str(run), "--num_images", "4", "--num_inference_steps", "2", "--eta", "0.5"])
    record = json.loads((run / "judged-0" / "judgement.json").read_text())
    assert record["way"] == asdict(Way(num_steps=2, eta=0.5))
    counts = {kind: found["num_images"]["drawn"] for kind, found in record["kinds"].items()}
    said = capsys.readouterr().out
    if labels:
        assert counts == dict.fromkeys(LABELS, 4)
        assert record["naming"] == ""
    else:
        assert sum(counts.values()) == 8
        assert "a classifier of training pictures (right for 100% of the held-out ones)" in said
    assert all(f"{kind} ({count} drawn): squared centroid distance" in said for kind, count in counts.items())
    for name in ("judgement.png", "nearest.png"):
        assert (run / "judged-0" / name).stat().st_size > 1000


def test_the_words_say_the_numbers() -> None:
    drawn, training, held_out = (_slices(seed, 12) for seed in (3, 1, 2))
    kinds = {"a": judged_with_copies(drawn, training, held_out, _index(training), 40.0)}
    record = {"naming": "", "left_out": ["b", "c"], "searched": {"pictures": 12, "of": 30}, "kinds": kinds}
    said = lines(record)
    assert said[0] == "copies were searched in 12 of 30, evenly spaced, training images, at every place of each"
    assert said[1] == "not judged, as fewer than two training or held-out pictures are theirs: b, c"
    auc = record["kinds"]["a"]["copying"]["auc"]
    assert any(line.startswith(f"  copy AUC {auc['value']:.2f}") for line in said)
    measured = [line for line in said if "times real" in line]
    ratios = [each["ratio"] for each in record["kinds"]["a"]["slices"].values() if each["ratio"] is not None]
    assert len(measured) == len(ratios) > 3
    assert f"{ratios[0]:6.1f} [" in measured[0]
