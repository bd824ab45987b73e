"""Low-rank adapters as files: written so that plain diffusers restores them, read so that nothing is left out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from data.errors import SettingsError

# our own entry in a file's metadata: JSON
FACTS_KEY = "filrouge"

# the two factors of an adapter, as peft, diffusers and kohya name them
_FIRST = re.compile(r"lora_A|lora[._]down|lora_linear_layer\.down")
_SECOND = re.compile(r"lora_B|lora[._]up|lora_linear_layer\.up")
_NATIVE = re.compile(r"unet\.(?P<layer>.+)\.(?P<factor>lora_[AB])\.weight")
_CROSS_ATTENTION = re.compile(r"attn2[._]to_k.*")
_FAMILIES = {768: " (SD 1.x)", 1024: " (SD 2.x)", 2048: " (SDXL)"}


def export_lora(folder: Path, unet: nn.Module, adapter_name: str, metadata: Mapping[str, str]) -> Path:
    """Write a U-Net's adapter as `pytorch_lora_weights.safetensors` and return the file.

    `StableDiffusionPipeline.load_lora_weights(folder)` restores every layer with its rank and alpha: the names are
    peft's own (diffusers' names lose convolutions) and the header holds what differs from peft's defaults. metadata:
    further entries for the header. Equal adapters give equal bytes.
    """
    assert not metadata.keys() & {"format", LORA_ADAPTER_METADATA_KEY}
    factors = get_peft_model_state_dict(unet, adapter_name=adapter_name)
    tensors = {f"unet.{name}": factor.detach().cpu().contiguous() for name, factor in factors.items()}
    assert tensors, f"no layer carries the adapter {adapter_name}"
    config = {f"unet.{field}": value for field, value in _settled(unet.peft_config[adapter_name]).items()}  # type: ignore[index]
    header = {**metadata, "format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(config, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LORA_WEIGHT_NAME_SAFE
    temporary = folder / f".{LORA_WEIGHT_NAME_SAFE}.tmp"
    temporary.write_bytes(_serialized(tensors, header))
    temporary.replace(path)
    return path


def read_adapter_metadata(folder_or_file: Path) -> dict[str, str]:
    """Return the text entries in the header of an adapter's file; none for most adapters made elsewhere.

    Raises SettingsError for a file that is missing or not safetensors.
    """
    path = _adapter_file(folder_or_file)
    with _opened(path) as tensors:
        return dict(tensors.metadata() or {})


def load_adapter(
    pipeline: StableDiffusionPipeline,
    folder_or_file: Path,
    *,
    weight: float = 1.0,
    base_fingerprint: str | None = None,
) -> str:
    """Attach an adapter to a pipeline, make it the only active one, and return its name there.

    weight: the strength of the adapter, 1 as trained. base_fingerprint: that of the pipeline's base; None leaves out
    the comparison with the one that the adapter was trained on. Several adapters are combined afterwards with
    `pipeline.set_adapters(names, weights)`.
    Raises SettingsError for a file that is missing or not safetensors, was trained on another base or for another
    prediction type, or has a layer that finds no place in the model.
    """
    path = _adapter_file(folder_or_file)
    with _opened(path) as tensors:
        shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        facts = _facts(path, dict(tensors.metadata() or {}))
    problems = _misfits(pipeline, shapes) or _other_base(pipeline, facts, base_fingerprint)
    if problems:
        raise SettingsError(str(path), *problems)

    present = {name for names in pipeline.get_list_adapters().values() for name in names}
    name = next(f"adapter_{i}" for i in range(len(present) + 1) if f"adapter_{i}" not in present)
    try:
        with _not_warning_of_absent_text_encoder():
            pipeline.load_lora_weights(
                path.parent, weight_name=path.name, adapter_name=name, use_safetensors=True, local_files_only=True
            )
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise SettingsError(str(path), f"diffusers cannot load it: {str(error).splitlines()[0]}") from None
    expected, found = _count(_FIRST, shapes), _num_layers(pipeline, name)
    if found != expected:
        pipeline.delete_adapters(name)
        raise SettingsError(
            str(path), f"holds adapters for {expected} layers, of which {found} found their place in the model."
        )
    _keep_precision(pipeline.unet, path, name)
    pipeline.set_adapters(name, weight)
    return name


@contextmanager
def _not_warning_of_absent_text_encoder() -> Iterator[None]:
    """Silence diffusers where a file adapts the U-Net alone; what was loaded is counted afterwards."""
    logger = logging.getLogger("diffusers.loaders.lora_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _adapter_file(folder_or_file: Path) -> Path:
    path = folder_or_file / LORA_WEIGHT_NAME_SAFE if folder_or_file.is_dir() else folder_or_file
    if not path.exists():
        raise SettingsError(str(path), f"this file does not exist; expected the {LORA_WEIGHT_NAME_SAFE} of a run.")
    return path


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SettingsError(
            str(path),
            f"is not a whole safetensors file ({error}). Pickled weights are refused, as reading them runs code.",
        ) from None


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = json.loads(metadata.get(FACTS_KEY, "{}"))
    except ValueError as error:
        raise SettingsError(
            str(path), f"its entry {FACTS_KEY} is not JSON: {error}. Export the adapter again."
        ) from None
    if not isinstance(facts, dict):
        raise SettingsError(str(path), f"its entry {FACTS_KEY} is not a table. Export the adapter again.")
    return facts


def _misfits(pipeline: StableDiffusionPipeline, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Say how an adapter's layers do not fit the model."""
    num_first, num_second = _count(_FIRST, shapes), _count(_SECOND, shapes)
    if not num_first or num_first != num_second:
        return [f"holds {num_first} first and {num_second} second factors of adapters; expected as many of each."]
    width = pipeline.unet.config.cross_attention_dim
    trained = {shapes[key][1] for key in shapes if _CROSS_ATTENTION.search(key) and _FIRST.search(key)}
    if trained and trained != {width}:
        on = ", ".join(f"{dim}{_FAMILIES.get(dim, '')}" for dim in sorted(trained))
        return [f"trained on cross_attention_dim {on}, this model has {width}{_FAMILIES.get(width, '')}."]
    layers = dict(pipeline.unet.named_modules())
    strangers = [
        match["layer"]
        for key, shape in shapes.items()
        if (match := _NATIVE.fullmatch(key)) and not _fits(layers.get(match["layer"]), match["factor"], shape)
    ]
    if strangers:
        names = sorted(set(strangers))
        shown = ", ".join(names[:3]) + (", …" if names[3:] else "")
        return [f"{len(names)} of its layers do not exist in this model, or have other sizes there: {shown}."]
    return []


def _fits(layer: nn.Module | None, factor: str, shape: tuple[int, ...]) -> bool:
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    weight = getattr(base, "weight", None)
    if weight is None or weight.ndim != len(shape):
        return False
    return bool(shape[1] == weight.shape[1] if factor == "lora_A" else shape[0] == weight.shape[0])


def _other_base(pipeline: StableDiffusionPipeline, facts: Mapping[str, Any], base_fingerprint: str | None) -> list[str]:
    """Say how the model differs from the one an adapter says it was trained on."""
    problems = []
    trained_on = facts.get("base_fingerprint")
    if None not in (trained_on, base_fingerprint) and trained_on != base_fingerprint:
        base = facts.get("base")
        problems.append(
            f"trained on {base or 'a base with'}{', which has' if base else ''} other weights of the same shape "
            f"(fingerprint {trained_on}, this model has {base_fingerprint}). Give the base it was trained on."
        )
    trained_for, predicts = facts.get("prediction_type"), pipeline.scheduler.config.prediction_type
    if trained_for not in (None, predicts):
        problems.append(
            f"trained to predict {trained_for}, this pipeline takes the U-Net to predict {predicts}. "
            f"Give the prediction type {trained_for}."
        )
    return problems


def _count(factor: re.Pattern[str], keys: Iterable[str]) -> int:
    return sum(bool(factor.search(key)) for key in keys)


def _num_layers(pipeline: StableDiffusionPipeline, adapter_name: str) -> int:
    return sum(
        isinstance(module, BaseTunerLayer) and adapter_name in getattr(module, "lora_A", {})
        for part in (pipeline.unet, pipeline.text_encoder)
        for module in part.modules()
    )


def _keep_precision(unet: nn.Module, path: Path, adapter_name: str) -> None:
    """Give the factors back the precision they have in the file; diffusers casts them to the U-Net's."""
    with _opened(path) as tensors:
        for key in tensors.keys():  # noqa: SIM118
            if match := _NATIVE.fullmatch(key):
                factors = getattr(unet.get_submodule(match["layer"]), match["factor"])
                parameter = factors[adapter_name].weight
                parameter.data = tensors.get_tensor(key).to(parameter.device)


def _settled(config: LoraConfig) -> dict[str, Any]:
    """Return what an adapter's configuration says beyond peft's defaults, in an order that does not change.

    Fewer fields keep a file readable for other releases of peft. How the weights were initialised matters no more.
    """
    defaults = LoraConfig().to_dict()
    fields = {field: value for field, value in config.to_dict().items() if value != defaults.get(field)}
    fields |= {"r": config.r, "lora_alpha": config.lora_alpha}
    fields.pop("init_lora_weights", None)
    return {field: sorted(value) if isinstance(value, set) else value for field, value in fields.items()}


def _serialized(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file; safetensors 0.8 itself writes the metadata in a random order."""
    raw = to_safetensors(dict(tensors))
    length = int.from_bytes(raw[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(raw[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]
