"""Models that differ in one setting: what is trained, what is measured of it, and that the same command goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import pixel_arms
from data.errors import FilrougeError, OutputError
from finetune.core.cli import load_settings
from finetune.core.settings import DdpmSettings
from pipelines.diffusion.cells import Cell
from pipelines.diffusion.judgement import RealPictures
from pipelines.studies.study import Run
from pipelines.studies.training import RECORD, ROOT, Cost, TrainedRun, arguments
from tests.tiny_pixels import LABELS, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # its use of numpy
ARMS = ["reference", "target v"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("tiny"), labels=True, grey=True, size_px=32)


@pytest.fixture
def trainings(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained, in order; in the place of each training, the untrained model."""
    names: list[str] = []

    def train_all(
        runs: Sequence[Run], folder: Path, *, num_jobs: int, on_done: Callable[[TrainedRun], object]
    ) -> list[TrainedRun]:
        assert num_jobs == 2
        done = []
        for run in runs:
            where = folder / run.folder_name
            if not where.exists():
                shutil.copytree(tiny, where)
                (where / RECORD).write_text(
                    json.dumps({"script": run.script, "options": dict(run.options)}), encoding="utf-8"
                )
                names.append(run.folder_name)
            done.append(TrainedRun(run, where, Cost(1.0, 1.0)))
            on_done(done[-1])
        return done

    monkeypatch.setattr(pixel_arms, "train_all", train_all)
    monkeypatch.setattr("pipelines.studies.training._refuse_wrong_options", lambda *_: None)  # a process each
    return names


def _compare(folder: Path, *options: str, arms: Sequence[str] = ARMS) -> dict[str, Any]:
    common = ["--steps", "2", "1", "--num_images", "8", "--num_jobs", "2", "--output_dir", str(folder)]
    pixel_arms.main([*common, "--arms", *arms, *options])
    record: dict[str, Any] = json.loads((folder / "pixel_arms.json").read_text())
    return record


@pytest.mark.parametrize("arm", pixel_arms.ARMS)
def test_an_arm_is_what_the_script_takes_and_changes_what_it_says_alone(arm: str) -> None:
    reference, run = pixel_arms.runs_of([pixel_arms.REFERENCE, arm], [3])
    settings, base = (
        load_settings(DdpmSettings, "ddpm", arguments(each), ROOT / "configs").model_dump() for each in (run, reference)
    )
    changed = {name: value for name, value in settings.items() if value != base[name]}
    assert changed == pixel_arms.ARMS[arm]
    assert settings["seed"] == base["seed"] == 3


def test_all_arms_have_folders_of_their_own() -> None:
    runs = pixel_arms.runs_of(list(pixel_arms.ARMS), [0, 1])
    assert len({run.folder_name for run in runs}) == 2 * len(pixel_arms.ARMS)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_equal_models_are_as_far_and_nothing_is_above_the_reference(trainings: list[str], tmp_path: Path) -> None:
    record = _compare(tmp_path, "--seeds", "0", "1")
    assert len(trainings) == 4
    for arms in record["results"].values():
        reference, other = (arms[arm] for arm in ARMS)
        assert other["mean"] == reference["mean"]
        assert reference["above_reference"] == {}
        assert set(other["above_reference"]) == set(pixel_arms.MEASURES)
        above = other["above_reference"]["distance"]
        assert (above["value"], above["low"], above["high"], above["verdict"]) == (0, 0, 0, "no verdict")
        assert other["seeds"]["0"]["distance"] == other["seeds"]["1"]["distance"] == other["mean"]["distance"]
        assert other["mean"]["distance"]["value"] > record["training"]["distance"]["high"]  # it has learnt nothing
    assert record["results"]["2"]["reference"]["mean"] != record["results"]["1"]["reference"]["mean"]
    text = (tmp_path / "pixel_arms.md").read_text().splitlines()
    value = record["results"]["2"]["target v"]["mean"]["distance"]["value"]
    assert next(line for line in text if line.startswith("| target v |")).startswith(f"| target v | {value:.4f} [")
    assert "means over the trainings with seed 0, 1 and over bars, spots" in text[-1]
    shown = Image.open(tmp_path / "pixel_arms.png")
    assert shown.width > 2 * pixel_arms.SHOWN * 96
    assert shown.height > (1 + len(ARMS)) * 96


def test_what_is_above_the_reference_is_paired_draw_by_draw() -> None:
    common = np.random.default_rng(1).normal(size=200)  # chance of the pictures that both share

    def cell(value: float) -> Cell:
        kept = {measure: np.array([value, *(value + common)]) for measure in pixel_arms.MEASURES}
        return Cell({measure: {"num_images": 64} for measure in kept}, kept)

    values = {("reference", 0): 1.0, ("reference", 1): 2.0, ("target v", 0): 1.5, ("target v", 1): 2.1}
    drawn = {(arm, seed, 10): cell(value) for (arm, seed), value in values.items()}
    del drawn["target v", 1, 10].arrays["slice_ratio"]  # type: ignore[attr-defined]
    found = pixel_arms.results(drawn, ["target v", "reference"], [0, 1], 10)
    assert found["reference"]["mean"]["distance"]["value"] == 1.5
    assert found["target v"]["mean"]["distance"]["value"] == 1.8
    above = found["target v"]["above_reference"]["distance"]
    assert [above[name] for name in ("value", "low", "high")] == pytest.approx([0.3] * 3)
    assert above["verdict"] == "higher"
    assert found["target v"]["mean"]["slice_ratio"] is None  # where one training lacks it, there is no mean
    assert "slice_ratio" not in found["target v"]["above_reference"]


def test_the_same_command_goes_on_and_arms_and_seeds_join(
    trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _compare(tmp_path, arms=["reference"])
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert trainings == ["sf_dry--reference--seed0"]
    more = _compare(tmp_path, "--seeds", "0", "4")
    assert trainings[1:] == ["sf_dry--target_v--seed0", "sf_dry--reference--seed4", "sf_dry--target_v--seed4"]
    assert {name: (tmp_path / "cells" / name).stat().st_mtime_ns for name in times} == times
    assert more["results"]["2"]["reference"]["seeds"]["0"] == first["results"]["2"]["reference"]["seeds"]["0"]
    monkeypatch.setattr(pixel_arms, "draw_in_turn", None)
    assert _compare(tmp_path, "--seeds", "0", "4") == more


def test_other_settings_in_the_same_folder_are_refused(
    trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compare(tmp_path, arms=["reference"])
    with pytest.raises(OutputError, match="num_images: its cells have 8, asked for is 9"):
        _compare(tmp_path, "--num_images", "9", arms=["reference"])
    monkeypatch.setitem(pixel_arms.BASE, "max_train_steps", 7)
    with pytest.raises(OutputError, match="max_train_steps: the study says 7, the run there had 600"):
        _compare(tmp_path, arms=["reference"])
    assert len(trainings) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arms", "referense"], "found 'referense', expected some of reference, cosine schedule"),
        (["--seeds", "1", "1"], "--seeds: found 1 1, expected each once"),
        (["--num_images", "5"], "expected 6 or more"),
        (["--steps", "0"], "expected 1 or more"),
        (["--model", "x"], "unrecognized arguments"),
    ],
)
def test_wrong_options_are_refused_before_anything(options: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(FilrougeError, match=said):
        pixel_arms.main([*options, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_grey_levels_are_those_of_the_pixels_and_kinds_count_alike() -> None:
    rng = np.random.default_rng(5)
    dark, light = 0.1 + 0.2 * rng.random((12, 16, 16, 1)), 0.6 + 0.4 * rng.random((4, 16, 16, 1))
    found = pixel_arms.grey_levels({"dark": dark, "light": light})
    assert found["grey_mean"].value == pytest.approx((dark.mean() + light.mean()) / 2, abs=2e-3)
    # a tenth of the dark ones, and nine tenths of the light ones
    assert found["grey_5"].value == pytest.approx(0.12, abs=5e-3)
    assert found["grey_95"].value == pytest.approx(0.96, abs=5e-3)
    assert all(each.low <= each.value <= each.high for each in found.values())
    flat = pixel_arms.grey_levels({"flat": np.full((3, 4, 4, 1), 0.5)})
    assert flat["grey_95"].value - flat["grey_5"].value < 1 / pixel_arms.NUM_BINS


def test_pale_pictures_have_a_narrower_range_and_another_law_of_greys() -> None:
    rng = np.random.default_rng(6)
    training, held_out, drawn = (rng.random((12, 32, 32, 1), dtype=np.float32) for _ in range(3))
    real = RealPictures({LABELS[0]: training}, {LABELS[0]: held_out})
    same = pixel_arms.measured({LABELS[0]: drawn}, real)
    pale = pixel_arms.measured({LABELS[0]: 0.5 + 0.5 * drawn}, real)
    assert set(same) == set(pixel_arms.MEASURES)
    for found, levels, apart in ((same, (0.05, 0.5, 0.95), 0.0), (pale, (0.525, 0.75, 0.975), 0.25)):
        values = {name: each.value for name, each in found.items() if each is not None}
        assert [values[name] for name in ("grey_5", "grey_mean", "grey_95")] == pytest.approx(levels, abs=0.01)
        assert values["grey_distance"] == pytest.approx(apart, abs=0.01)
