"""The promises of docs/reliability.md: each names a test, and the test is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"


def _promises() -> Iterator[tuple[str, list[str]]]:
    """Give each promise with the tests that it names; "…" stands for the file that was named last."""
    file, in_table = "", False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| fault |"):
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table and not line.startswith("|---"):
            fault, _, named = line.strip("|").split(" | ")
            tests = []
            for path, test in re.findall(r"`([\w/]+\.py|…)(?:::(\w+))?`", named):
                file = file if path == "…" else path
                tests.append(f"{file}::{test}")
            yield fault.strip(), tests


@pytest.mark.parametrize(("fault", "tests"), [pytest.param(*promise, id=promise[0][:40]) for promise in _promises()])
def test_a_promise_has_its_tests(fault: str, tests: list[str]) -> None:
    assert tests, fault
    for named in tests:
        file, _, test = named.partition("::")
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test or 'test_'}", source, re.MULTILINE), named


def test_the_page_has_promises_of_every_kind() -> None:
    headings = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"Exit codes", "Stops and crashes", "Checkpoints and resume", "Weights"} <= set(headings)
    assert len(list(_promises())) >= 25
