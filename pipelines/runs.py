"""What a run left in its folder, whatever its method, attached to the model it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.adapters import load_adapter, opened, read_adapter_facts
from pipelines.components import Components, build_pipeline, load_components
from pipelines.drawing_sizes import FACTS_NAME
from pipelines.embeddings import EMBEDDINGS_NAME, load_embeddings
from pipelines.fingerprints import differing_parts

PIPELINE_INDEX = "model_index.json"


@dataclass(frozen=True)
class BaseNeed:
    """A base model as it is asked for: what `load_components` takes."""

    name: str
    revision: str | None = None
    variant: str | None = None

    @staticmethod
    def of(facts: Mapping[str, Any], asked_for: str | None = None) -> BaseNeed:
        """Return the base of a result: the one asked for, or the one that its facts name, or swatch.

        Revision and variant are those that the result was trained from, unless another model is asked for.
        """
        name = asked_for or facts.get("base") or "swatch"
        if name != facts.get("base"):
            return BaseNeed(name)
        return BaseNeed(name, facts.get("revision"), facts.get("variant"))

    def load(self) -> Components:
        """Return the model as it stands in its folder. Raises SettingsError where there is none."""
        return load_components(self.name, revision=self.revision, variant=self.variant)


@dataclass(frozen=True)
class TunedModel:
    """A pipeline that draws what a run has learnt, the base model it stands on, and what its files say of themselves.

    components: the parts in the pipeline, the tuned ones among them. base: name of the base model. facts, notes: as
    `combined_facts` gives them.
    """

    pipeline: StableDiffusionPipeline
    components: Components
    base: str
    facts: dict[str, Any]
    notes: tuple[str, ...]


def open_tuned(
    paths: Sequence[Path],
    *,
    base: str | None = None,
    weights: Sequence[float] = (),
) -> TunedModel:
    """Return the model of run folders, or of files with adapters or embeddings, combined where there are several.

    base: folder, hub id or "swatch" of the base model; None takes the one that the files name, or swatch. weights: the
    strength of each path's low-rank adapter, 1 as trained; () is 1 for all.
    Raises SettingsError for a folder without a result, and for results that do not fit the base or each other.
    """
    if any(is_whole(path) for path in paths):
        if len(paths) > 1 or base is not None or set(weights) - {1.0}:
            raise SettingsError(
                str(paths[0]), "a whole model stands alone: it has no base or adapter beside it, and no strength."
            )
        components = load_components(str(paths[0]))
        facts, notes = combined_facts(paths, [read_facts(paths[0])])
        return TunedModel(build_pipeline(components), components, str(paths[0]), facts, notes)
    facts, notes = combined_facts(paths, [read_facts(path) for path in paths], base=base)
    need = BaseNeed.of(facts, base)
    components = predicting_as(need.load(), facts)
    pipeline = build_pipeline(components)
    attach(pipeline, paths, base_fingerprint=components.fingerprint, weights=weights)
    return TunedModel(pipeline, components, need.name, facts, notes)


def combined_facts(
    paths: Sequence[Path], said: Sequence[dict[str, Any]], *, base: str | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what several results say of themselves in one, and in lines what of their grey values stays unknown.

    Of what several say, the first one counts. The pixel scale `um_per_px` is told with the grey values of each caption,
    as runs may differ in it. said: the facts at each path. base: the base model where it was given; the names that
    the results have for it then say nothing.
    Raises SettingsError where two results say different things of their base.
    """
    _refuse_differing(paths, said, ["prediction_type", "zero_terminal_snr", *(["base"] if base is None else [])])
    facts: dict[str, Any] = {}
    grey_values: dict[str, dict[str, Any]] = {}
    notes = []
    for path, more in zip(paths, said, strict=True):
        facts = {**more, **facts}
        if "grey_values" not in more:
            notes.append(f"{path}: says nothing of grey values, so no tif stack is written of its captions")
        own = {
            caption: {"um_per_px": more.get("um_per_px"), **grey}
            for caption, grey in more.get("grey_values", {}).items()
        }
        if differing := [caption for caption, grey in own.items() if grey_values.get(caption, grey) != grey]:
            notes.append(
                f"{path}: trained with another window or pixel scale than those before it on {', '.join(differing)}; "
                "tif stacks have the first one's"
            )
        grey_values = {**own, **grey_values}
    facts.pop("um_per_px", None)
    return {**facts, "grey_values": grey_values}, tuple(notes)


def _refuse_differing(paths: Sequence[Path], said: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Raise SettingsError for keys of which two results say different things."""
    problems = []
    for key in keys:
        found = {str(path): facts[key] for path, facts in zip(paths, said, strict=True) if key in facts}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{value} ({path})" for path, value in found.items())
            problems.append(
                f"expected adapters of one {key}, found {told}. Combine adapters of one base, or give it as "
                "--pretrained_model_name_or_path where it has two names."
            )
    if problems:
        raise SettingsError("--adapter", *problems)


def is_whole(path: Path) -> bool:
    """Return whether a folder holds a whole model rather than what is attached to one."""
    return (path / PIPELINE_INDEX).exists()


def predicting_as(components: Components, facts: Mapping[str, Any]) -> Components:
    """Return a base model with the prediction type and noise schedule of a run; None is the base's own type."""
    if facts.get("prediction_type") is not None:
        components = components.predicting(facts["prediction_type"])
    return components.ending_in_pure_noise() if facts.get("zero_terminal_snr") else components


def attach(
    pipeline: StableDiffusionPipeline,
    paths: Sequence[Path],
    *,
    base_fingerprint: str | None,
    weights: Sequence[float] = (),
) -> None:
    """Attach everything that run folders or files hold to the pipeline of their base: embeddings, then adapters.

    weights: the strength of each path's adapter, 1 as trained; () is 1 for all.
    """
    adapters: dict[str, float] = {}
    for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True):
        for file in _files(path):
            if _is_embedding(file):
                others = differing_parts(read_facts(file).get("base_fingerprint"), base_fingerprint)
                if others:
                    raise SettingsError(
                        str(file),
                        f"was learnt with another base model, from which this one differs in {', '.join(others)}. "
                        "Give the one it was learnt with.",
                    )
                load_embeddings(pipeline, file)
            else:
                adapters[load_adapter(pipeline, file, base_fingerprint=base_fingerprint)] = weight
    if adapters:
        pipeline.set_adapters(list(adapters), list(adapters.values()))


def read_facts(path: Path) -> dict[str, Any]:
    """Return what the files of a run say of themselves: base, prediction type, grey values; {} for others' files.

    Raises SettingsError for a path without a result, and for facts that cannot be read.
    """
    if is_whole(path):
        return _read_whole_facts(path / FACTS_NAME)
    facts: dict[str, Any] = {}
    for file in _files(path):
        facts |= read_adapter_facts(file)
    return facts


def _read_whole_facts(file: Path) -> dict[str, Any]:
    try:
        facts = parsed(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SettingsError(str(file), f"is not JSON: {error}. Export the model again, or remove the file.") from None
    if not isinstance(facts, dict):
        raise SettingsError(str(file), "is no table of facts. Export the model again, or remove the file.")
    return facts


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise SettingsError(str(path), "does not exist; expected the folder of a run, or the file of an adapter.")
    found = [path / name for name in (EMBEDDINGS_NAME, LORA_WEIGHT_NAME_SAFE) if (path / name).exists()]
    if not found:
        raise SettingsError(
            str(path),
            f"holds no result of a run; expected {LORA_WEIGHT_NAME_SAFE}, {EMBEDDINGS_NAME} or {PIPELINE_INDEX}.",
        )
    return found


def _is_embedding(file: Path) -> bool:
    with opened(file) as tensors:
        names = list(tensors.keys())
    return not any("." in name for name in names)  # a layer's name has dots
