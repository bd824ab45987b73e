"""What an evaluation says of the cost of a run, from the record in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.evaluation.cost import cost_of, reached, taken
from pipelines.evaluation.states import AskedRun


def _session(**changed: object) -> str:
    return json.dumps(
        {
            "first_step": 0,
            "last_step": 10,
            "image_visits": 80,
            "seconds": 60.0,
            "images_per_s": 1.33,
            "peak_memory_mib": 900,
            "device": "cpu",
            "processes": 1,
            "threads": 2,
            **changed,
        }
    )


def test_the_sessions_of_a_run_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "cost.jsonl").write_text(f"{_session()}\n{_session(seconds=30.0, peak_memory_mib=1234)}\n")
    assert taken(tmp_path / "cost.jsonl") == {
        "training, min": "1.5",
        "images/s": "1.8",
        "memory, MiB": "1,234",
        "on": "cpu, 2 threads",
    }


def test_a_run_without_a_readable_record_says_nothing(tmp_path: Path) -> None:
    assert taken(tmp_path / "cost.jsonl") == {}
    for content in ("", "{", '{"seconds": 1}\n'):
        (tmp_path / "cost.jsonl").write_text(content)
        assert taken(tmp_path / "cost.jsonl") == {}


def test_what_a_run_trained_is_counted_once_from_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    held = {"unet": ("a", "ema/a"), "averaged": ("unet/a",), "optimizer": ("unet/a/exp_avg", "unet/a/z")}
    for name, keys in held.items():
        save_file({key: torch.zeros(3, 4) for key in keys}, folder / f"{name}.safetensors")
    assert cost_of(AskedRun(tmp_path, "run", {}), {})["trained parameters"] == "12"


def test_the_time_to_a_skill_is_that_of_the_first_state_that_has_it() -> None:
    skills = {100: 0.5, 200: 0.81, 300: 0.79, 400: 0.9}
    assert reached(skills, 400, "6.0") == "by step 200, 3.0 min"
    assert reached(skills, 400, None) == "by step 200"
    assert reached({100: 0.5, 300: 0.79}, 300, "6.0") == "not by step 300"
