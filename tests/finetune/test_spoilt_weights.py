"""Weights are judged after the step that made them, and before anything is published; pictures are no judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data.errors import NonFiniteError, OutputError
from finetune.core.checkpoint import CheckpointStore
from pipelines.finite import largest, module_problems, not_finite
from tests.finetune.test_contract import ROWS, _run, arguments, scans
from tests.finetune.test_stops import _told, _train

__all__ = ["arguments", "scans"]  # fixtures


@pytest.mark.parametrize("rate", [1e39, 1e30, 1e9])
def test_a_step_that_spoils_the_weights_is_the_last_and_is_not_saved(rate: float, tmp_path: Path) -> None:
    """1e39 published a checkpoint that the next step's error recommended; 1e9 ended with an export and code 0."""
    with pytest.raises(NonFiniteError, match=r"step 1: .*the last checkpoint is none") as caught:
        _train(tmp_path, learning_rate=rate, checkpointing_steps=1)
    assert "Lower --learning_rate" in str(caught.value)
    assert not list(tmp_path.glob("checkpoint-*"))
    assert _told(tmp_path) == ("failed", 0, 5)
    assert json.loads((tmp_path / "nonfinite-0.json").read_text())["positions"] == [0, 1]


@pytest.mark.parametrize("method", ["textual_inversion", "lora", "full_unet"])
def test_what_is_learnt_beyond_half_precision_is_not_exported(method: str, arguments: dict[str, Any]) -> None:
    """A text encoder normalizes a word of length 1e9, so that its loss looks as any other."""
    row = ROWS[method]
    with pytest.raises(NonFiniteError, match=r"step 1: .*65504"):
        _run(row, arguments, learning_rate=1e9, max_train_steps=1)
    assert not any((arguments["output_dir"] / file).exists() for file in row.leaves)


def test_a_checkpoint_with_weights_that_are_not_finite_is_not_gone_on_from(tmp_path: Path) -> None:
    """One that an earlier version has published."""
    _train(tmp_path, max_train_steps=2)
    store = CheckpointStore(tmp_path, json.loads((tmp_path / "manifest.json").read_text())["run_id"])

    def spoilt(folder: Path) -> None:
        for file in (tmp_path / "checkpoint-2").iterdir():
            if file.name != "manifest.json":
                (folder / file.name).write_bytes(file.read_bytes())
        tensors = load_file(folder / "toy.safetensors")
        save_file({name: tensor * torch.nan for name, tensor in tensors.items()}, folder / "toy.safetensors")

    store.publish(3, spoilt)
    with pytest.raises(OutputError, match=r"checkpoint-3.*not finite.*earlier checkpoint-N"):
        _train(tmp_path, resume_from_checkpoint="latest")
    _train(tmp_path, resume_from_checkpoint="checkpoint-2")


def test_a_base_that_draws_black_trains_and_is_told(
    arguments: dict[str, Any], tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Air is black: it ended a training at its preview, or after its last step without an artefact."""
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_out.weight"].zero_()
    tensors["decoder.conv_out.bias"].fill_(-50.0)
    save_file(tensors, file, metadata={"format": "pt"})
    black = {**arguments, "pretrained_model_name_or_path": str(base)}
    _run(ROWS["lora"], black, max_train_steps=2, validation_steps=1)
    assert all((arguments["output_dir"] / name).exists() for name in ROWS["lora"].leaves)
    assert "is black in every pixel" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_in_many_is_seen(value: float) -> None:
    tensors = {"a": torch.zeros(3, 5), "b": torch.full((70_000,), 1e30), "c": torch.arange(3)}
    assert not_finite(tensors) == []
    tensors["b"][69_999] = value
    assert not_finite(tensors) == ["b"]
    assert not np.isfinite(largest(tensors[name] for name in "ab"))
    module = nn.Linear(2, 2)
    assert module_problems(module) == []
    module.bias.data[1] = value
    assert "bias" in module_problems(module)[0]


def test_the_largest_number_is_that_of_all_tensors() -> None:
    assert largest([torch.tensor([1.0, -7.0]), torch.tensor([3.0]), torch.zeros(0)]) == 7.0
    assert largest([torch.tensor([3e38, 3e38])]) == pytest.approx(3e38)  # whose squares are beyond float32
