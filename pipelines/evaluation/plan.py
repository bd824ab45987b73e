"""The plan of an evaluation: which models are asked what, and under which names the images are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from data.errors import SettingsError
from data.randomness import derive
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.grid import Arm, Asked, Cell, Sampling, cells
from pipelines.evaluation.states import AskedRun, State


@dataclass(frozen=True)
class Axes:
    """What is combined with every prompt of a file. seeds: of prompts without seeds of their own."""

    weights: tuple[float, ...]
    samplings: tuple[Sampling, ...]
    seeds: tuple[int, ...]
    size_px: int

    @property
    def judged_weight(self) -> float:
        """The strength at which runs are judged: as trained, or the first where that is not asked for."""
        return 1.0 if 1.0 in self.weights else self.weights[0]


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is drawn. floor: images of the bases on the rings' prompts, with other seeds."""

    axes: Axes
    asked: tuple[Asked, ...]
    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]
    floor: tuple[Cell, ...]
    bases: Mapping[str, BaseModel]
    runs: Mapping[str, AskedRun]

    @cached_property
    def digests(self) -> dict[Arm, str]:
        """A hash of the files of each arm; "" for a base, which its identity stands for."""
        return {arm: "" if arm.state is None else self.runs[arm.run].digest(arm.state) for arm in self.arms}

    def key(self, cell: Cell) -> str:
        """Return the name under which an image is kept."""
        return cell.key(
            base_identity=self.bases[cell.arm.base].identity,
            arm_digest=self.digests[cell.arm],
            size_px=self.axes.size_px,
        )

    def keyed(self) -> dict[str, Cell]:
        """Return every distinct image by its name, those of one arm together."""
        return {self.key(cell): cell for cell in (*self.cells, *self.floor)}


def make_plan(
    asked: Sequence[Asked],
    axes: Axes,
    bases: Mapping[str, BaseModel],
    runs: Sequence[tuple[AskedRun, str, Sequence[State]]],
) -> Plan:
    """Return the plan of runs, each with the label of its base and its states.

    Raises SettingsError for prompts that are measured and have one seed only.
    """
    if alone := [question.text for question in asked if _is_measured(question) and _num_seeds(question, axes) < 2]:
        raise SettingsError(
            "--seeds",
            f"found one seed for {', '.join(repr(text) for text in dict.fromkeys(alone))}, expected two or more: their "
            "images are compared as sets. To look at single images, take pipelines/generate.py.",
        )
    arms = [Arm(label, None, 1.0, label) for label in bases]
    for run, base, states in runs:
        arms += [Arm(run.label, state, weight, base) for state in states for weight in axes.weights]
    asked = tuple(asked)
    everything = cells(asked, arms, axes.samplings, axes.seeds)
    floor = tuple(
        replace(cell, seed=derive(cell.seed, "base against base"))
        for cell in everything
        if cell.arm.is_base and asked[cell.asked].prompt.ring is not None
    )
    return Plan(axes, asked, tuple(arms), everything, floor, bases, {run.label: run for run, _, _ in runs})


def _is_measured(question: Asked) -> bool:
    return bool(question.caption_of) or question.prompt.ring is not None or question.prompt.between is not None


def _num_seeds(question: Asked, axes: Axes) -> int:
    return len(set(question.prompt.seeds or axes.seeds))
