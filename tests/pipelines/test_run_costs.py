"""What an evaluation says of the cost of a run, from the record in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.evaluation.cost import taken


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
