"""Drawing what an evaluation asks for: in batches over prompts and seeds, every model loaded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin

from data.errors import SettingsError, nearest
from pipelines.components import SAMPLERS, Components, build_pipeline, load_components
from pipelines.evaluation.checkpoints import restore_checkpoint
from pipelines.evaluation.grid import OWN_SCHEDULER, Arm, Cell
from pipelines.evaluation.states import AskedRun
from pipelines.evaluation.store import ImageStore
from pipelines.fingerprints import weights_fingerprint
from pipelines.runs import is_whole, open_tuned, predicting_as, read_facts
from pipelines.sampling import sample

# by the names that users of other programs know, and by the names of their classes
SCHEDULERS = {cls.__name__.removesuffix("Scheduler"): cls for cls in SAMPLERS}

# Grey levels of 255 by which an image drawn in a batch may differ from the same one drawn alone: sums over a batch are
# taken in another order
LARGEST_DIFFERENCE = 2


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base that runs stand on. identity: a hash of all its weights and of how it is sampled."""

    label: str
    components: Components
    identity: str

    @staticmethod
    def load(label: str, name: str, facts: Mapping[str, Any], device: torch.device | str) -> BaseModel:
        """Load a base, which predicts what the facts say. Raises SettingsError where there is no such model."""
        components = predicting_as(load_components(name), dict(facts))
        identity = hashlib.sha256(components.fingerprint.encode())
        for module in (components.text_encoder, components.vae):
            identity.update(weights_fingerprint(module).encode())
        for scheduler in (components.scheduler, components.sampler):
            identity.update(f"{type(scheduler).__name__}{sorted(scheduler.config.items())}".encode())
        for module in (components.unet, components.vae, components.text_encoder):
            module.to(device)
        return BaseModel(label, components, identity.hexdigest())


@dataclass(frozen=True)
class BaseNeed:
    """Which base a run stands on: its name, the fingerprint of its weights where the run says it, how it predicts."""

    name: str
    fingerprint: str | None
    prediction_type: str | None
    zero_terminal_snr: bool

    @property
    def facts(self) -> dict[str, Any]:
        """Return how the base predicts, as `predicting_as` reads it."""
        facts: dict[str, Any] = {"zero_terminal_snr": self.zero_terminal_snr}
        return facts if self.prediction_type is None else {**facts, "prediction_type": self.prediction_type}


def base_of(run: AskedRun, asked_for: str | None) -> BaseNeed:
    """Return the base of a run. asked_for: the base that the user names; None takes the one that the run names.

    Raises SettingsError for a whole model that does not say what it was made from.
    """
    facts = run.manifest if is_whole(run.path) else read_facts(run.path)
    name = asked_for or facts.get("base") or (None if is_whole(run.path) else "swatch")
    if name is None:
        raise SettingsError(
            str(run.path),
            "is a whole model without the manifest of a run, which would say what it was trained from. "
            "Name its base: --pretrained_model_name_or_path.",
        )
    return BaseNeed(
        str(name), facts.get("base_fingerprint"), facts.get("prediction_type"), bool(facts.get("zero_terminal_snr"))
    )


def load_bases(
    runs: Sequence[AskedRun], asked_for: str | None, device: torch.device | str
) -> tuple[dict[str, BaseModel], dict[str, str]]:
    """Return the bases by label, each loaded once, and the label of every run's base.

    Raises SettingsError where a run was trained on other weights than its base has.
    """
    needs = {run.label: base_of(run, asked_for) for run in runs}
    if not needs:
        needs = {"": BaseNeed(asked_for or "swatch", None, None, False)}
    distinct = list(dict.fromkeys((need.name, need.prediction_type, need.zero_terminal_snr) for need in needs.values()))
    bases, labels, problems = {}, {}, []
    for number, (name, prediction_type, zero_snr) in enumerate(distinct):
        label = "base" if len(distinct) == 1 else f"base {number + 1}"
        bases[label] = BaseModel.load(label, name, BaseNeed(name, None, prediction_type, zero_snr).facts, device)
        for run, need in needs.items():
            if (need.name, need.prediction_type, need.zero_terminal_snr) != (name, prediction_type, zero_snr):
                continue
            labels[run] = label
            found = bases[label].components.fingerprint
            if need.fingerprint not in (None, found):
                problems.append(
                    f"{run} was trained on another base (fingerprint {need.fingerprint}; {name} has {found}). "
                    "Give the base it was trained on, or leave it out."
                )
    if problems:
        raise SettingsError("--adapter", *problems)
    return bases, labels


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


def draw(
    keyed: Sequence[tuple[str, Cell]],
    store: ImageStore,
    bases: Mapping[str, BaseModel],
    runs: Mapping[str, AskedRun],
    *,
    batch_size: int,
    size_px: int,
    device: torch.device | str,
    progress: Callable[[int], object],
) -> None:
    """Draw images and keep each batch as soon as it is done.

    keyed: (key, image), those of one arm together. runs: by label. progress: called with the number of images kept.
    """
    opener = PipelineOpener(bases, runs, device)
    by_arm: dict[Arm, list[tuple[str, Cell]]] = {}
    for key, cell in keyed:
        by_arm.setdefault(cell.arm, []).append((key, cell))
    for arm in sorted(by_arm, key=result_first):
        pipeline = opener.open(arm)
        own = pipeline.scheduler
        for sampling, group in groupby(sorted(by_arm[arm], key=_by_sampling), key=lambda pair: pair[1].sampling):
            pipeline.scheduler = _scheduler(own, sampling.scheduler)
            members = list(group)
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                _draw_batch(pipeline, batch, store, size_px)
                progress(len(batch))
        pipeline.scheduler = own


def _draw_batch(
    pipeline: StableDiffusionPipeline, batch: Sequence[tuple[str, Cell]], store: ImageStore, size_px: int
) -> None:
    sampling = batch[0][1].sampling
    pictures = sample(
        pipeline,
        [cell.text for _, cell in batch],
        [cell.seed for _, cell in batch],
        negative_prompts=[cell.negative for _, cell in batch],
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        batch_size=len(batch),
        height=size_px,
        width=size_px,
    )
    for (key, cell), picture in zip(batch, pictures, strict=True):
        store.keep(key, picture, described(cell))


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


def _by_sampling(pair: tuple[str, Cell]) -> tuple[str, int, float]:
    sampling = pair[1].sampling
    return sampling.scheduler, sampling.num_inference_steps, sampling.guidance_scale


class PipelineOpener:
    """Gives the pipeline of any model, and loads a run once for all its states and strengths, one run at a time."""

    def __init__(
        self, bases: Mapping[str, BaseModel], runs: Mapping[str, AskedRun], device: torch.device | str
    ) -> None:
        self._bases, self._runs, self._device = bases, runs, device
        self._run: str | None = None
        self._folder: Path | None = None
        self._pipeline: StableDiffusionPipeline | None = None

    def open(self, arm: Arm) -> StableDiffusionPipeline:
        """Return the pipeline of a model; the one returned before it must not be used any more."""
        if arm.state is None:
            return build_pipeline(self._bases[arm.base].components)
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
        return self._pipeline


def result_first(arm: Arm) -> tuple[bool, str, bool, int]:
    """Order models so that a run's result comes before the checkpoints that take the place of its weights."""
    if arm.state is None:
        return False, arm.run, False, 0
    return True, arm.run, arm.state.folder is not None, arm.state.step or 0


def open_run(run: AskedRun, base: BaseModel, device: torch.device | str) -> StableDiffusionPipeline:
    """Return the pipeline of a run's result on a device."""
    whole = is_whole(run.path)
    model = open_tuned([run.path], base=None if whole else base.components.source)
    for module in (model.components.unet, model.components.vae, model.components.text_encoder):
        module.to(device)
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
