"""Where a run is shown beside its own record: the trackers that accelerate knows, and a fault that ends no run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import ProjectConfiguration
from PIL import Image

from data.errors import SettingsError
from finetune.core import tracking
from finetune.core.settings import LoopSettings
from finetune.core.tracking import Tracker, require_trackers, start_trackers


def _open(folder: Path, *names: str, first_step: int = 0) -> Tracker:
    folder.mkdir(exist_ok=True)
    settings = LoopSettings(report_to=names, validation_prompt=("a b", "c"))
    accelerator = Accelerator(
        cpu=True, log_with=list(names), project_config=ProjectConfiguration(logging_dir=str(folder / "logs"))
    )
    started = start_trackers(accelerator, settings, folder, run_id="0a1b2c3d", first_step=first_step)
    return Tracker(folder, first_step=first_step, last_step=9, images_per_step=1, shown_in=started)


@pytest.fixture
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """wandb reads its environment once in a process."""
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def _picture(path: Path) -> Path:
    Image.fromarray(np.full((4, 6, 3), (10, 200, 30), dtype=np.uint8)).save(path)
    return path


def _events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs" / "filrouge"))
    events.Reload()
    return events


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in _events(folder).Scalars(name)]


def test_tensorboard_holds_the_numbers_the_pictures_and_the_settings(tmp_path: Path) -> None:
    tracker = _open(tmp_path / "a", "tensorboard")
    tracker.log(1, loss=0.5, lr=1e-3)
    tracker.log(2, loss=0.25)
    tracker.picture(2, _picture(tmp_path / "sheet.png"))
    tracker.close()
    assert _scalars(tmp_path / "a", "loss") == [(1, 0.5), (2, 0.25)]
    (shown,) = _events(tmp_path / "a").Images("samples")
    assert (shown.step, shown.width, shown.height) == (2, 6, 4)
    (settings,) = (tmp_path / "a" / "logs").rglob("hparams.yml")
    assert "validation_prompt: '[''a b'', ''c'']'" in settings.read_text()


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    first = _open(tmp_path / "a", "tensorboard")
    for step in (1, 2, 3):
        first.log(step, loss=float(step))
    first.close()
    again = _open(tmp_path / "a", "tensorboard", first_step=1)
    again.log(2, loss=20.0)
    again.close()
    assert _scalars(tmp_path / "a", "loss") == [(1, 1.0), (2, 20.0)]


def test_wandb_keeps_numbers_settings_and_pictures_without_a_network(
    tmp_path: Path, fresh_wandb: pytest.MonkeyPatch
) -> None:
    fresh_wandb.setenv("WANDB_MODE", "offline")
    fresh_wandb.setenv("WANDB_SILENT", "true")
    tracker = _open(tmp_path / "a", "wandb", "tensorboard")
    tracker.log(1, loss=0.5)
    tracker.picture(1, _picture(tmp_path / "sheet.png"))
    tracker.close()
    wandb.teardown()  # the record is written by a process of its own
    (run,) = (tmp_path / "a" / "wandb").glob("offline-run-*-0a1b2c3d")
    (kept,) = run.rglob("samples_*.png")
    assert np.array_equal(np.asarray(Image.open(kept)), np.asarray(Image.open(tmp_path / "sheet.png")))
    record = (run / "run-0a1b2c3d.wandb").read_bytes()
    assert b"loss" in record
    assert b"max_grad_norm" in record
    assert _scalars(tmp_path / "a", "loss") == [(1, 0.5)]  # several at once


def test_wandb_goes_on_in_the_run_of_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        asked.update(options)
        return object()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "config", {})
    _open(tmp_path / "a", "wandb")
    assert {key: asked[key] for key in ("project", "id", "resume")} == {
        "project": "filrouge",
        "id": "0a1b2c3d",
        "resume": "allow",
    }


def test_wandb_without_a_login_says_what_to_do(tmp_path: Path, fresh_wandb: pytest.MonkeyPatch) -> None:
    fresh_wandb.setenv("WANDB_MODE", "online")
    fresh_wandb.setenv("WANDB_API_KEY", "too-short")
    with pytest.raises(SettingsError, match=r"(?s)--report_to: wandb does not.*wandb login.*WANDB_MODE=offline"):
        _open(tmp_path / "a", "wandb")


def test_trackio_goes_on_in_the_same_run_and_keeps_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, when it is imported
    pytest.importorskip("trackio")
    import sqlite3

    for first_step in (0, 1):
        tracker = _open(tmp_path / "a", "trackio", first_step=first_step)
        tracker.log(first_step + 1, loss=0.5)
        tracker.picture(first_step + 1, _picture(tmp_path / "sheet.png"))
        tracker.close()
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("a-0a1b2c3d", step) for step in (1, 1, 2, 2)]
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("names", "installed", "problem"),
    [
        (["tensorbord"], ["tensorboard"], "accelerate knows no tracker 'tensorbord'. Did you mean tensorboard?"),
        (["wandb"], ["tensorboard"], r"wandb is not installed. Leave it out"),
        (["tensorboard", "mlflow"], ["tensorboard"], "mlflow is not installed"),
        (["all"], [], "no tracker is installed"),
        ([], [], None),
        (["all"], ["tensorboard"], None),
        (["tensorboard"], ["tensorboard"], None),
    ],
)
def test_a_tracker_that_is_not_there_is_named(
    names: list[str], installed: list[str], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: installed)
    if problem is None:
        require_trackers(names)
    else:
        with pytest.raises(SettingsError, match=re.escape(f"--report_to: {problem}")):
            require_trackers(names)


class _Failing(GeneralTracker):
    """Fails at the first number, and must not be asked again."""

    name, requires_logging_directory, tracker = "failing", False, None

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__()

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.asked.append(f"log {step} {values}")
        raise OSError("no space")

    def finish(self) -> None:
        self.asked.append("finish")


class _Kept(_Failing):
    """Does not fail, and has no way to show a picture."""

    name = "kept"

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.asked.append(f"log {step} {values}")


def test_a_failing_tracker_is_left_out_with_one_warning_and_the_others_go_on(tmp_path: Path) -> None:
    failing, kept = _Failing(), _Kept()
    tracker = Tracker(tmp_path, first_step=0, last_step=2, images_per_step=1, shown_in=[failing, kept])
    with pytest.warns(UserWarning, match=re.escape("failing failed and is left out from here on: no space")):
        tracker.log(1, loss=0.5)
    tracker.log(2, loss=0.25)
    with pytest.warns(UserWarning, match="kept shows no pictures here; they lie in"):
        tracker.picture(2, _picture(tmp_path / "sheet.png"))
    tracker.close()
    assert failing.asked == ["log 1 {'loss': 0.5}"]
    assert kept.asked == ["log 1 {'loss': 0.5}", "log 2 {'loss': 0.25}", "finish"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
