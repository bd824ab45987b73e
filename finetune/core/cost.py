"""What a run takes: time, images and memory, one entry for each session of a run that was stopped and gone on with."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import torch

from finetune.core import files

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

COST_NAME = "cost.jsonl"


class Meter:
    """Measures one session, from when it is made. done: what it did beside its steps, in numbers by name."""

    def __init__(self, run_dir: Path, *, first_step: int, images_per_step: int, num_processes: int) -> None:
        self._path = run_dir / COST_NAME
        self._first_step, self._images_per_step = first_step, images_per_step
        self._num_processes = num_processes
        self._started = time.monotonic()
        self.done: Counter[str] = Counter()

    def write(self, last_step: int) -> None:
        """Add the session, which ended with a step, to the run's record; one without a step is not worth a line."""
        visits = (last_step - self._first_step) * self._images_per_step
        if visits <= 0:
            return
        seconds = time.monotonic() - self._started
        entry = {
            "first_step": self._first_step,
            "last_step": last_step,
            "image_visits": visits,
            "seconds": round(seconds, 1),
            "images_per_s": round(visits / seconds, 2),
            "peak_memory_mib": round(peak_memory_mib()),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "processes": self._num_processes,
            "threads": torch.get_num_threads(),
            **self.done,
        }
        files.append_line(self._path, json.dumps(entry))


def peak_memory_mib() -> float:
    """Return the largest memory that this process has held: on the GPU where there is one, otherwise resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
