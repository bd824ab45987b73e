"""pipelines/evaluate_prompts.py on a run of finetune/lora.py: drawn once, killed, shared, measured, chosen from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.exits import exit_code
from data.tif.writer import write_stack
from pipelines import compare
from pipelines.evaluate_prompts import main as evaluate
from pipelines.generate import main as generate
from tests.pipelines.test_extractors import saved

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
PROMPTS = """
sets:
  learnt: ["{caption}"]
  odd: [{prompt: "</script><img src=x onerror=alert(1)>", negative_prompt: blue, seeds: 3}]
rings:
  class: [a texture]
  unrelated: [a red circle]
"""
CLAIMS = """
claims:
  - {text: the result is no picture of another run, measure: drift, greater: run, than: -1}
  - {text: the first step is the last, measure: drift, greater: run @1, than: 100}
"""
FEW = ("--steps", "1", "--seeds", "0-3", "--tier", "smoke")
# captions and ring prompts, four seeds each, and the odd one
NUM_PER_MODEL = (3 + 2) * 4 + 1
NUM_FLOOR = 2 * 4


@pytest.fixture(scope="module")
def run(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    field = gaussian_filter(np.random.default_rng(5).standard_normal((40, 44, 130)), (1.0, 2.0, 3.0))
    grey = (20000 + 40000 * (field - field.min()) / np.ptp(field)).clip(0, 65535).astype(np.uint16)
    write_stack(root / "dry.tif", grey, (40.0, 40.0, 40.0))
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = ["finetune/lora.py", "--concept", "sf_dry", "--data_root", str(root), "--output_dir", str(folder)]
    command += ["--pretrained_model_name_or_path", str(tiny_base_dir), "--max_train_steps", "3"]
    command += ["--train_batch_size", "2", "--held_out_fraction", "0.4", "--checkpointing_steps", "1"]
    command += ["--lr_warmup_steps", "0", "--num_validation_images", "1", "--learning_rate", "0.01"]
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "mine.yaml"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def evaluation(run: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(_arguments(run, prompts, folder, "--checkpoints", "all"))
    return folder


def _arguments(run: Path, prompts: Path, folder: Path, *more: str) -> list[str]:
    return ["--adapter", str(run), "--prompts", str(prompts), "--output_dir", str(folder), *FEW, *more]


def _images(folder: Path) -> dict[str, int]:
    """Return when each image was written."""
    return {path.name: path.stat().st_mtime_ns for path in _generated(folder)}


def _generated(folder: Path) -> list[Path]:
    index = folder / "images.json"
    known = {Path(entry["file"]).name for entry in json.loads(index.read_text())} if index.exists() else None
    return [
        p
        for p in (folder / "images").rglob("*.png")
        if not p.name.startswith(".") and (known is None or p.name in known)
    ]


def _result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def test_the_base_and_every_state_are_drawn_and_measured(evaluation: Path) -> None:
    result = _result(evaluation)
    labels = [model["label"] for model in result["models"]]
    assert labels == ["base", "run @1", "run @2", "run @3", "real, held out"]
    assert len(_images(evaluation)) == 4 * NUM_PER_MODEL + NUM_FLOOR
    index = json.loads((evaluation / "images.json").read_text(encoding="utf-8"))
    assert sum(entry["negative_prompt"] == "blue" for entry in index) == 4
    scores = {measured["model"]: measured["scores"] for measured in result["measured"]}
    assert set(scores) == {1, 2, 3}
    for of_model in scores.values():
        known = {"rung", "times", "skill", "right_caption", "drift", "drift_class", "paired", "prior", "leak", "vendi"}
        assert known | {"copy_auc"} <= set(of_model)
        assert "drift_related" not in of_model
        assert of_model["rung"]["words"].startswith("Cannot be judged: 4 pictures of a caption")
        assert of_model["skill"]["value"] is None
        assert of_model["drift"]["low"] <= of_model["drift"]["value"] <= of_model["drift"]["high"]
    assert scores[1]["drift"]["value"] > 0
    assert scores[1]["drift"]["value"] != scores[3]["drift"]["value"]
    assert {one["name"] for one in result["described"]}
    assert [copy["ncc"] for copy in result["copied"]] == sorted((c["ncc"] for c in result["copied"]), reverse=True)


def test_compare_says_the_same_digit_for_digit(run: Path, tmp_path: Path) -> None:
    prompts, folder = tmp_path / "same.yaml", tmp_path / "evaluation"
    rings = dict(zip(("class", "related", "unrelated"), ([text] for text in compare.RINGS), strict=True))
    prompts.write_text(json.dumps({"sets": {"learnt": ["{caption}"]}, "rings": rings}))
    evaluate(
        ["--adapter", str(run), "--prompts", str(prompts), "--output_dir", str(folder), "--steps=1", "--seeds=0-9"]
    )
    more = ["--num_images", "10", "--num_inference_steps", "1", "--output_dir", str(tmp_path / "compare")]
    compare.main(["--adapter", str(run), *more])
    result = _result(folder)
    (scores,) = (measured["scores"] for measured in result["measured"])
    said = json.loads((tmp_path / "compare" / "scores.json").read_text())
    (verdict,) = result["verdicts"]
    for name in ("rung", "words", "advice"):
        assert said["verdict"][name] == verdict[{"words": "learnt"}.get(name, name)]
    pairs = {"times": "times_drawn", "right_caption": "right_caption", "skill": "skill", "told": "told"}
    for name, other in (pairs | {name: name for name in ("density", "coverage")}).items():
        for number in ("value", "low", "high"):
            assert scores[name][number] == (said[other] or {number: None})[number], name
    for name in ("drift", "drift_unrelated", "prior"):
        assert scores[name] == said["forgetting"][name]


def test_a_state_is_chosen_by_other_held_out_images_than_are_reported(evaluation: Path) -> None:
    (verdict,) = _result(evaluation)["verdicts"]
    assert "chosen on one half of the held-out images, reported on the other" in verdict["caveats"]


def test_images_are_compared_by_another_network(run: Path, prompts: Path, tmp_path: Path) -> None:
    network = saved(tmp_path / "network", "clip")
    evaluate(_arguments(run, prompts, tmp_path / "out", "--extractor", str(network)))
    result = _result(tmp_path / "out")
    assert result["provenance"]["extractor"].startswith("clip-")
    scores = result["measured"][0]["scores"]
    assert {scores[name]["extractor"] for name in ("pairwise", "prior")} == {result["provenance"]["extractor"]}


def test_a_claim_of_another_run_is_refused(run: Path, tmp_path: Path, capfd: Any) -> None:
    prompts = tmp_path / "p.yaml"
    prompts.write_text("sets: {a: [x]}\nclaims: [{text: t, measure: skill, greater: ran, than: 0}]\n")
    assert exit_code(lambda: evaluate(_arguments(run, prompts, tmp_path / "out")), "evaluate_prompts") == 2
    assert "found the run 'ran'. Did you mean run" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_page_shows_any_prompt_as_text(evaluation: Path) -> None:
    text = (evaluation / "index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "\\u003cimg src=x onerror=alert(1)\\u003e" in text


def test_a_choice_is_written_and_drawn_with(evaluation: Path, run: Path, tmp_path: Path) -> None:
    choice = json.loads((run / "choice.json").read_text())
    assert choice["step"] in (1, 2, 3)
    assert choice["evaluation"] == str(evaluation)
    assert choice["step"] == _result(evaluation)["verdicts"][0]["step"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    drawn = {}
    for select in ("1", "3", "last", "best"):
        folder = tmp_path / select
        more = ("--num_inference_steps", "1", "--seeds", "2", "--output_dir", str(folder), "--select", select)
        generate(["--adapter", str(run), "--prompts", str(prompts), *more])
        drawn[select] = np.asarray(Image.open(folder / "000-a_red_circle-seed2.png"))
        if select != "last":
            step = json.loads((folder / "images.json").read_text())["step"]
            assert step == (choice["step"] if select == "best" else int(select))
    assert (drawn["3"] == drawn["last"]).all()
    assert (drawn["1"] != drawn["3"]).any()
    # what the evaluation drew of checkpoint 1
    index = json.loads((evaluation / "images.json").read_text())
    (entry,) = (e for e in index if (e["model"], e["prompt"], e["seed"]) == ("run @1", "a red circle", 2))
    stored = np.asarray(Image.open(evaluation / entry["file"]), int)
    assert np.abs(stored - drawn["1"]).max() <= 1  # merged adapters round elsewhere than factors beside the weights


def test_a_second_call_draws_nothing_and_a_wider_one_only_what_is_new(
    evaluation: Path, run: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(evaluation, folder)
    before = _images(folder)
    evaluate(_arguments(run, prompts, folder, "--checkpoints", "all"))
    assert _images(folder) == before
    evaluate(_arguments(run, prompts, folder, "--checkpoints", "1", "--weights", "0.5,1", "--scheduler", "own,ddpm"))
    after = _images(folder)
    # of the base and checkpoint 1 with DDPM, and of checkpoint 1 at half strength with both; the rest was there
    assert len(after.keys() - before.keys()) == 2 * NUM_PER_MODEL + NUM_FLOOR + 2 * NUM_PER_MODEL
    assert all(before[name] == after[name] for name in after.keys() & before.keys())
    models = [model["label"] for model in _result(folder)["models"] if not model["is_real"]]
    assert models == ["base", "run @1 ×0.5", "run @1"]
    assert _result(folder)["samplings"] == ["own, 1 steps, guidance 3", "DDPM, 1 steps, guidance 3"]


def test_what_was_drawn_before_a_kill_is_not_drawn_again(run: Path, prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = _arguments(run, prompts, folder, "--steps", "6", "--batch_size", "2")
    process = subprocess.Popen(
        [sys.executable, "pipelines/evaluate_prompts.py", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and len(_generated(folder)) < 6:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = _images(folder)
    assert 6 <= len(before) < 2 * NUM_PER_MODEL + NUM_FLOOR
    evaluate(arguments)
    after = _images(folder)
    assert len(after) == 2 * NUM_PER_MODEL + NUM_FLOOR
    assert all(after[name] == before[name] for name in before)


@pytest.mark.parametrize(
    "launch", [["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], []], ids=["launched", "own"]
)
def test_two_processes_draw_the_images_of_one(
    evaluation: Path, run: Path, prompts: Path, launch: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    own = [] if launch else ["--num_processes", "2"]
    command = [*launch, "pipelines/evaluate_prompts.py", *_arguments(run, prompts, folder, *own)]
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stderr
    assert _result(folder)["provenance"]["drawn in the last session"].endswith("by 2 processes")
    names = _images(folder)
    assert len(names) == 2 * NUM_PER_MODEL + NUM_FLOOR
    for name in names:
        one, two = (np.asarray(Image.open(of / "images" / name[:2] / name), int) for of in (evaluation, folder))
        assert np.abs(one - two).max() <= 2


def test_a_run_that_says_little_is_evaluated_as_far_as_it_goes(
    run: Path, tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bare file of an adapter, a text file without rings, a prompt that is too long."""
    adapter = tmp_path / "alone.safetensors"
    shutil.copy(run / "pytorch_lora_weights.safetensors", adapter)
    text = tmp_path / "prompts.txt"
    text.write_text("a red circle\na red circle\n" + "red " * 80 + "\n")
    more = ("--checkpoints", "all", "--pretrained_model_name_or_path", str(tiny_base_dir), "--tier", "standard")
    evaluate(_arguments(adapter, text, tmp_path / "out", *more))
    said = capsys.readouterr().out
    for words in (
        "1 prompts stand there more than once",
        "holds no rings of prompts, so forgetting is not measured",
        "alone: has no checkpoints, so its result alone is evaluated",
        "alone: was not trained here",
        "1 of 2 prompts are longer than the 77 tokens",
        "up to 5 tokens",
    ):
        assert words in said
    assert "Look at" in said


def test_a_run_without_held_out_images_is_not_judged_on_learning(
    run: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data.dataset import SliceDataset

    monkeypatch.setattr(SliceDataset, "held_out_pixels", lambda *_: {})
    evaluate(_arguments(run, prompts, tmp_path / "out"))
    said = capsys.readouterr().out
    assert "has no held-out images: learning is not measured, and copying is not calibrated" in said
    (measured,) = _result(tmp_path / "out")["measured"]
    assert "skill" not in measured["scores"]
    assert measured["scores"]["copy_auc"]["value"] is None
    assert measured["scores"]["drift"]["value"] > 0


def test_data_that_have_changed_are_not_compared_with(
    run: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["data"]["blank_contrast"] = 0.5
    (copy / "manifest.json").write_text(json.dumps(manifest))
    evaluate(_arguments(copy, prompts, tmp_path / "out"))
    assert "blank_contrast: not that of the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--adapter", "nowhere"), 2, ("nowhere", "does not exist")),
        (("--prompts", "missing.yaml"), 2, ("missing.yaml", "No such file")),
        (("--checkpoints", "7"), 2, ("no checkpoint-7", "1, 2, 3")),
        (("--checkpoints", "al"), 2, ("'al'",)),
        (("--weights", "x,1,1e9"), 2, ("--weights", "2 problems", "'x'", "'1e9'")),
        (("--steps", "0"), 2, ("--steps", "'0'")),
        (("--guidance", "nan"), 2, ("--guidance", "'nan'")),
        (("--scheduler", "ddmi"), 2, ("--scheduler", "DDIM")),
        (("--seeds", "7-3"), 2, ("--seeds", "7-3")),
        (("--tier", "huge"), 2, ("--tier",)),
        (("--batch_size", "0"), 2, ("--batch_size", "1 or more")),
        (("--nonsense", "1"), 2, ("--nonsense",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_drawn(
    more: Sequence[str], code: int, words: Sequence[str], run: Path, prompts: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "out"
    assert exit_code(lambda: evaluate(_arguments(run, prompts, folder, *more)), "evaluate_prompts") == code
    said = capfd.readouterr().err
    for word in words:
        assert word in said
    assert not folder.exists()


def test_an_adapter_for_another_base_is_refused(
    run: Path, prompts: Path, tmp_path: Path, make_tiny_base: Callable[..., Path], capfd: Any
) -> None:
    other = make_tiny_base(tmp_path / "other", seed=1)
    more = ("--pretrained_model_name_or_path", str(other))
    code = exit_code(lambda: evaluate(_arguments(run, prompts, tmp_path / "out", *more)), "evaluate_prompts")
    assert code == 2
    said = capfd.readouterr().err
    assert "run was trained on another base" in said
    assert "Traceback" not in said


def test_a_folder_of_other_things_is_left_alone(run: Path, prompts: Path, tmp_path: Path, capfd: Any) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "index.html").write_text("mine")
    assert exit_code(lambda: evaluate(_arguments(run, prompts, folder)), "evaluate_prompts") == 4
    assert str(folder) in capfd.readouterr().err
    assert (folder / "index.html").read_text() == "mine"


def test_limits_drop_checkpoints_from_the_choice(run: Path, evaluation: Path, prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(evaluation, folder)
    before = (run / "choice.json").read_bytes()
    try:
        evaluate(_arguments(run, prompts, folder, "--checkpoints", "all", "--forgetting_limit", "0"))
        verdict = _result(folder)["verdicts"][0]
        assert verdict["step"] is None
        assert "every checkpoint fails a limit" in verdict["reason"]
    finally:
        (run / "choice.json").write_bytes(before)


def test_claims_are_judged_of_the_chosen_state_or_of_any(evaluation: Path, run: Path, tmp_path: Path) -> None:
    folder, prompts = tmp_path / "copy", tmp_path / "claims.yaml"
    shutil.copytree(evaluation, folder)
    prompts.write_text(PROMPTS + CLAIMS)
    ten_of_the_rings = ("--seeds", "0-4", "--tier", "standard")  # with fewer there is no verdict
    evaluate(_arguments(run, prompts, folder, "--checkpoints", "all", *ten_of_the_rings))
    searched = [said for said in _result(folder)["statements"] if "copies were searched" in said]
    assert len(searched) == 1
    assert searched[0].startswith("copies were searched in all ")
    claims = _result(folder)["claims"]
    assert [claim["verdict"] for claim in claims] == ["confirmed", "contradicted"]
    assert claims[0]["effect"].startswith("drift: run ")
    assert "the first step is the last" in (folder / "index.html").read_text(encoding="utf-8")
