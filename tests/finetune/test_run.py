"""A run from its settings to its artefact on a toy: what it says at its end, and what it lets a continuation change."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from data.errors import OutputError, SettingsError
from finetune.core.contradictions import RECIPE, TYPED, Origin
from finetune.core.files import load_tensors
from finetune.core.method import Method
from finetune.core.run import _on_this_machine, run
from finetune.core.settings import LoopSettings
from finetune.core.trainables import WholeModule
from tests.finetune.test_loop import Denoising, Points


def _settings(folder: Path, **options: Any) -> LoopSettings:
    values = {"max_train_steps": 4, "train_batch_size": 2, "checkpointing_steps": 2, "logging_steps": 1, **options}
    given = {name: value for name, value in values.items() if value is not None}
    return LoopSettings.model_validate({"output_dir": folder, "num_threads": 1, **given})


def _run(
    folder: Path,
    export: Callable[[Path], list[str]] = lambda _: ["to use it"],
    *,
    origin: Origin | None = None,
    **options: Any,
) -> None:
    """Run the toy. origin: where its settings come from; None is a command line that says all of them."""

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

    settings = _settings(folder, **options)
    run(settings if origin is None else settings.coming_from(origin), build, default_dir="unused")


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


# what is known of a recipe only when the machine and the images are


@pytest.mark.parametrize(
    ("launched", "gpu", "has_bf16", "expected"),
    [
        (None, "cpu", True, None),
        ("no", "cpu", True, None),
        ("bf16", "cpu", True, "bf16"),
        (None, "cuda", True, "bf16"),
        ("no", "cuda", True, "bf16"),  # what a launcher without a configuration says
        ("fp16", "cuda", True, None),
        ("no", "cuda", False, "fp16"),
    ],
)
def test_the_precision_of_a_recipe_gives_way_to_the_machine_and_to_the_launcher(
    launched: str | None,
    gpu: str,
    has_bf16: bool,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu == "cuda")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr("finetune.core.run.PartialState", lambda: SimpleNamespace(device=torch.device(gpu)))
    settings = _settings(tmp_path, mixed_precision="bf16")
    of_recipe = _on_this_machine(settings.coming_from(Origin({"mixed_precision": RECIPE})))
    assert of_recipe.mixed_precision == expected
    told = [line for line in of_recipe.origin.plan if line.startswith("gives way   --mixed_precision bf16")]
    assert len(told) == (expected != "bf16")
    typed = settings.coming_from(Origin({"mixed_precision": TYPED}))
    assert _on_this_machine(typed).mixed_precision == "bf16"


def test_a_typed_precision_must_be_that_of_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(SettingsError, match="found bf16, but accelerate was launched with no"):
        _run(tmp_path / "run", mixed_precision="bf16")


def test_the_plan_of_a_run_tells_recipe_rate_and_what_gave_way_and_a_warning_stands_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = {"num_train_epochs": TYPED, "lr_warmup_steps": RECIPE}
    options: dict[str, Any] = {"num_train_epochs": 2, "max_train_steps": None, "lr_warmup_steps": 500}
    options |= {"lr_scheduler": "cosine", "learning_rate": 0.5}
    origin = Origin(ranks, ("recipe      toy.yaml",), ("--learning_rate: 0.5 is 500 times the 0.001.",))
    _run(tmp_path / "run", origin=origin, **options)
    printed = capsys.readouterr()
    steps = _status(tmp_path / "run")["last_durable_step"]
    assert f"rate        0.5, cosine, {steps // 10} steps of warm-up, adamw\n" in printed.out
    assert "recipe      toy.yaml\n" in printed.out
    way = f"--lr_warmup_steps 500 is {steps // 10} here: --num_train_epochs 2 makes {steps} steps"
    assert f"gives way   {way}\n" in printed.out
    assert "filrouge: warning: --learning_rate: 0.5 is 500 times the 0.001.\n" in printed.err
    assert f"lr_warmup_steps: {steps // 10}\n" in (tmp_path / "run" / "settings.yaml").read_text()
    with pytest.raises(SettingsError, match="--lr_warmup_steps: found 500, expected fewer than the"):
        _run(tmp_path / "other", **options)
