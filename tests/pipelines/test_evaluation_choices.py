"""What an evaluation chose is written into the runs' folders, or it is said that it cannot be."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipelines.evaluation import judging
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.selection import Choice

CHOSEN = Choice(400, "because", None, {})


def _written(run: Path, store: Path) -> list[str]:
    plan = cast(Plan, SimpleNamespace(runs={"run": SimpleNamespace(path=run)}))
    return judging._write_choices(plan, ImageStore(store), {"run": CHOSEN})


def test_the_choice_is_in_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert _written(tmp_path / "run", tmp_path / "store") == []
    assert json.loads((tmp_path / "run" / "choice.json").read_text())["step"] == 400


def _failing(number: int) -> Any:
    def write(path: Path, _: str) -> None:
        raise OSError(number, "said by the disk", str(path))

    return write


def test_a_run_that_may_not_be_written_costs_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "write_text", _failing(errno.EROFS))
    (said,) = _written(tmp_path, tmp_path / "store")
    assert said == (
        "run: choice.json cannot be written into its folder (said by the disk): --select best will not know that step "
        "400 was chosen."
    )


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "write_text", _failing(errno.ENOSPC))
    with pytest.raises(OSError, match="said by the disk"):
        _written(tmp_path, tmp_path / "store")
