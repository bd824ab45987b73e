"""What the folder of a run says of it: how many images a step has seen, and the loss of held-out images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import OutputError
from pipelines.evaluation.states import AskedRun

MANIFEST = {"settings": {"train_batch_size": 4, "gradient_accumulation_steps": 2}, "data": {"num_images": 10}}


def test_visits_are_steps_times_images_of_a_step(tmp_path: Path) -> None:
    assert AskedRun(tmp_path, "run", MANIFEST).visits(5) == (40, 4.0)
    assert AskedRun(tmp_path, "run", {"settings": MANIFEST["settings"]}).visits(5) == (40, None)
    assert AskedRun(tmp_path, "run", MANIFEST).visits(None) == (None, None)
    assert AskedRun(tmp_path, "run", {}).visits(5) == (None, None)


def test_losses_of_held_out_images_stand_in_the_record_of_the_run(tmp_path: Path) -> None:
    records = [
        {"step": 1, "loss": 0.3},
        {"step": 2, "loss": 0.2, "validation_loss": 0.25},
        {"step": 4, "validation_loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    assert AskedRun(tmp_path, "run", {}).held_out_losses == {2: 0.25, 4: 0.5}
    assert AskedRun(tmp_path / "metrics.jsonl", "file", {}).held_out_losses == {}
    assert AskedRun(tmp_path / "nothing", "run", {}).held_out_losses == {}


def test_a_spoilt_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "validation_loss": "x"}\n')
    with pytest.raises(OutputError, match="line 1: found"):
        _ = AskedRun(tmp_path, "run", {}).held_out_losses
