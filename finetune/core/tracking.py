"""What a run tells while it goes on: its progress, metrics.jsonl, and the trackers of accelerate."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from data.errors import DiskError, SettingsError, nearest
from data.progress import Progress
from finetune.core import files
from finetune.core.settings import LoopSettings
from pipelines.run_records import metrics_record


class Tracker:
    """Records one line of metrics.jsonl for each logged step; the record survives a crash and a resumed run.

    A tracker of accelerate's that fails is left out from then on, with one warning: none of their faults ends a run.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        last_step: int,
        images_per_step: int,
        done: Counter[str] | None = None,
        shown_in: Sequence[GeneralTracker] = (),
        enabled: bool = True,
        outlives_full_disk: bool = False,
    ) -> None:
        """done: counts what is done beside the steps. shown_in: started trackers. enabled: False for all processes of a
        run but the first, which write nothing. outlives_full_disk: keep lines that the disk does not take until it
        does, instead of raising DiskError.
        """
        self.path = run_dir / "metrics.jsonl"
        if enabled:
            self._drop_lines_after(first_step)
        self._images_per_step = images_per_step
        self._bar = Progress(total=last_step, initial=first_step, unit="step", desc="train", disable=not enabled)
        self._started, self._first_step = time.monotonic(), first_step
        self._trackers = list(shown_in)
        self._outlives_full_disk, self._unwritten = outlives_full_disk, list[str]()
        self._done = Counter() if done is None else done

    def step(self, step: int, loss: float) -> None:
        seconds = time.monotonic() - self._started
        rate = (step - self._first_step) * self._images_per_step / max(seconds, 1e-9)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s", refresh=False)
        self._bar.update(1)

    def prepared(self, done: Mapping[str, int]) -> None:
        """Count what was done before steps."""
        self._done.update(done)

    def log(self, step: int, **values: float) -> None:
        self._unwritten.append(json.dumps({"step": step, **values}))
        try:
            while self._unwritten:
                files.append_line(self.path, self._unwritten[0])
                self._unwritten.pop(0)
        except DiskError:
            if not self._outlives_full_disk:
                raise
        self._show(lambda tracker: tracker.log(values, step=step))

    def picture(self, step: int, path: Path) -> None:
        """Show the sample sheet of a step."""
        self._show(lambda tracker: _show_picture(tracker, step, path))

    def close(self) -> None:
        self._bar.close()
        self._show(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _show(self, show: Callable[[GeneralTracker], object]) -> None:
        for tracker in list(self._trackers):
            try:
                show(tracker)
            except Exception as error:
                warnings.warn(f"{tracker.name} failed and is left out from here on: {error}", stacklevel=3)
                self._trackers.remove(tracker)

    def _drop_lines_after(self, step: int) -> None:
        """Forget lines beyond the step from which a run goes on, and a last line that was torn by a crash.

        Where another line is damaged, the file as it was stays beside it.
        """
        if not self.path.exists():
            return
        raw = self.path.read_bytes()
        lines = raw.split(b"\n")
        records = {number: metrics_record(line) for number, line in enumerate(lines, start=1)}
        damaged = [number for number, record in records.items() if record is None and number < len(lines)]
        if damaged:
            aside = self.path.with_name(f"damaged-{self.path.name}")
            files.write_bytes_atomic(aside, raw)
            told = ", ".join(map(str, damaged[:5])) + (", …" if damaged[5:] else "")
            warnings.warn(f"{self.path}: left out what is no record, line {told}; {aside.name} has it", stacklevel=3)
        so_far = [number for number, record in records.items() if record is not None and record["step"] <= step]
        files.write_bytes_atomic(self.path, b"".join(lines[number - 1] + b"\n" for number in so_far))


def require_trackers(names: Sequence[str]) -> None:
    """Raise SettingsError naming every tracker that accelerate does not know, or whose package is not installed."""
    known, installed = LoggerType.list(), {str(name) for name in get_available_trackers()}
    problems = [f"accelerate knows no tracker {name!r}.{nearest(name, known)}" for name in names if name not in known]
    problems += [
        f"{name} is not installed. Leave it out, as metrics.jsonl and curves.png are written in any case, or install "
        f"it: pip install {name}"
        for name in names
        if name in known and name not in installed | {str(LoggerType.ALL)}
    ]
    if not installed and str(LoggerType.ALL) in names:
        problems.append("no tracker is installed. Leave it out, or install one: pip install tensorboard")
    if problems:
        raise SettingsError("--report_to", *problems)


def start_trackers(
    accelerator: Accelerator, settings: LoopSettings, run_dir: Path, *, run_id: str, first_step: int
) -> list[GeneralTracker]:
    """Start the trackers that an accelerator was made with, for a run that goes on from first_step, and return them.

    TensorBoard forgets what was shown beyond that step; W&B and trackio go on in the run of the same run_id.
    Raises SettingsError where one does not start.
    """
    values = settings.model_dump(mode="json")
    config = {name: value if _is_plain(value) else str(value) for name, value in values.items()}
    options = {
        "tensorboard": {"purge_step": first_step + 1},
        "wandb": {
            "name": run_dir.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(run_dir),
            "settings": {"console": "off"},
        },
        "trackio": {"name": f"{run_dir.name}-{run_id}", "resume": "allow", "embed": False},
    }
    trackers: list[GeneralTracker] = accelerator.trackers
    try:
        accelerator.init_trackers(settings.tracker_project_name, config=config, init_kwargs=options)
    except Exception as error:  # every tracker raises its own kinds
        # what `tracker` gives exists once a tracker has started
        not_started = [tracker.name for tracker in trackers if not hasattr(tracker, "tracker")]
        failed = not_started[0] if not_started else ", ".join(settings.report_to)
        found = (str(error) or type(error).__name__).partition("\n")[0]
        hint = "Run `wandb login`, set WANDB_MODE=offline, or leave" if failed == "wandb" else "Leave"
        raise SettingsError("--report_to", f"{failed} does not start: {found} {hint} it out.") from error
    return trackers


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _show_picture(tracker: GeneralTracker, step: int, path: Path) -> None:
    """Show a PNG. accelerate (1.15) hands pictures on as they are, so that their form is the tracker's."""
    with Image.open(path, formats=["PNG"]) as opened:
        picture = opened.convert("RGB")
    match tracker.name:
        case "tensorboard":
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        case "aim" | "clearml":
            tracker.log_images({"samples": picture}, step=step)
        case "mlflow":
            tracker.log_artifact(str(path), artifact_path="samples")
        case "trackio":
            import trackio

            tracker.log({"samples": trackio.Image(str(path))}, step=step)
        case _ if hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [picture]}, step=step)
        case name:
            warnings.warn(f"{name} shows no pictures here; they lie in {path.parent}", stacklevel=5)
