"""The pipeline of any model of an evaluation: a base, or a run at one of its states and strengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from data.errors import SettingsError
from pipelines.components import build_pipeline
from pipelines.devices import move
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.checkpoints import restore_checkpoint
from pipelines.evaluation.grid import Arm
from pipelines.evaluation.states import AskedRun
from pipelines.merging import merge_in_place
from pipelines.runs import is_whole, open_tuned


class PipelineOpener:
    """Gives the pipeline of any model, and loads a run once for all its states and strengths, one run at a time.

    Low-rank adapters are merged into the weights they change, which takes more than a quarter off the time of drawing.
    """

    def __init__(
        self, bases: Mapping[str, BaseModel], runs: Mapping[str, AskedRun], device: torch.device | str
    ) -> None:
        self._bases, self._runs, self._device = bases, runs, device
        self._run: str | None = None
        self._folder: Path | None = None
        self._pipeline: StableDiffusionPipeline | None = None
        self._take_out: Callable[[], None] | None = None  # the merged adapters

    def open(self, arm: Arm) -> StableDiffusionPipeline:
        """Return the pipeline of a model; the one returned before it must not be used any more."""
        if arm.state is None:
            return build_pipeline(self._bases[arm.base].components)
        if self._take_out is not None:
            self._take_out()
            self._take_out = None
        # the result's weights are gone once a checkpoint has taken their place
        stale = self._folder is not None and arm.state.folder is None
        if self._pipeline is None or self._run != arm.run or stale:
            self._pipeline = None  # before the next one is loaded
            self._pipeline = open_run(self._runs[arm.run], self._bases[arm.base], self._device)
            self._run, self._folder = arm.run, None
        if arm.state.folder is not None and arm.state.folder != self._folder:
            restore_checkpoint(self._pipeline, self._runs[arm.run].path, arm.state.folder)
            self._folder = arm.state.folder
        set_weight(self._pipeline, arm.weight)
        self._take_out = merge_in_place(self._pipeline)
        return self._pipeline


def result_first(arm: Arm) -> tuple[bool, str, bool, int]:
    """Order models so that a run's result comes before the checkpoints that take the place of its weights."""
    if arm.state is None:
        return False, arm.run, False, 0
    return True, arm.run, arm.state.folder is not None, arm.state.step or 0


def open_run(run: AskedRun, base: BaseModel, device: torch.device | str) -> StableDiffusionPipeline:
    """Return the pipeline of a run's result on a device."""
    whole = is_whole(run.path)
    model = open_tuned([run.path], base=None if whole else base.need.name)
    move(model.components, device)
    return model.pipeline


def set_weight(pipeline: StableDiffusionPipeline, weight: float) -> None:
    """Set the strength of a pipeline's adapter; raise SettingsError where it has none and another than 1 is asked."""
    names = list(dict.fromkeys(name for names in pipeline.get_list_adapters().values() for name in names))
    if names:
        pipeline.set_adapters(names, [weight] * len(names))
    elif weight != 1.0:
        raise SettingsError(
            "--weights", f"found {weight:g} for a run without a low-rank adapter, which has no strength. Leave it out."
        )
