"""Adapters added into the weights of their base: a model that needs no adapter any more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer

from data.errors import SettingsError
from pipelines.adapters import load_adapter
from pipelines.components import Components, build_pipeline

_PARTS = ["unet", "text_encoder"]


def combine(components: Components, adapters: Sequence[tuple[Path, float]]) -> StableDiffusionPipeline:
    """Return a pipeline of the live parts with several adapters attached, each with its weight.

    A layer's weight W then acts as W + sum of weight_i * change_i; adapters of DoRA rescale what those before them in
    the sequence give.
    adapters: file or run folder, and weight. Raises SettingsError for an adapter that does not fit the base.
    """
    assert adapters, "nothing to combine"
    pipeline = build_pipeline(components)
    names = [load_adapter(pipeline, path, base_fingerprint=components.fingerprint) for path, _ in adapters]
    pipeline.set_adapters(names, [weight for _, weight in adapters])
    return pipeline


def merge(components: Components, adapters: Sequence[tuple[Path, float]]) -> StableDiffusionPipeline:
    """Return a pipeline that draws as `combine` does, with the adapters added into copies of the base's weights.

    The sums are taken in the base's precision, float32 as `load_components` gives it. components stay as they are.
    Raises SettingsError for an adapter that does not fit the base or whose sum with it is not finite.
    """
    copies = replace(
        components, unet=copy.deepcopy(components.unet), text_encoder=copy.deepcopy(components.text_encoder)
    )
    pipeline = combine(copies, adapters)
    try:
        pipeline.fuse_lora(components=_PARTS, safe_fusing=True)
    except ValueError as error:
        names = ", ".join(str(path) for path, _ in adapters)
        raise SettingsError(names, f"cannot be merged: {error}. Choose smaller weights.") from None
    pipeline.unload_lora_weights()
    return pipeline


@torch.no_grad()
def merge_in_place(pipeline: StableDiffusionPipeline) -> Callable[[], None]:
    """Add a pipeline's adapters into the weights of its own layers, so that it draws as fast as without them.

    The sums are those of `merge`, finite or not. Returns what takes the adapters out again, which leaves the weights
    bit for bit as they were; neither factors nor strengths may change before. Takes the memory of the adapted layers
    a second time.
    """
    parts = (pipeline.unet, pipeline.text_encoder)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer)]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.merge()

    def take_out() -> None:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()

    return take_out
