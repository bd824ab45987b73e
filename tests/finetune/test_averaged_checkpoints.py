"""Runs of an optimizer that averages: a checkpoint holds the weights to go on from, and those that are to be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from finetune.core import settings as options
from finetune.core.run import run
from pipelines.evaluation.checkpoints import restore_checkpoint
from pipelines.runs import is_whole, open_tuned

NEW_WORD = {"placeholder_token": "<dry>", "initializer_token": "dry"}
AVERAGED = "averaged.safetensors"


class Row(NamedTuple):
    """A method, and the files of its trained parts in a checkpoint."""

    script: str
    settings: type[options.ConceptSettings]
    options: dict[str, Any]
    parts: tuple[str, ...]


ROWS = {
    "whole": Row("full_unet", options.FullUnetSettings, {"train_text_encoder": True}, ("text_encoder", "unet")),
    "adapters": Row(
        "lora",
        options.LoraSettings,
        {"rank": 2, "train_text_encoder": True},
        ("text_encoder_lora", "unet_lora"),
    ),
    "a word, then adapters": Row(
        "pivotal_tuning",
        options.PivotalTuningSettings,
        {**NEW_WORD, "pivot": 0.5, "rank": 2},
        ("token_rows", "unet_lora"),
    ),
}


@pytest.fixture(scope="module")
def arguments(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    pictures = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a dry texture\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("assembly.SAMPLING_STEPS", "exports.SAMPLING_STEPS", "assembly.VALIDATION_IMAGES"):
            patch.setattr(f"finetune.core.{name}", 1)
        yield {
            "train_data_dir": pictures,
            "pretrained_model_name_or_path": str(tiny_base_dir),
            "max_train_steps": 4,
            "train_batch_size": 1,
            "checkpointing_steps": 1,
            "num_validation_images": 1,
            "learning_rate": 1e-2,
            "optimizer": "schedule_free",
            "lr_scheduler": "constant",
        }


@pytest.fixture(scope="module")
def make_run(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a row's run, which is made once."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(lambda name: _run(ROWS[name], arguments, output_dir=folder / name.replace(", ", "-")))


def _run(row: Row, arguments: dict[str, Any], **more: Any) -> Path:
    settings = row.settings.model_validate({**arguments, **row.options, **more})
    run(settings, import_module(f"finetune.{row.script}").build, default_dir="unused")
    assert settings.output_dir is not None
    return settings.output_dir


def _weights(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    modules = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {f"{part}.{key}": t.clone() for part, module in modules.items() for key, t in module.state_dict().items()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ROWS)
def test_a_checkpoint_of_the_last_step_draws_what_the_result_draws(
    name: str, make_run: Callable[[str], Path], tiny_base_dir: Path
) -> None:
    folder = make_run(name)
    pipeline = open_tuned([folder], base=None if is_whole(folder) else str(tiny_base_dir)).pipeline
    result = _weights(pipeline)
    restore_checkpoint(pipeline, folder, folder / "checkpoint-3")
    assert not _equal(_weights(pipeline), result)
    restore_checkpoint(pipeline, folder, folder / "checkpoint-4")
    assert _equal(_weights(pipeline), result)
    averaged = load_file(folder / "checkpoint-4" / AVERAGED)
    for part in ROWS[name].parts:  # the point at which it trains is another one
        trained = load_file(folder / "checkpoint-4" / f"{part}.safetensors")
        assert any(not torch.equal(averaged[f"{part}/{key}"], t) for key, t in trained.items())


def test_a_resumed_run_is_the_uninterrupted_one(
    arguments: dict[str, Any], make_run: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "a word, then adapters"
    straight, resumed = make_run(name), tmp_path / "run"
    shutil.copytree(straight, resumed)
    for step in (2, 3, 4):  # go on from within the word's share
        shutil.rmtree(resumed / f"checkpoint-{step}")
    _run(ROWS[name], arguments, output_dir=resumed, resume_from_checkpoint="latest")
    files = [path.name for path in sorted((straight / "checkpoint-4").glob("*.safetensors"))]
    assert files == [AVERAGED, "optimizer.safetensors", "token_rows.safetensors", "unet_lora.safetensors"]
    for file in (*files, "optimizer.json"):
        assert (resumed / "checkpoint-4" / file).read_bytes() == (straight / "checkpoint-4" / file).read_bytes(), file


def test_the_steps_of_a_late_part_are_counted_from_its_first_one(make_run: Callable[[str], Path]) -> None:
    folder = make_run("a word, then adapters")
    counted = []
    for step in range(1, 5):
        described = json.loads((folder / f"checkpoint-{step}" / "optimizer.json").read_text())
        counted.append([group["options"]["dict"]["k"] for group in described["groups"]])
    assert counted == [[1, 0], [2, 0], [2, 1], [2, 2]]


def test_other_optimizers_leave_no_such_file(arguments: dict[str, Any], tmp_path: Path) -> None:
    folder = _run(ROWS["adapters"], arguments, optimizer="adamw", max_train_steps=1, output_dir=tmp_path / "run")
    assert [path.name for path in sorted((folder / "checkpoint-1").iterdir())] == [
        "manifest.json",
        "optimizer.json",
        "optimizer.safetensors",
        "state.json",
        "text_encoder_lora.safetensors",
        "unet_lora.safetensors",
    ]
