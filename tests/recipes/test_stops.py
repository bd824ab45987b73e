"""Stops of a training as a shell sees them, under the commands that the README names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from finetune.core.checkpoint import CheckpointStore, RunLock
from tests.recipes.test_lora import ROOT, command, volumes

__all__ = ["command", "volumes"]  # fixtures


def _processes(folder: Path) -> list[int]:
    """Return the processes that were started with a folder on their command line, or by such a one."""
    found: set[int] = set()
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in (process.info["cmdline"] or []):
            found |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    return sorted(found - {os.getpid()})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_signal_to_accelerate_launch_saves_and_ends_the_training(
    number: signal.Signals, command: list[str], tmp_path: Path
) -> None:
    """The launcher (1.15) hands on no signal: it left the training behind, which held the folder."""
    run = tmp_path / "run"
    script = (
        f'"$@" & launcher=$!; until [ -s {run}/metrics.jsonl ]; do sleep 0.1; done; '
        f"kill -{int(number)} $launcher; wait $launcher"
    )
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", "accelerate_configs/cpu.yaml"]
    long = ["--max_train_steps", "100000", "--checkpointing_steps", "100000", "--dataloader_num_workers", "2"]
    with (tmp_path / "printed").open("w") as printed:  # not a pipe, which would wait for the training
        done = subprocess.run(
            ["bash", "-c", script, "bash", *launch, *command, *long],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=printed,
            stderr=printed,
            timeout=300,
            check=False,
        )
    assert done.returncode == 128 + number
    ended = time.monotonic()
    while _processes(run) and time.monotonic() - ended < 60:
        time.sleep(0.2)
    print(f"ended after {time.monotonic() - ended:.1f} s")
    assert _processes(run) == []
    assert "stopped after step" in (tmp_path / "printed").read_text()
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("stopped", 143)
    with RunLock(run):
        latest = CheckpointStore(run, json.loads((run / "manifest.json").read_text())["run_id"]).find_latest()
    assert latest is not None
    assert latest.step == status["last_durable_step"] > 0
