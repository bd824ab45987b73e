"""The weights of a checkpoint, put into the pipeline of the run's result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from data.errors import OutputError
from pipelines.adapters import opened
from pipelines.embeddings import EMBEDDINGS_NAME, placeholder_tokens
from pipelines.evaluation.states import AVERAGED, checkpoint_records

_MOVING_AVERAGE = "ema/"  # what a run with an average of its weights exports
_FACTOR = re.compile(r"(\.lora_A|\.lora_B|\.lora_magnitude_vector)\.([^.]+)")


def restore_checkpoint(pipeline: StableDiffusionPipeline, run: Path, checkpoint: Path) -> None:
    """Replace what a run has trained, in the pipeline of its result, by the weights of one of its checkpoints.

    run: the folder of the result, whose adapter files say how the factors are scaled. Low-rank adapters, the rows of
    a learned word, and whole modules (their average, where the run kept one) are known. Where the optimizer trains at
    another point than the one that is to be used, the latter is taken.
    Raises OutputError for a checkpoint that is damaged, or whose tensors are not those of the pipeline.
    """
    names = checkpoint_records(checkpoint)
    averaged = load_file(checkpoint / AVERAGED) if AVERAGED in names else {}
    for name in names:
        if name == AVERAGED:
            continue
        part = f"{name.removesuffix('.safetensors')}/"
        used = {key.removeprefix(part): tensor for key, tensor in averaged.items() if key.startswith(part)}
        tensors = {**load_file(checkpoint / name), **used}
        where = f"{checkpoint / name}"
        if name in ("unet_lora.safetensors", "text_encoder_lora.safetensors"):
            module = pipeline.unet if name.startswith("unet") else pipeline.text_encoder
            _copy(where, _factors(module), {_anonymous(key): tensor for key, tensor in tensors.items()})
        elif name == "token_rows.safetensors":
            _copy_rows(where, pipeline, run, tensors["rows"])
        elif name in ("unet.safetensors", "text_encoder.safetensors"):
            module = pipeline.unet if name.startswith("unet") else pipeline.text_encoder
            weights = {key: tensor for key, tensor in module.state_dict().items() if tensor.is_floating_point()}
            _copy(where, weights, _of_moving_average(tensors) or tensors)
        else:
            raise OutputError(where, "is no part that can be drawn with. Give --checkpoints last for this run.")


def _of_moving_average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(_MOVING_AVERAGE): tensor for key, tensor in tensors.items() if key.startswith(_MOVING_AVERAGE)
    }


def _factors(module: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter for name, parameter in module.named_parameters() if _FACTOR.search(name)}
    return {_anonymous(name): parameter for name, parameter in found.items()}


def _anonymous(key: str) -> str:
    """Take the adapter's name, which differs between a run and a pipeline, out of a factor's."""
    return _FACTOR.sub(r"\1", key)


@torch.no_grad()
def _copy_rows(where: str, pipeline: StableDiffusionPipeline, run: Path, rows: Tensor) -> None:
    with opened(run / EMBEDDINGS_NAME) as file:
        (token,) = file.keys()
    ids = pipeline.tokenizer.convert_tokens_to_ids(list(placeholder_tokens(token, len(rows))))
    table = pipeline.text_encoder.get_input_embeddings().weight
    if rows.shape[1] != table.shape[1] or len(set(ids)) != len(rows):
        raise OutputError(where, f"holds rows {tuple(rows.shape)} that are not those of {token}.")
    table[ids] = rows.to(table)


@torch.no_grad()
def _copy(where: str, into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    strangers = sorted(into.keys() ^ tensors.keys())
    strangers += sorted(key for key in into.keys() & tensors.keys() if into[key].shape != tensors[key].shape)
    if strangers:
        raise OutputError(
            where,
            f"{len(strangers)} of its tensors, such as {strangers[0]}, are not those of the run's result: it is of "
            "another run. Leave this checkpoint out.",
        )
    for key, tensor in into.items():
        tensor.copy_(tensors[key])
