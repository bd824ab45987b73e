"""What a run shows beside its own record: numbers and pictures over the steps, and a fault that ends no run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image

from data.errors import SettingsError
from finetune.core import boards
from finetune.core.boards import Faultless, open_board, require
from finetune.core.tracking import Tracker


def _open(name: Any, folder: Path, first_step: int = 0) -> Any:
    folder.mkdir(exist_ok=True)
    return open_board(name, folder, run_id="0a1b2c3d", first_step=first_step, settings={"rank": 8})


@pytest.fixture
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """wandb reads its environment once in a process."""
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def _picture(path: Path) -> Path:
    Image.fromarray(np.full((4, 6, 3), (10, 200, 30), dtype=np.uint8)).save(path)
    return path


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_holds_the_numbers_and_the_pictures_of_the_steps(tmp_path: Path) -> None:
    board = _open("tensorboard", tmp_path / "a")
    board.log(1, {"loss": 0.5, "lr": 1e-3})
    board.log(2, {"loss": 0.25})
    board.picture(2, _picture(tmp_path / "sheet.png"))
    board.close()
    assert _scalars(tmp_path / "a", "loss") == [(1, 0.5), (2, 0.25)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    (shown,) = events.Images("samples")
    assert (shown.step, shown.width, shown.height) == (2, 6, 4)


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    first = _open("tensorboard", tmp_path / "a")
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.close()
    again = _open("tensorboard", tmp_path / "a", first_step=1)
    again.log(2, {"loss": 20.0})
    again.close()
    assert _scalars(tmp_path / "a", "loss") == [(1, 1.0), (2, 20.0)]


def test_wandb_keeps_numbers_settings_and_pictures_without_a_network(
    tmp_path: Path, fresh_wandb: pytest.MonkeyPatch
) -> None:
    fresh_wandb.setenv("WANDB_MODE", "offline")
    fresh_wandb.setenv("WANDB_SILENT", "true")
    board = _open("wandb", tmp_path / "a")
    board.log(1, {"loss": 0.5})
    board.picture(1, _picture(tmp_path / "sheet.png"))
    board.close()
    wandb.teardown()  # the record is written by a process of its own
    (run,) = (tmp_path / "a" / "wandb").glob("offline-run-*-0a1b2c3d")
    (kept,) = run.rglob("samples_*.png")
    assert np.array_equal(np.asarray(Image.open(kept)), np.asarray(Image.open(tmp_path / "sheet.png")))
    record = (run / "run-0a1b2c3d.wandb").read_bytes()
    assert b"loss" in record
    assert b"rank" in record


def test_wandb_without_a_login_says_what_to_do(tmp_path: Path, fresh_wandb: pytest.MonkeyPatch) -> None:
    fresh_wandb.setenv("WANDB_MODE", "online")
    fresh_wandb.setenv("WANDB_API_KEY", "too-short")
    with pytest.raises(SettingsError, match=r"(?s)--report_to.*wandb login.*WANDB_MODE=offline"):
        _open("wandb", tmp_path / "a")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require(name)
    monkeypatch.setattr(boards, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=rf"{name} is not installed.*filrouge\[trackers\]"):
        require(name)
    require("none")


class _Failing:
    """Fails at the first number, and must not be asked again."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.asked.append(f"log {step} {dict(values)}")
        raise OSError("no space")

    def picture(self, step: int, path: Path) -> None:
        self.asked.append(f"picture {step} {path.name}")

    def close(self) -> None:
        self.asked.append("close")


def test_a_failing_board_is_left_out_with_one_warning_and_the_record_goes_on(tmp_path: Path) -> None:
    failing = _Failing()
    board = Faultless(failing, "wandb")
    tracker = Tracker(tmp_path, first_step=0, last_step=2, images_per_step=1, board=board)
    with pytest.warns(UserWarning, match=re.escape("wandb failed and is left out from here on: no space")):
        tracker.log(1, loss=0.5)
    tracker.log(2, loss=0.25)
    tracker.picture(2, tmp_path / "none.png")
    tracker.close()
    assert failing.asked == ["log 1 {'loss': 0.5}"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_no_board_is_opened_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert _open("none", tmp_path / "a") is None
    assert list((tmp_path / "a").iterdir()) == []
