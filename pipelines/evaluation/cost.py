"""What a run took, as far as its folder says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from data.json_files import parsed
from pipelines.evaluation.states import AVERAGED, AskedRun

SKILL = 0.8  # to which the time is told
COST = "cost.jsonl"  # in a run's folder: a line for each session of its training


def cost_of(run: AskedRun, skills: Mapping[int, float]) -> dict[str, str]:
    """Return what a run took in titled values: its training, its size, what it ran on, and when it had learnt.

    skills: of its measured states by step, for the time to a skill of SKILL.
    """
    row = {"run": run.label, "method": run.method or "unknown"}
    steps, per_step = run.last_step, run.images_per_step
    if steps is not None:
        row["optimiser steps"] = f"{steps:,}"
        if per_step is not None:
            row["image visits"] = f"{steps * per_step:,}"
    files = (
        [run.path]
        if run.path.is_file()
        else [p for p in run.path.rglob("*.safetensors") if "checkpoint-" not in str(p.relative_to(run.path))]
    )
    row["artefact, MB"] = f"{sum(path.stat().st_size for path in files) / 1e6:.2f}"
    trained = _num_trained(run)
    if trained is not None:
        row["trained parameters"] = f"{trained:,}"
    row |= taken(run.path / COST)
    if skills and steps:
        row[f"skill of {SKILL}"] = reached(skills, steps, row.get("training, min"))
    return row


def reached(skills: Mapping[int, float], last_step: int, minutes: str | None) -> str:
    """Return after how many steps the first measured state has a skill of SKILL, and after what part of the minutes."""
    step = min((step for step, skill in skills.items() if skill >= SKILL), default=None)
    if step is None:
        return f"not by step {max(skills):,}"
    taken_by_then = "" if minutes is None else f", {float(minutes) * step / last_step:.1f} min"
    return f"by step {step:,}{taken_by_then}"


def taken(path: Path) -> dict[str, str]:
    """Return what the training took, over all sessions of the run; {} where its folder does not say it."""
    try:
        sessions = [parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
        seconds = sum(session["seconds"] for session in sessions)
        visits = sum(session["image_visits"] for session in sessions)
        peak = max(session["peak_memory_mib"] for session in sessions)
        where = ", ".join(dict.fromkeys(f"{s['device']}, {s['threads']} threads" for s in sessions))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {
        "training, min": f"{seconds / 60:.1f}",
        "images/s": f"{visits / max(seconds, 1e-9):.1f}",
        "memory, MiB": f"{peak:,.0f}",
        "on": where,
    }


def _num_trained(run: AskedRun) -> int | None:
    """Return how many parameters a run trained, from a checkpoint, or from the file of an adapter."""
    folder = next(iter(run.checkpoints.values()), run.path)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    count = 0
    for path in files:
        if path.name in ("optimizer.safetensors", AVERAGED):  # what is in it has been counted
            continue
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if not name.startswith("ema/"):
                    count += int(np.prod(tensors.get_slice(name).get_shape()))
    return count or None
