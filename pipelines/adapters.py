"""Low-rank adapters as files: written so that plain diffusers restores them, read so that nothing is left out."""

from __future__ import annotations

import json
import logging
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.drawing_sizes import FACTS_KEY
from pipelines.fingerprints import differing_parts

Part = Literal["unet", "text_encoder"]
# the two factors of a layer's adapter and, for DoRA, the magnitudes of the rows of its weight, as peft names them
Factor = Literal["lora_A", "lora_B", "lora_magnitude_vector"]

# how peft and diffusers write them in a file
_ENDINGS: dict[str, Factor] = {
    "lora_A.weight": "lora_A",
    "lora.down.weight": "lora_A",
    "lora_linear_layer.down.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora.up.weight": "lora_B",
    "lora_linear_layer.up.weight": "lora_B",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
}
_ENDING = "|".join(re.escape(ending) for ending in _ENDINGS)
_KEY = re.compile(rf"(?P<part>unet|text_encoder)\.(?:text_model\.)?(?P<layer>.+?)\.(?P<ending>{_ENDING})")
# The names in which diffusers (0.42) restores every choice of layers. U-Net: those of peft, as diffusers' own lose
# convolutions. Text encoder: those of diffusers, as of peft's it refuses feed-forward layers without attention beside
# them and loses the magnitudes; and below `text_model`, which older releases expect and the current one takes off.
_WRITTEN: dict[str, tuple[str, dict[Factor, str]]] = {
    "unet": (
        "unet.",
        {
            "lora_A": "lora_A.weight",
            "lora_B": "lora_B.weight",
            "lora_magnitude_vector": "lora_magnitude_vector",
        },
    ),
    "text_encoder": (
        "text_encoder.text_model.",
        {
            "lora_A": "lora_linear_layer.down.weight",
            "lora_B": "lora_linear_layer.up.weight",
            "lora_magnitude_vector": "lora_magnitude_vector.weight",
        },
    ),
}
# the two factors in any form, kohya's and diffusers' earlier ones too
_FIRST = re.compile(r"lora_A|lora[._]down|lora_linear_layer\.down")
_SECOND = re.compile(r"lora_B|lora[._]up|lora_linear_layer\.up")
_MAGNITUDE = re.compile(r"lora_magnitude_vector|dora_scale")
_CROSS_ATTENTION = re.compile(r"attn2[._]to_k.*")
_FAMILIES = {768: " (SD 1.x)", 1024: " (SD 2.x)", 2048: " (SDXL)"}
_NUM_NAMED = 3  # layers that a message names


@dataclass(frozen=True)
class Place:
    """Where a tensor of an adapter's file belongs: a layer of one part, named as its module there."""

    part: str
    layer: str
    factor: Factor

    @property
    def key(self) -> str:
        """The tensor's name in the files written here."""
        prefix, endings = _WRITTEN[self.part]
        return f"{prefix}{self.layer}.{endings[self.factor]}"


def place_of(key: str) -> Place | None:
    """Return where a tensor belongs, from its name in peft's or diffusers' form; None for any other name."""
    match = _KEY.fullmatch(key)
    return None if match is None else Place(match["part"], match["layer"], _ENDINGS[match["ending"]])


def is_kohya(keys: Iterable[str]) -> bool:
    """Return whether the names of a file's tensors are those of kohya's form."""
    return any(key.startswith(("lora_unet_", "lora_te")) for key in keys)


def export_lora(folder: Path, parts: Mapping[str, nn.Module], adapter_name: str, metadata: Mapping[str, str]) -> Path:
    """Write the adapter of a U-Net, or of a U-Net and a text encoder, as `pytorch_lora_weights.safetensors`.

    `StableDiffusionPipeline.load_lora_weights(folder)` restores every layer with its rank, alpha and magnitudes; the
    header holds what differs from peft's defaults. Equal adapters give equal bytes. Returns the file.
    parts: "unet" and, where it is adapted, "text_encoder". metadata: further entries for the header.
    """
    tensors = adapter_tensors(parts, adapter_name)
    configs = {part: module.peft_config[adapter_name] for part, module in parts.items()}  # type: ignore[index]
    return write_adapter(folder / LORA_WEIGHT_NAME_SAFE, tensors, configs, metadata)


def adapter_tensors(parts: Mapping[str, nn.Module], adapter_name: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the names of the files written here, on the CPU."""
    tensors = {}
    for part, module in parts.items():
        state = get_peft_model_state_dict(module, adapter_name=adapter_name, save_embedding_layers=False)
        assert state, f"no layer of the {part} carries the adapter {adapter_name}"
        for name, tensor in state.items():
            place = place_of(f"{part}.{name}")
            assert place is not None, f"{part}.{name} is no factor of a low-rank adapter"
            tensors[place.key] = tensor.detach().cpu().contiguous()
    return tensors


def write_adapter(
    path: Path, tensors: Mapping[str, Tensor], configs: Mapping[str, LoraConfig], metadata: Mapping[str, str]
) -> Path:
    """Write an adapter's file, in one step and with bytes that depend on the arguments alone, and return it.

    configs: peft's configuration of each part; none for a form that has no place for them.
    """
    assert not metadata.keys() & {"format", LORA_ADAPTER_METADATA_KEY}
    header = {**metadata, "format": "pt"}
    if configs:
        settled = {f"{part}.{field}": v for part, config in configs.items() for field, v in _settled(config).items()}
        header[LORA_ADAPTER_METADATA_KEY] = json.dumps(settled, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(serialized(tensors, header))
    temporary.replace(path)
    return path


def read_adapter_metadata(folder_or_file: Path) -> dict[str, str]:
    """Return the text entries in the header of an adapter's file; none for most adapters made elsewhere.

    Raises SettingsError for a file that is missing or not safetensors.
    """
    path = adapter_file(folder_or_file)
    with opened(path) as tensors:
        return dict(tensors.metadata() or {})


def read_adapter_facts(folder_or_file: Path) -> dict[str, Any]:
    """Return what filrouge wrote of an adapter's base, concept and grey values; none for adapters made elsewhere.

    Raises SettingsError for a file that is missing, not safetensors, or with facts that cannot be read.
    """
    return _facts(adapter_file(folder_or_file), read_adapter_metadata(folder_or_file))


def read_adapter(folder_or_file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of an adapter's file and the text entries in its header.

    Raises SettingsError for a file that is missing or not safetensors.
    """
    path = adapter_file(folder_or_file)
    with opened(path) as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}, dict(tensors.metadata() or {})  # noqa: SIM118


def adapter_file(folder_or_file: Path) -> Path:
    """Return the file of an adapter, given it or the run folder that holds it; raise SettingsError for none."""
    path = folder_or_file / LORA_WEIGHT_NAME_SAFE if folder_or_file.is_dir() else folder_or_file
    if not path.exists():
        raise SettingsError(str(path), f"this file does not exist; expected the {LORA_WEIGHT_NAME_SAFE} of a run.")
    return path


def load_adapter(
    pipeline: StableDiffusionPipeline,
    folder_or_file: Path,
    *,
    weight: float = 1.0,
    base_fingerprint: str | None = None,
) -> str:
    """Attach an adapter to a pipeline, make it the only active one, and return its name there.

    Its factors keep the precision of the file, or have the model's where that is higher.
    weight: the strength of the adapter, 1 as trained; it multiplies what the adapter adds to a layer, but for DoRA,
    which rescales the layer's weight also at strength 0. base_fingerprint: that of the pipeline's base; None leaves out
    the comparison with the one that the adapter was trained on. Several adapters are combined afterwards with
    `pipeline.set_adapters(names, weights)`, which adds weight times change of each; parts that an adapter lacks stay
    as they are.
    Raises SettingsError for a file that is missing or not safetensors, was trained on another base or for another
    prediction type, has numbers that are not finite, or a layer that finds no place in the model; nothing of it stays
    in the pipeline.
    """
    path = adapter_file(folder_or_file)
    tensors, metadata = read_adapter(path)
    shapes, facts = {key: tuple(tensor.shape) for key, tensor in tensors.items()}, _facts(path, metadata)
    if path.suffix != ".safetensors":
        problems = ["diffusers takes only files whose name ends with .safetensors. Rename it."]
    elif is_kohya(shapes):
        problems = [
            "is in kohya's form, of which diffusers loses alphas that differ between layers, and DoRA's magnitudes. "
            f"Convert it once: python pipelines/convert_adapter.py --to diffusers --adapter {shlex.quote(str(path))}"
        ]
    else:
        problems = _misfits(pipeline, shapes) or _other_base(pipeline, facts, base_fingerprint) or not_finite(tensors)
    if problems:
        raise SettingsError(str(path), *problems)

    present = {name for names in pipeline.get_list_adapters().values() for name in names}
    name = next(f"adapter_{i}" for i in range(len(present) + 1) if f"adapter_{i}" not in present)
    try:
        with _quiet_loaders():
            pipeline.load_lora_weights(
                path.parent, weight_name=path.name, adapter_name=name, use_safetensors=True, local_files_only=True
            )
        problems = _left_out(pipeline, name, shapes) or _place_factors(pipeline, path, name)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        problems = [f"diffusers cannot load it: {str(error).splitlines()[0]}"]
    if problems:
        _detach(pipeline, name)
        raise SettingsError(str(path), *problems)
    pipeline.set_adapters(name, weight)
    return name


@contextmanager
def _quiet_loaders() -> Iterator[None]:
    """Silence the libraries on parts that a file does not adapt and on other adapters; what was loaded is counted."""
    loggers = [
        logging.getLogger(name)
        for name in ("diffusers.loaders.lora_base", "diffusers.loaders.peft", "transformers.integrations.peft")
    ]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            warnings.filterwarnings("ignore", message="While injecting the PEFT adapters, an inconsistency")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise SettingsError for one that is none, or whose tensors cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise SettingsError(
            str(path),
            f"is not a whole safetensors file ({error}). Pickled weights are refused, as reading them runs code.",
        ) from None


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = parsed(metadata.get(FACTS_KEY, "{}"))
    except ValueError as error:
        raise SettingsError(
            str(path), f"its entry {FACTS_KEY} is not JSON: {error}. Export the adapter again."
        ) from None
    if not isinstance(facts, dict):
        raise SettingsError(str(path), f"its entry {FACTS_KEY} is not a table. Export the adapter again.")
    return facts


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors of a file hold numbers that are not finite, or none at all."""
    wrong = [key for key, tensor in tensors.items() if not tensor.is_floating_point() or not tensor.isfinite().all()]
    if not wrong:
        return []
    return [
        f"holds numbers that are not finite, or no floats, in {len(wrong)} of {len(tensors)} tensors: {some(wrong)}. "
        "Its training failed, or the file is damaged: take an earlier checkpoint, or copy it again."
    ]


def _misfits(pipeline: StableDiffusionPipeline, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Say how an adapter's layers do not fit the model."""
    num_first, num_second = _count(_FIRST, shapes), _count(_SECOND, shapes)
    if not num_first or num_first != num_second:
        return [f"holds {num_first} first and {num_second} second factors of adapters; expected as many of each."]
    width = pipeline.unet.config.cross_attention_dim
    trained = {
        shape[1]
        for key, shape in shapes.items()
        if len(shape) > 1 and _CROSS_ATTENTION.search(key) and _FIRST.search(key)
    }
    if trained and trained != {width}:
        on = ", ".join(f"{dim}{_FAMILIES.get(dim, '')}" for dim in sorted(trained))
        return [f"trained on cross_attention_dim {on}, this model has {width}{_FAMILIES.get(width, '')}."]
    layers = {part: dict(module.named_modules()) for part, module in _adaptable(pipeline).items()}
    strangers = {
        f"{place.part}.{place.layer}"
        for key, shape in shapes.items()
        if (place := place_of(key)) and not fits(layers[place.part].get(place.layer), place.factor, shape)
    }
    if strangers:
        return [
            f"{len(strangers)} of its layers do not exist in this model, or have other sizes there: {some(strangers)}."
        ]
    return []


def some(names: Iterable[str]) -> str:
    """Return the first few of some names, in order, as a message shows them."""
    ordered = sorted(names)
    return ", ".join(ordered[:_NUM_NAMED]) + (", …" if ordered[_NUM_NAMED:] else "")


def fits(layer: nn.Module | None, factor: Factor, shape: tuple[int, ...]) -> bool:
    """Return whether a factor of this shape can belong to a layer, adapted already or not."""
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    weight = getattr(base, "weight", None)
    if weight is None:
        return False
    size = tuple(getattr(weight, "quant_state", weight).shape)  # a matrix in 4 bits is packed
    if factor == "lora_magnitude_vector":
        return shape == ((size[0],) if len(size) == 2 else (1, size[0], 1, 1))
    if len(size) != len(shape):
        return False
    if factor == "lora_A":
        return shape[1:] == size[1:]
    return shape[0] == size[0] and set(shape[2:]) <= {1}


def _adaptable(pipeline: StableDiffusionPipeline) -> dict[str, nn.Module]:
    return {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}


def _other_base(pipeline: StableDiffusionPipeline, facts: Mapping[str, Any], base_fingerprint: str | None) -> list[str]:
    """Say how the model differs from the one an adapter says it was trained on."""
    problems = []
    others = differing_parts(facts.get("base_fingerprint"), base_fingerprint)
    if others:
        base = facts.get("base")
        problems.append(
            f"trained on {base or 'a base with'}{', which has' if base else ''} other weights of the same shape: this "
            f"model differs from it in {', '.join(others)}. Give the base it was trained on."
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


def _left_out(pipeline: StableDiffusionPipeline, adapter_name: str, keys: Iterable[str]) -> list[str]:
    """Say how many of a file's layers did not find their place in the model."""
    problems = []
    for factor, pattern, what in (
        ("lora_A", _FIRST, "holds adapters for"),
        ("lora_magnitude_vector", _MAGNITUDE, "holds magnitudes (DoRA) for"),
    ):
        expected = _count(pattern, keys)
        found = sum(
            isinstance(module, BaseTunerLayer) and adapter_name in (getattr(module, factor, None) or {})
            for part in _adaptable(pipeline).values()
            for module in part.modules()
        )
        if found != expected:
            problems.append(f"{what} {expected} layers, of which {found} found their place in the model.")
    # a factor that no tensor of the file has filled has no numbers
    unfilled = [
        f"{part}.{name.replace(f'.{adapter_name}', '')}"
        for part, module in _adaptable(pipeline).items()
        for name, parameter in module.named_parameters()
        if f".{adapter_name}." in name and parameter.is_meta
    ]
    if unfilled:
        problems.append(f"lacks {len(unfilled)} factors of the layers that it adapts: {some(unfilled)}.")
    return problems


def _place_factors(pipeline: StableDiffusionPipeline, path: Path, adapter_name: str) -> list[str]:
    """Put in the factors as they are in the file; diffusers casts them to the model's precision.

    They keep the file's precision or take the model's, whichever holds the values of both. Says what does not fit.
    """
    modules = _adaptable(pipeline)
    misplaced = []
    with opened(path) as tensors:
        for key in tensors.keys():  # noqa: SIM118
            place = place_of(key)
            if place is None:
                continue
            layer = modules[place.part].get_submodule(place.layer)
            if adapter_name not in getattr(layer, place.factor, {}):
                misplaced.append(key)
                continue
            parameter = getattr(layer, place.factor)[adapter_name].weight
            tensor = tensors.get_tensor(key)
            if tensor.shape != parameter.shape:
                misplaced.append(key)
                continue
            precision = torch.promote_types(tensor.dtype, layer.get_base_layer().weight.dtype)  # type: ignore[operator]
            # out of the file's memory, where it may lie unaligned and sums come out otherwise
            parameter.data = tensor.to(parameter.device, precision, copy=True)
    return [f"{len(misplaced)} of its tensors found no place in the model: {some(misplaced)}."] if misplaced else []


def _detach(pipeline: StableDiffusionPipeline, adapter_name: str) -> None:
    if any(adapter_name in names for names in pipeline.get_list_adapters().values()):
        pipeline.delete_adapters(adapter_name)


def _settled(config: LoraConfig) -> dict[str, Any]:
    """Return what an adapter's configuration says beyond peft's defaults, in an order that does not change.

    Fewer fields keep a file readable for other releases of peft. How the weights were initialised matters no more, and
    where the base lay is a place of this machine.
    """
    defaults = LoraConfig().to_dict()
    fields = {field: value for field, value in config.to_dict().items() if value != defaults.get(field)}
    fields |= {"r": config.r, "lora_alpha": config.lora_alpha}
    for field in ("init_lora_weights", "base_model_name_or_path"):
        fields.pop(field, None)
    return {field: sorted(value) if isinstance(value, set) else value for field, value in fields.items()}


def serialized(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file; safetensors 0.8 itself writes the metadata in a random order."""
    raw = to_safetensors(dict(tensors))
    length = int.from_bytes(raw[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **parsed(raw[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]
