"""Adapters in the form of kohya's sd-scripts, which the web UIs read, and back.

A layer is named by its module's path with underscores for dots, after `lora_unet_` or `lora_te_` (SD 1.x and 2.x).
`lora_down` and `lora_up` are the two factors, 4-D for convolutions, `alpha` is a scalar for each layer, and the change
to the weight is alpha / rank * up @ down. `dora_scale` (DoRA, Liu et al. 2024) are the magnitudes of the rows of the
weight, shaped (out, 1) or (out, 1, 1, 1): ComfyUI and LyCORIS take the axis of the magnitudes from that shape.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.adapters import Factor, Place, adapter_file, fits, is_kohya, place_of, read_adapter, write_adapter
from pipelines.components import Components

_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
_ENDINGS: dict[Factor, str] = {
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
_FACTORS = {ending: factor for factor, ending in _ENDINGS.items()}
_FACTOR_NAMES: dict[Factor, str] = {"lora_A": "first", "lora_B": "second"}
_ALPHA = "alpha"
_NUM_LISTED = 20  # keys of a file that a message lists


def to_kohya(source: Path, target: Path) -> Path:
    """Write an adapter of peft's or diffusers' form in kohya's, and return the file.

    The tensors are those of the source, in its precision. Each layer's alpha is the one it is applied with: from the
    source's configuration, or its rank where there is none, as diffusers takes it; of rank-stabilised adapters
    alpha * sqrt(rank) (Kalajdzievski 2023), as kohya divides by the rank.
    source: file or run folder. target: replaced where it exists. The source's own entries in the header are kept.
    Raises SettingsError for a source that is missing, not safetensors, already of this form, or has other tensors.
    """
    tensors, metadata = read_adapter(source)
    where = str(adapter_file(source))
    if is_kohya(tensors):
        raise SettingsError(where, "is in kohya's form already.")
    configs = _read_configs(where, metadata)
    layers, unknown = _by_layer(tensors)
    if unknown:
        raise SettingsError(where, f"holds tensors that are no factors of low-rank adapters: {_listed(unknown)}.")
    problems = _incomplete(layers)
    if problems:
        raise SettingsError(where, *problems)
    written: dict[str, Tensor] = {}
    ranks, alphas = [], []
    for (part, layer), factors in layers.items():
        name = _PREFIXES[part] + layer.replace(".", "_")
        rank = factors["lora_A"].shape[0]
        alpha = _alpha(configs.get(part), layer, rank)
        for factor, tensor in factors.items():
            shaped = _column(tensor, factors["lora_A"].ndim) if factor == "lora_magnitude_vector" else tensor
            written[f"{name}.{_ENDINGS[factor]}"] = shaped.contiguous()
        written[f"{name}.{_ALPHA}"] = torch.tensor(alpha, dtype=torch.float32)
        ranks.append(rank)
        alphas.append(alpha)
    header = {key: value for key, value in metadata.items() if key not in ("format", LORA_ADAPTER_METADATA_KEY)}
    header |= {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_commonest(ranks)),
        "ss_network_alpha": str(_commonest(alphas)),
    }
    return write_adapter(target, written, {}, header)


def from_kohya(source: Path, target: Path, components: Components) -> Path:
    """Write an adapter of kohya's form in the one of `export_lora`, and return the file.

    The tensors are those of the source, in its precision; each layer's rank and alpha go into the header. A layer
    without alpha, or with alpha 0, has its rank as alpha, as in kohya's scripts.
    target: replaced where it exists. components: the base, whose modules say which layers the names mean.
    Raises SettingsError for a source that is missing, not safetensors, not of this form, or has tensors that find no
    place in the base.
    """
    tensors, metadata = read_adapter(source)
    where = str(adapter_file(source))
    if not is_kohya(tensors):
        raise SettingsError(where, "is not in kohya's form: none of its tensors is named lora_unet_… or lora_te_….")
    named = _kohya_names(components)
    layers: dict[tuple[str, str], dict[Factor, Tensor]] = defaultdict(dict)
    alphas: dict[tuple[str, str], float] = {}
    unknown, misfits = [], []
    for key, tensor in tensors.items():
        name, _, ending = key.partition(".")
        if name not in named or ending not in (_ALPHA, *_FACTORS):
            unknown.append(key)
            continue
        part, layer, module = named[name]
        if ending == _ALPHA:
            if tensor.numel() == 1:
                alphas[part, layer] = float(tensor)
            else:
                misfits.append(key)
            continue
        shaped = _shaped(tensor, _FACTORS[ending], module)
        if shaped is None:
            misfits.append(key)
        else:
            layers[part, layer][_FACTORS[ending]] = shaped
    problems = [] if misfits else _incomplete(layers)
    if unknown:
        problems.append(
            f"holds tensors that have no place in {components.name}: {_listed(unknown)}. Expected low-rank adapters "
            "(no LoHa, LoKr or SDXL) of the layers of this base."
        )
    if misfits:
        problems.append(f"holds tensors whose shapes do not fit the layers of {components.name}: {_listed(misfits)}.")
    if not misfits:
        problems += [
            f"gives {p}.{layer} an alpha and no factors." for p, layer in sorted(alphas.keys() - layers.keys())
        ]
        problems += _mixed_magnitudes(layers)
    if problems:
        raise SettingsError(where, *problems)
    written = {
        Place(part, layer, factor).key: tensor.contiguous()
        for (part, layer), factors in layers.items()
        for factor, tensor in factors.items()
    }
    header = {key: value for key, value in metadata.items() if key not in ("format", LORA_ADAPTER_METADATA_KEY)}
    for key in ("ss_network_module", "ss_network_dim", "ss_network_alpha"):
        header.pop(key, None)
    return write_adapter(target, written, _configs(layers, alphas), header)


def apply_kohya(components: Components, source: Path) -> Components:
    """Return copies of a base's U-Net and text encoder with an adapter of kohya's form added into their weights.

    Each weight W becomes W + alpha / rank * up @ down and, with magnitudes m, that matrix with rows of norm m. This
    reads the form by its definition, without peft: what the conversions are checked against.
    source: a file that `to_kohya` wrote or `from_kohya` takes.
    """
    tensors, _ = read_adapter(source)
    changed = replace(
        components, unet=copy.deepcopy(components.unet), text_encoder=copy.deepcopy(components.text_encoder)
    )
    for name, (_, _, module) in _kohya_names(changed).items():
        if f"{name}.lora_down.weight" not in tensors:
            continue
        down, up = (tensors[f"{name}.{_ENDINGS[factor]}"].double().flatten(1) for factor in _FACTOR_NAMES)
        rank = down.shape[0]
        alpha = float(tensors.get(f"{name}.{_ALPHA}", torch.zeros(()))) or rank
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        matrix = weight.detach().double().flatten(1) + alpha / rank * up @ down
        if f"{name}.dora_scale" in tensors:
            magnitudes = tensors[f"{name}.dora_scale"].double().reshape(-1, 1)
            matrix = matrix * magnitudes / matrix.norm(dim=1, keepdim=True)
        weight.data = matrix.reshape(weight.shape).to(weight.dtype)
    return changed


def _by_layer(tensors: Mapping[str, Tensor]) -> tuple[dict[tuple[str, str], dict[Factor, Tensor]], list[str]]:
    """Return the factors of each layer, and the names of the tensors that are none."""
    layers: dict[tuple[str, str], dict[Factor, Tensor]] = defaultdict(dict)
    unknown = []
    for key, tensor in tensors.items():
        place = place_of(key)
        if place is None:
            unknown.append(key)
        else:
            layers[place.part, place.layer][place.factor] = tensor
    return layers, unknown


def _incomplete(layers: Mapping[tuple[str, str], Mapping[Factor, Tensor]]) -> list[str]:
    """Say which layers lack a factor, or have two of different ranks."""
    problems = []
    for (part, layer), factors in sorted(layers.items()):
        missing = [name for factor, name in _FACTOR_NAMES.items() if factor not in factors]
        if missing:
            problems.append(f"lacks the {' and the '.join(missing)} factor of {part}.{layer}; expected both.")
        elif any(tensor.ndim < 2 for factor, tensor in factors.items() if factor != "lora_magnitude_vector"):
            problems.append(f"a factor of {part}.{layer} is no matrix; expected two.")
        elif factors["lora_A"].shape[0] != factors["lora_B"].shape[1]:
            ranks = f"{factors['lora_A'].shape[0]} and {factors['lora_B'].shape[1]}"
            problems.append(f"the two factors of {part}.{layer} have the ranks {ranks}; expected them equal.")
    return problems


def _mixed_magnitudes(layers: Mapping[tuple[str, str], Mapping[Factor, Tensor]]) -> list[str]:
    """Say in which part some layers have magnitudes and others none, which peft has no configuration for."""
    problems = []
    for part in _PREFIXES:
        having = ["lora_magnitude_vector" in factors for (owner, _), factors in layers.items() if owner == part]
        if any(having) and not all(having):
            problems.append(
                f"{sum(having)} of {len(having)} layers of the {part} have a dora_scale; expected all or none."
            )
    return problems


def _read_configs(where: str, metadata: Mapping[str, str]) -> dict[str, LoraConfig]:
    """Return peft's configuration of each part from a file's header."""
    try:
        entries = parsed(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        fields: dict[str, dict[str, Any]] = defaultdict(dict)
        for key, value in entries.items():
            part, _, field = key.partition(".")
            fields[part][field] = value
        return {part: LoraConfig(**values) for part, values in fields.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingsError(where, f"its entry {LORA_ADAPTER_METADATA_KEY} cannot be read: {error}.") from None


def _alpha(config: LoraConfig | None, layer: str, rank: int) -> float:
    """Return the alpha for which alpha / rank is the scale that peft applies to a layer."""
    if config is None:
        return float(rank)
    patterns = config.alpha_pattern or {}
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), layer), config.lora_alpha))
    return alpha * math.sqrt(rank) if config.use_rslora else alpha


def _column(magnitudes: Tensor, num_dimensions: int) -> Tensor:
    """Return magnitudes, of any of peft's shapes, as (out, 1) or (out, 1, 1, 1)."""
    return magnitudes.reshape(-1, *([1] * (num_dimensions - 1)))


def _kohya_names(components: Components) -> dict[str, tuple[str, str, nn.Module]]:
    """Return part, name and module of each layer of a base that can be adapted, by its name in kohya's form."""
    named: dict[str, tuple[str, str, nn.Module]] = {}
    for part, model in (("unet", components.unet), ("text_encoder", components.text_encoder)):
        for layer, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                name = _PREFIXES[part] + layer.replace(".", "_")
                assert name not in named, f"two layers are named {name}"
                named[name] = part, layer, module
    return named


def _shaped(tensor: Tensor, factor: Factor, module: nn.Module) -> Tensor | None:
    """Return a factor in the shape in which peft keeps it for a layer, or None where it cannot belong to it.

    Other trainers write factors of 1 × 1 convolutions as matrices, and of linear layers with two axes of size 1.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if factor == "lora_magnitude_vector":
        rows = (weight.shape[0], *([1] * (weight.ndim - 1)))
        if tuple(tensor.shape) not in (rows, rows[:1]):
            return None
        shape = rows[:1] if weight.ndim == 2 else (1, weight.shape[0], 1, 1)
        return tensor.reshape(shape)
    if tensor.ndim == 2 and weight.ndim == 4:
        tensor = tensor[:, :, None, None]
    elif tensor.ndim == 4 and weight.ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    return tensor if fits(module, factor, tuple(tensor.shape)) else None


def _configs(
    layers: Mapping[tuple[str, str], Mapping[Factor, Tensor]], alphas: Mapping[tuple[str, str], float]
) -> dict[str, LoraConfig]:
    """Return the configuration of each part: the commonest rank and alpha, and the layers that have others."""
    configs = {}
    for part in _PREFIXES:
        ranks = {layer: factors["lora_A"].shape[0] for (owner, layer), factors in layers.items() if owner == part}
        if not ranks:
            continue
        scales = {layer: alphas.get((part, layer), 0.0) or float(rank) for layer, rank in ranks.items()}
        rank, alpha = _commonest(ranks.values()), _commonest(scales.values())
        configs[part] = LoraConfig(
            r=int(rank),
            lora_alpha=alpha,
            rank_pattern={_exactly(layer): r for layer, r in sorted(ranks.items()) if r != rank},
            alpha_pattern={_exactly(layer): a for layer, a in sorted(scales.items()) if a != alpha},
            target_modules=sorted(ranks),
            use_dora=any("lora_magnitude_vector" in f for (owner, _), f in layers.items() if owner == part),
        )
    return configs


def _exactly(layer: str) -> str:
    """Return the pattern of one layer; peft matches it with the end of a layer's name."""
    return re.escape(layer)


def _commonest(values: Iterable[float]) -> float:
    """Return the value that occurs most often, the smallest of several."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _listed(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:_NUM_LISTED])
    return shown + (f" and {len(keys) - _NUM_LISTED} more" if len(keys) > _NUM_LISTED else "")
