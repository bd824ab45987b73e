"""CPU threads of a run: the machine's cores, which a launcher must not take away unasked."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil
import torch

_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what accelerate launch and torchrun set


def use_threads(num_threads: int | None, device: torch.device) -> None:
    """Let torch use num_threads threads; none: all cores of a CPU run, as num_launched_threads finds."""
    if num_threads is None and device.type == "cpu":
        num_threads = num_launched_threads(os.environ, num_cores())
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def num_cores() -> int:
    """Return the physical cores that this process may run on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def num_launched_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """Return the threads for each of a machine's launched processes, or None where torch's own choice stands.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS to 1 where they were told no number, and a run on the CPU
    would leave all cores but one idle. A larger number was somebody's choice.
    """
    if environment.keys().isdisjoint(_LAUNCHERS) or environment.get("OMP_NUM_THREADS") != "1":
        return None
    return max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1")))
