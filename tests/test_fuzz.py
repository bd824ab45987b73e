"""The readers under damaged and hostile files: a short, repeatable part of what `python -m tests.fuzz` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.rounds import run_round
from tests.fuzz.targets import TARGETS

NUM_CASES = {"volumes": 150, "images": 250, "captions": 150, "prompts": 250, "yaml": 60, "adapters": 40}


@pytest.mark.parametrize("name", TARGETS)
def test_each_reader_takes_a_file_or_refuses_it_in_words(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    seen: list[object] = []

    def look(case: object) -> None:
        seen.append(case)
        target.look(case, tmp_path)

    run_round(target.cases(), look, seed=15, num_cases=NUM_CASES[name])
    assert len(seen) >= NUM_CASES[name] // 2
