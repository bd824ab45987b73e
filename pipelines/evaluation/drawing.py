"""Drawing what an evaluation asks for: in batches over prompts and seeds, every model loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin

from data.errors import SettingsError, nearest
from pipelines.components import SAMPLERS
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.grid import OWN_SCHEDULER, Arm, Cell
from pipelines.evaluation.opener import PipelineOpener, result_first
from pipelines.evaluation.states import AskedRun
from pipelines.evaluation.store import ImageStore
from pipelines.sampling import sample

Keyed = tuple[str, Cell]  # an image with the key under which it is kept

# by the names that users of other programs know, and by the names of their classes
SCHEDULERS = {cls.__name__.removesuffix("Scheduler"): cls for cls in SAMPLERS}

# Grey levels of 255 by which an image drawn in a batch may differ from the same one drawn alone: sums over a batch are
# taken in another order
LARGEST_DIFFERENCE = 2


def parse_schedulers(text: str) -> tuple[str, ...]:
    """Return the schedulers of a list such as "own,ddim", by the names in SCHEDULERS."""
    known = {name.lower(): name for name in (OWN_SCHEDULER, *SCHEDULERS)}
    found, problems = [], []
    for part in (part.strip() for part in text.split(",")):
        name = known.get(part.lower().removesuffix("scheduler"))
        if name is None:
            problems.append(f"found {part!r}.{nearest(part, known.values())}")
        else:
            found.append(name)
    if problems:
        raise SettingsError("--scheduler", *problems)
    return tuple(dict.fromkeys(found))


def batches(keyed: Sequence[Keyed], batch_size: int) -> list[list[Keyed]]:
    """Return images in groups of one model and one sampler, in the order in which models are best loaded."""
    ordered = sorted(keyed, key=lambda pair: (result_first(pair[1].arm), pair[1].arm.label, _by_sampling(pair[1])))
    found = []
    for _, group in groupby(ordered, key=lambda pair: (pair[1].arm, pair[1].sampling)):
        members = list(group)
        found += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return found


class Drawing:
    """Draws batches into a store, and loads a model only where it is another than that of the batch before."""

    def __init__(
        self,
        store: ImageStore,
        bases: Mapping[str, BaseModel],
        runs: Mapping[str, AskedRun],
        *,
        size_px: int,
        device: torch.device | str,
    ) -> None:
        """bases, runs: by label."""
        self._store, self._size_px = store, size_px
        self._opener = PipelineOpener(bases, runs, device)
        self._opened: tuple[Arm, StableDiffusionPipeline, Any] | None = None

    def draw(self, batch: Sequence[Keyed]) -> None:
        """Draw a batch of one model and one sampler together, and keep its images."""
        arm, sampling = batch[0][1].arm, batch[0][1].sampling
        if self._opened is None or self._opened[0] != arm:
            self._opened = None  # before the next one is loaded
            pipeline = self._opener.open(arm)
            self._opened = arm, pipeline, pipeline.scheduler
        _, pipeline, own = self._opened
        pipeline.scheduler = _scheduler(own, sampling.scheduler)
        pictures = sample(
            pipeline,
            [cell.text for _, cell in batch],
            [cell.seed for _, cell in batch],
            negative_prompts=[cell.negative for _, cell in batch],
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            batch_size=len(batch),
            height=self._size_px,
            width=self._size_px,
        )
        pipeline.scheduler = own  # the opener may give the same pipeline for the next model
        for (key, cell), picture in zip(batch, pictures, strict=True):
            self._store.keep(key, picture, described(cell))


def described(cell: Cell) -> dict[str, Any]:
    """Return what an image was drawn from, for people and for the index."""
    return {
        "model": cell.arm.label,
        "prompt": cell.text,
        "negative_prompt": cell.negative,
        "scheduler": cell.sampling.scheduler,
        "num_inference_steps": cell.sampling.num_inference_steps,
        "guidance_scale": cell.sampling.guidance_scale,
        "seed": cell.seed,
    }


def _by_sampling(cell: Cell) -> tuple[str, int, float]:
    sampling = cell.sampling
    return sampling.scheduler, sampling.num_inference_steps, sampling.guidance_scale


def _scheduler(own: Any, name: str) -> Any:
    """Return a scheduler that predicts and spaces its steps as the model's own does; "own" is a fresh copy of it."""
    cls = type(own) if name == OWN_SCHEDULER else SCHEDULERS[name]
    return cls.from_config(own.config)


def count_tokens_cut(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return for each prompt how many of its tokens the text encoder does not read."""
    spelt = TextualInversionLoaderMixin().maybe_convert_prompt(list(texts), tokenizer)
    room = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(spelt).input_ids]
    return [max(0, length - room) for length in lengths]
