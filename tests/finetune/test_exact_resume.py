"""A run that goes on is the uninterrupted one, bit for bit: every method, at every step, and after kills at any moment.

What a run leaves (its files, its pictures) is compared in test_contract.py; here the last checkpoint is, which holds
weights, averages and the optimizer's state, and metrics.jsonl.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from finetune.core import files, loader
from finetune.core.checkpoint import CheckpointStore, RunLock
from finetune.core.loader import own_positions
from finetune.core.method import Method
from tests.finetune.test_contract import EVERY_ROW, Row, _run, arguments, scans
from tests.finetune.test_stops import FORK, _pair, _train

__all__ = ["arguments", "scans"]  # fixtures
LAST = 4
RUNS = ("straight", "run")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves, which take longer than a few steps."""
    monkeypatch.setattr("finetune.core.curves.draw_curves", lambda *_: None)


def _bare(method: Method, _: object) -> Method:
    """Return a method that trains and measures, and draws and exports nothing."""
    return replace(method, preview=None, export=lambda _: [])


def _files(folder: Path) -> dict[str, bytes]:
    last = folder / f"checkpoint-{LAST}"
    paths = [*(path for path in last.iterdir() if path.name != "manifest.json"), folder / "metrics.jsonl"]
    return {path.name: path.read_bytes() for path in paths}


def _gone_on_with(row: Row, arguments: dict[str, Any], straight: Path, step: int, **options: Any) -> dict[str, bytes]:
    """Return what a run leaves that is cut at a step and goes on."""
    folder = arguments["output_dir"]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(straight, folder)
    for later in range(step + 1, LAST + 1):
        shutil.rmtree(folder / f"checkpoint-{later}")
    _run(row, arguments, _bare, resume_from_checkpoint="latest", **options)
    return _files(folder)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", EVERY_ROW)
def test_every_method_goes_on_at_every_step(
    name: str, accumulation: int, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Read by itself or by two workers, of which the straight run has none."""
    row, straight = EVERY_ROW[name], tmp_path / "straight"
    options = {"gradient_accumulation_steps": accumulation, "checkpointing_steps": 1, "validation_steps": 2}
    arguments = {**arguments, **options, "max_train_steps": LAST, "num_validation_images": 0}
    _run(row, {**arguments, "output_dir": straight}, _bare)
    expected = _files(straight)
    for step in range(1, LAST):
        workers = 2 if (step + accumulation) % 2 else 0
        found = _gone_on_with(row, arguments, straight, step, dataloader_num_workers=workers)
        assert found.keys() == expected.keys()
        assert [file for file in found if found[file] != expected[file]] == [], f"at step {step}, {workers} workers"


@pytest.mark.parametrize("damage", ["other positions", "no optimizer state", "one step further"])
def test_what_a_checkpoint_holds_is_needed(
    damage: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative controls of the test above."""
    row, straight = EVERY_ROW["full_unet"], tmp_path / "straight"
    arguments = {**arguments, "checkpointing_steps": 1, "max_train_steps": LAST, "num_validation_images": 0}
    _run(row, {**arguments, "output_dir": straight}, _bare)
    expected = _files(straight)
    folder, run_id = straight / "checkpoint-2", _run_id(straight)

    def spoilt(target: Path) -> None:
        for file in folder.iterdir():
            if file.name != "manifest.json":
                shutil.copy(file, target / file.name)
        if damage == "no optimizer state":
            tensors = load_file(target / "optimizer.safetensors")
            zeroed = {name: torch.zeros_like(t) if t.ndim else t for name, t in tensors.items()}
            save_file(zeroed, target / "optimizer.safetensors")
        if damage == "one step further":
            state = (target / "state.json").read_text()
            (target / "state.json").write_text(state.replace('"step": 2', '"step": 3'))

    CheckpointStore(straight, run_id).publish(2, spoilt)
    if damage == "other positions":
        monkeypatch.setattr(loader, "own_positions", lambda *rest: [p + 1 for p in own_positions(*rest)])
    found = _gone_on_with(row, arguments, straight, 2)
    assert found["unet.safetensors"] != expected["unet.safetensors"]


class _Scaling(Accelerator):
    """An accelerator as under fp16: the loss is scaled, by a number that grows every other step."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)


def test_the_scale_of_the_loss_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.core.run.Accelerator", _Scaling)
    _train(tmp_path / "straight", checkpointing_steps=3, validation_steps=99)
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    _train(tmp_path / "run", resume_from_checkpoint="latest", validation_steps=99)
    for step, scale in ((3, 16.0), (6, 64.0)):
        told = [json.loads((tmp_path / run / f"checkpoint-{step}" / "state.json").read_text()) for run in RUNS]
        assert told[0] == told[1]
        assert told[0]["scaler"]["scale"] == scale


def _run_id(folder: Path) -> str:

    return str(json.loads((folder / "manifest.json").read_text())["run_id"])


@pytest.mark.parametrize("name", EVERY_ROW)
def test_two_processes_train_what_one_trains(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """With half the images each: the same samples and noise, summed in another order. Dropout differs: there is none.

    The large epsilon keeps Adam from turning the last bits of tiny gradients into whole steps.
    """
    row = EVERY_ROW[name]
    row = row._replace(options={**row.options, **({"dropout": 0.0} if "dropout" in row.options else {})})
    options = {"max_train_steps": 2, "adam_epsilon": 1e-3, "num_validation_images": 0, "validation_steps": 99}
    arguments = {**arguments, **options, "class_data_dir": tmp_path / "class"}
    if "with_prior_preservation" not in row.options:
        del arguments["class_data_dir"]
    _run(row, {**arguments, "output_dir": tmp_path / "one"}, _bare)
    half = {**arguments, "train_batch_size": 1, "output_dir": tmp_path / "two"}
    assert _pair(tmp_path, lambda _: _run(row, half, _bare)) == [0, 0]
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["num_processes"] == 2
    for path in (tmp_path / "one" / "checkpoint-2").glob("*.safetensors"):
        if path.name != "optimizer.safetensors":
            one, two = load_file(path), load_file(tmp_path / "two" / "checkpoint-2" / path.name)
            assert one.keys() == two.keys()
            for key, tensor in one.items():
                torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-5)


def _ended(work: Callable[[], object]) -> int:
    """Return the exit code of a process that works."""

    def started() -> None:
        files._calls.clear()
        work()
        os._exit(0)

    process = FORK.Process(target=started)
    process.start()
    process.join(120)
    return int(process.exitcode or 0)


def test_a_run_killed_at_any_file_operation_is_the_one_that_never_was(tmp_path: Path) -> None:
    """From its first file to its last: settings, status, metrics, two checkpoints."""
    options: dict[str, Any] = {"max_train_steps": 2, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    straight = tmp_path / "straight"

    def count() -> None:
        os.environ[files.CRASH_VARIABLE] = "nowhere:1"
        _train(straight, **options)
        (tmp_path / "calls.json").write_text(json.dumps(files._calls))

    assert _ended(count) == 0
    calls = json.loads((tmp_path / "calls.json").read_text())
    assert set(calls) >= {"make_folder", "write_bytes", "sync_file", "sync_folder", "rename", "append_line"}
    assert calls["save_tensors"] == 4
    points = [f"{operation}:{n}" for operation, number in calls.items() for n in range(1, number + 1)]
    for point in points:
        folder = tmp_path / point.replace(":", "-")

        def crash(folder: Path = folder, point: str = point) -> None:
            os.environ[files.CRASH_VARIABLE] = point
            _train(folder, **options)

        assert _ended(crash) == -signal.SIGKILL, point
        assert _status_is_true(folder), point
        _train(folder, resume_from_checkpoint="auto", **options)
        for name in ("metrics.jsonl", "checkpoint-2/toy.safetensors", "checkpoint-2/optimizer.safetensors"):
            assert (folder / name).read_bytes() == (straight / name).read_bytes(), point
        shutil.rmtree(folder)


def _status_is_true(folder: Path) -> bool:
    """Return whether a status, where there is one, names a checkpoint that is there, the newest or the one before."""
    if not (folder / "status.json").exists():
        return True
    step = json.loads((folder / "status.json").read_text())["last_durable_step"]
    return step == 0 or (folder / f"checkpoint-{step}" / "manifest.json").exists()


def test_a_run_killed_twenty_times_at_random_moments_is_the_one_that_never_was(tmp_path: Path) -> None:
    """SIGKILL some milliseconds after the training has begun, nearly always inside of a save."""
    options: dict[str, Any] = {"max_train_steps": 60, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    _train(tmp_path / "straight", **options)
    expected = {
        path.relative_to(tmp_path / "straight"): path.read_bytes()
        for path in (*(tmp_path / "straight" / "checkpoint-60").iterdir(), tmp_path / "straight" / "metrics.jsonl")
        if path.name != "manifest.json"
    }
    moments, kills, runs = random.Random(15), 0, 0
    while kills < 20:
        folder = tmp_path / f"run-{runs}"
        begun = tmp_path / "begun"
        begun.unlink(missing_ok=True)

        def work(folder: Path = folder, begun: Path = begun) -> None:
            _train(folder, resume_from_checkpoint="auto", hooks={"prepare": begun.touch}, **options)
            os._exit(0)

        process = FORK.Process(target=work)
        process.start()
        while not begun.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            assert all((folder / name).read_bytes() == content for name, content in expected.items())
            runs += 1
    assert not multiprocessing.active_children()
    _train(folder, resume_from_checkpoint="auto", **options)
    assert all((folder / name).read_bytes() == content for name, content in expected.items())
    with RunLock(folder):
        latest = CheckpointStore(folder, _run_id(folder)).find_latest()
    assert latest is not None
    assert latest.step == 60
