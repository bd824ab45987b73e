"""The runs of a study: each trained once by its script, and gone on with where it was stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import FilrougeError, OutputError, SettingsError
from data.exits import PARENT_VARIABLE
from data.json_files import read_table
from data.progress import Progress
from pipelines.studies.study import Run
from pipelines.whole_files import write_json

ROOT = Path(__file__).resolve().parents[2]
RECORD = "study.json"  # in a run's folder: its options, and what its training took
_OF_A_STUDY = "what a study writes of a run. Move the folder away, and it is trained again"


class RunFailed(FilrougeError):
    """A run of a study that ended with an error of its own."""

    exit_code = 4


@dataclass(frozen=True)
class Cost:
    """What a training took over all its starts.

    cpu_seconds: of one core, which trainings beside it do not change. peak_mib: largest memory of its process.
    """

    cpu_seconds: float
    peak_mib: float


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended, in its folder."""

    run: Run
    folder: Path
    cost: Cost


def check_runs(runs: Sequence[Run], folder: Path, *, num_jobs: int = 1) -> None:
    """Check everything that can be checked before the first training, so that no mistake ends a study after hours.

    Raises OutputError where a folder holds a run of another script or with other options, and SettingsError where a
    script refuses its options, which are tried once for each method and data.
    """
    for run in runs:
        _refuse_other_options(run, folder / run.folder_name)
    _refuse_wrong_options(runs, folder, num_jobs)


def train_all(
    runs: Sequence[Run], folder: Path, *, num_jobs: int = 1, on_done: Callable[[TrainedRun], object] = lambda _: None
) -> list[TrainedRun]:
    """Return runs after training those that are not there yet, in their order.

    num_jobs: runs trained beside each other, each on its share of the processor's cores. on_done: called for every run,
    at once for one that was there. Raises RunFailed with the end of the log of a run that fails.
    """

    def train(run: Run) -> TrainedRun:
        trained = _train(run, folder / run.folder_name, _threads(num_jobs))
        on_done(trained)
        return trained

    with ThreadPoolExecutor(num_jobs) as pool:
        waiting = [pool.submit(train, run) for run in runs]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def arguments(run: Run) -> list[str]:
    """Return the options of a run as its script's command line has them."""
    words = []
    for name, value in {**run.options, "seed": run.seed}.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


def _refuse_other_options(run: Run, folder: Path) -> None:
    record = folder / RECORD
    if not record.exists():
        return
    there = read_table(record, _OF_A_STUDY, needs=("script", "options"))
    if not isinstance(there["options"], dict):
        raise OutputError(str(record), f"holds no options; expected {_OF_A_STUDY}.")
    before, now = {**there["options"], "script": there["script"]}, {**run.options, "script": run.script}
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise OutputError(
            str(folder),
            *[f"{key}: the study says {now.get(key)!r}, the run there had {before.get(key)!r}." for key in changed],
            "Restore these, move the folder away, or give another --output_dir.",
        )


def _refuse_wrong_options(runs: Sequence[Run], folder: Path, num_jobs: int) -> None:
    new = {(run.data, run.method): run for run in runs if not (folder / run.folder_name / RECORD).exists()}.values()

    def problem(run: Run) -> str | None:
        found = subprocess.run(
            [*_command(run), "--dry_run"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=_environment(_threads(num_jobs)),
        )
        return f"{run.data}, {run.method}: {found.stderr.strip()[-2000:]}" if found.returncode else None

    with ThreadPoolExecutor(num_jobs) as pool:
        bars = Progress(pool.map(problem, new), total=len(new), unit="run", desc="check options", disable=not new)
        problems = [found for found in bars if found is not None]
    if problems:
        raise SettingsError("options of the study", *problems)


def _train(run: Run, folder: Path, threads: int) -> TrainedRun:
    status, record = folder / "status.json", folder / RECORD
    before: dict[str, Any] = {"cpu_seconds": 0.0, "peak_mib": 0.0}
    if record.exists():
        before = read_table(record, _OF_A_STUDY, needs=("cpu_seconds", "peak_mib"))
    if before.get("is_done") and status.exists():
        return TrainedRun(run, folder, Cost(before["cpu_seconds"], before["peak_mib"]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    started_before = any(folder.glob("checkpoint-*"))
    how = ["--resume_from_checkpoint", "latest"] if started_before else ["--overwrite_output_dir"]
    log = folder.parent / f"{folder.name}.log"
    code, cost = _timed([*_command(run), "--output_dir", str(folder), *how], log, threads)
    seconds = cost.cpu_seconds + (before["cpu_seconds"] if started_before else 0.0)
    total = Cost(seconds, max(cost.peak_mib, before["peak_mib"]))
    if folder.is_dir():
        _write(record, run, total, is_done=code == 0)
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise RunFailed(str(folder), f"ended with {code}. The end of {log}:\n{tail}")
    return TrainedRun(run, folder, total)


def _write(record: Path, run: Run, cost: Cost, *, is_done: bool) -> None:
    content: dict[str, Any] = {
        "method": run.method,
        "data": run.data,
        "seed": run.seed,
        "script": run.script,
        "options": dict(run.options),
        "cpu_seconds": cost.cpu_seconds,
        "peak_mib": cost.peak_mib,
        "is_done": is_done,
    }
    write_json(content, record)


def _command(run: Run) -> list[str]:
    return [sys.executable, f"finetune/{run.script}.py", *arguments(run)]


def _threads(num_jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // num_jobs)


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), PARENT_VARIABLE: "1"}


def _timed(command: Sequence[str], log: Path, threads: int) -> tuple[int, Cost]:
    """Run a command and return its exit code, its time on the processor and its largest memory."""
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=_environment(threads)
        )
        _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
