"""What a run left in its folder, whatever its method, attached to the model it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from data.errors import SettingsError
from pipelines.adapters import load_adapter, opened, read_adapter_facts
from pipelines.components import Components, build_pipeline, load_components
from pipelines.embeddings import EMBEDDINGS_NAME, load_embeddings

PIPELINE_INDEX = "model_index.json"


@dataclass(frozen=True)
class TunedModel:
    """A pipeline that draws what a run has learnt, the base model it stands on, and what its file says of itself.

    components: the parts in the pipeline, the tuned ones among them. base: name of the base model.
    """

    pipeline: StableDiffusionPipeline
    components: Components
    base: str
    facts: dict[str, Any]


def open_tuned(
    paths: Sequence[Path],
    *,
    base: str | None = None,
    weights: Sequence[float] = (),
    revision: str | None = None,
    variant: str | None = None,
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
        return TunedModel(build_pipeline(components), components, str(paths[0]), {})
    said = [read_facts(path) for path in paths]
    facts: dict[str, Any] = {}
    for path, more in zip(paths, said, strict=True):
        differing = [
            key
            for key in ("base", "prediction_type", "zero_terminal_snr")
            if facts.get(key, more.get(key)) != more.get(key)
        ]
        if differing:
            raise SettingsError(
                str(path), *[f"{key}: found {more.get(key)}, the first one has {facts.get(key)}." for key in differing]
            )
        windows = {**more.get("grey_values", {}), **facts.get("grey_values", {})}
        facts = {**more, **facts, "grey_values": windows}
    name = base or facts.get("base") or "swatch"
    components = predicting_as(load_components(name, revision=revision, variant=variant), facts)
    pipeline = build_pipeline(components)
    attach(pipeline, paths, base_fingerprint=components.fingerprint, weights=weights)
    return TunedModel(pipeline, components, name, facts)


def is_whole(path: Path) -> bool:
    """Return whether a folder holds a whole model rather than what is attached to one."""
    return (path / PIPELINE_INDEX).exists()


def predicting_as(components: Components, facts: dict[str, Any]) -> Components:
    """Return a base model with the prediction type and noise schedule that a result was trained with."""
    if "prediction_type" in facts:
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
                trained_on = read_facts(file).get("base_fingerprint")
                if None not in (trained_on, base_fingerprint) and trained_on != base_fingerprint:
                    raise SettingsError(
                        str(file), "was learnt with another base model. Give the one it was learnt with."
                    )
                load_embeddings(pipeline, file)
            else:
                adapters[load_adapter(pipeline, file, base_fingerprint=base_fingerprint)] = weight
    if adapters:
        pipeline.set_adapters(list(adapters), list(adapters.values()))


def read_facts(path: Path) -> dict[str, Any]:
    """Return what the files of a run say of themselves: base, prediction type, grey values; {} for others' files."""
    facts: dict[str, Any] = {}
    for file in _files(path):
        facts |= read_adapter_facts(file)
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
