"""A run from its settings to its artefact on a toy: what it says at its end, and what it lets a continuation change."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from data.errors import OutputError, SettingsError
from finetune.core.files import load_tensors
from finetune.core.method import Method
from finetune.core.run import run
from finetune.core.settings import LoopSettings
from finetune.core.trainables import WholeModule
from tests.finetune.test_loop import Denoising, Points


def _settings(folder: Path, **options: Any) -> LoopSettings:
    values = {"max_train_steps": 4, "train_batch_size": 2, "checkpointing_steps": 2, "logging_steps": 1, **options}
    return LoopSettings.model_validate({"output_dir": folder, "num_threads": 1, **values})


def _run(folder: Path, export: Callable[[Path], list[str]] = lambda _: ["to use it"], **options: Any) -> None:
    def build(_: LoopSettings, accelerator: Accelerator) -> Method:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            module = nn.Linear(4, 4).to(accelerator.device)
        return Method(
            name="toy",
            dataset=Points(),
            objective=Denoising(module),
            trainables=(WholeModule("toy", module),),
            export=export,
            manifest={},
        )

    run(_settings(folder, **options), build, default_dir="unused")


def _status(folder: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return status


def test_how_to_use_the_result_is_told_though_its_curves_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(folder: Path) -> list[str]:
        (folder / "curves.png").mkdir()
        return ["to use it"]

    with pytest.raises(OutputError, match=r"curves\.png"):
        _run(tmp_path / "run", export)
    assert capsys.readouterr().out.endswith("to use it\n")
    assert _status(tmp_path / "run")["status"] == "failed"


def test_a_run_whose_tracker_does_not_start_is_not_said_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.teardown()  # it reads its environment once in a process
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    _run(tmp_path / "run", max_train_steps=2)
    with pytest.raises(SettingsError, match="wandb does not start"):
        _run(tmp_path / "run", max_train_steps=4, report_to=("wandb",), resume_from_checkpoint="latest")
    wandb.teardown()
    status = _status(tmp_path / "run")
    assert (status["status"], status["last_durable_step"]) == ("failed", 2)
    assert "wandb does not start" in status["reason"]


def _said_to_be_of(num_processes: int, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_processes"] == 1
    (folder / "manifest.json").write_text(json.dumps({**manifest, "num_processes": num_processes}))


def test_a_run_of_two_processes_does_not_go_on_with_half_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _run(folder, max_train_steps=2)
    _said_to_be_of(2, folder)
    before = (folder / "settings.yaml").read_bytes()
    with pytest.raises(OutputError, match=r"so 4 with 2\. Write --train_batch_size 4, or start 2\."):
        _run(folder, max_train_steps=4, resume_from_checkpoint="latest")
    assert (folder / "settings.yaml").read_bytes() == before
    assert not (folder / "checkpoint-4").exists()
    _run(folder, max_train_steps=4, train_batch_size=4, resume_from_checkpoint="latest")
    assert _status(folder)["last_durable_step"] == 4
    _run(folder, max_train_steps=6, train_batch_size=4, resume_from_checkpoint="latest")  # now a run of one


def _continued(rank: int, port: int, folder: Path) -> None:
    """Go on with a run as one of two processes that a launcher has started."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
    AcceleratorState._reset_state(True)
    with pytest.raises(OutputError, match=r"so 4 images at once with 2 processes.*Write --train_batch_size 1"):
        _run(folder, resume_from_checkpoint="latest")
    _run(folder, resume_from_checkpoint="latest", train_batch_size=1)


def test_two_processes_go_on_with_the_images_of_one(tmp_path: Path) -> None:
    _run(tmp_path / "one")
    _run(tmp_path / "two", max_train_steps=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_continued, args=(rank, port, tmp_path / "two")) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["num_processes"] == 2
    one, two = (load_tensors(tmp_path / name / "checkpoint-4" / "toy.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-6)
