"""A Stable Diffusion 1.x or 2.x base model taken apart: denoiser, autoencoder, text encoder, tokenizer, noise schedule.

Nothing that is read can run code: the classes are named here, the weights are safetensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
from diffusers.models.resnet import ResnetBlock2D
from safetensors import SafetensorError
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from data.errors import SettingsError
from data.freed_memory import return_freed_memory, returning_freed_memory
from data.json_files import parsed
from pipelines.base_folders import (
    PARTS,
    WEIGHTS,
    first_line,
    folder_problems,
    is_hub_id,
    locate,
    shown,
    weights_file,
    where,
)
from pipelines.fingerprints import (
    FileState,
    PartFingerprint,
    file_states,
    of_facts,
    of_file,
    of_module,
    remembered,
    together,
    weights_fingerprint,
)
from pipelines.finite import module_problems

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

_MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}

# what a config says that changes nothing of what a part gives for an input
_IDLE = {
    "sample_size",
    "force_upcast",
    "quantization_config",  # of a U-Net in 4 bits, which a setting asks for
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
# what a scheduler's config says of the noise that a model has learnt
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


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
    that of the model's own folder, as it stands there. fingerprint: of every weight of every part and of all else in
    the model's folder that decides what it draws (`pipelines/fingerprints.py`); empty where no weights were read.
    folder, variant: where the weights can be read again; None for a model from nothing. released: the parts whose
    memory is free at present. hashes: the fingerprints of those that were released once.
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
    folder: Path | None = None
    variant: str | None = None
    released: set[str] = field(default_factory=set)
    hashes: dict[str, str] = field(default_factory=dict)

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
    name, folder = locate(name_or_path, revision, variant, weights=weights)
    problems = folder_problems(folder, variant, weights=weights)
    if problems:
        raise SettingsError(where(name, folder), *problems)

    before = _states(folder, variant) if weights else {}
    with _silent_transformers():
        read = {
            part: _read_part(part, folder / part, variant, problems, weights=weights, four_bits=four_bits)
            for part in PARTS
        }
    if not problems and len(read["tokenizer"]) > read["text_encoder"].config.vocab_size:
        problems.append(
            f"the tokenizer knows {len(read['tokenizer'])} tokens and the text encoder "
            f"{read['text_encoder'].config.vocab_size}; expected both from the same model."
        )
    if not problems and weights and _states(folder, variant) != before:
        problems.append("its files changed while they were read. Start again when they are complete.")
    if problems:
        raise SettingsError(where(name, folder), *problems)
    return Components(
        name=name,
        source=name if is_hub_id(name, folder) else shown(folder),
        unet=read["unet"],
        vae=read["vae"],
        text_encoder=read["text_encoder"],
        tokenizer=read["tokenizer"],
        scheduler=DDPMScheduler.from_config(read["scheduler"].config),
        sampler=read["scheduler"],
        own_sampler=read["scheduler"],
        fingerprint=_fingerprint(folder, variant, read, before) if weights else "",
        folder=folder,
        variant=variant,
    )


def release(components: Components, parts: Iterable[str]) -> None:
    """Free the memory of frozen parts, such as "vae", until `present` or `recall` reads their weights again."""
    for part in set(parts) - components.released:
        assert components.folder is not None, "parts that cannot be read again are kept"
        if part not in components.hashes:
            components.hashes[part] = weights_fingerprint(getattr(components, part))
        components.released.add(part)
        for parameter in getattr(components, part).parameters():
            assert not parameter.requires_grad, f"{part} is trained"
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def recall(components: Components, parts: Iterable[str] = ("vae", "text_encoder")) -> tuple[str, ...]:
    """Read the weights of released parts again, in their precision and on their device, and return which they were.

    Raises SettingsError where the model's files are not what they were.
    """
    gone = tuple(part for part in parts if part in components.released)
    problems: list[str] = []
    for part in gone:
        assert components.folder is not None
        with _silent_transformers():
            read = _read_part(part, components.folder / part, components.variant, problems)
        if problems:
            raise SettingsError(where(components.name, components.folder), *problems)
        module = getattr(components, part)
        for live, again in zip(module.parameters(), read.parameters(), strict=True):
            live.data = again.data.to(live.device, live.dtype)
        components.released.remove(part)
        if weights_fingerprint(module) != components.hashes[part]:
            raise SettingsError(
                str(components.folder / part),
                "its weights are not those that the run began with: the files were changed while it ran. Restore them.",
            )
    return gone


@contextmanager
def present(components: Components, parts: Iterable[str] = ("vae", "text_encoder")) -> Iterator[None]:
    """Have parts in memory for a while, which are released again afterwards where they were before.

    Where they were, memory is short: what is freed inside does not stay with the process.
    """
    if all(part not in components.released for part in parts):
        yield
        return
    with returning_freed_memory(), ExitStack() as stack:
        gone = recall(components, parts)
        stack.callback(release, components, gone)
        for block in components.vae.modules():
            if isinstance(block, ResnetBlock2D):  # large results find a gap of the heap each, and would leave it filled
                stack.callback(block.register_forward_hook(lambda *_: return_freed_memory()).remove)
        yield


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


def _read_part(
    part: str,
    folder: Path,
    variant: str | None,
    problems: list[str],
    *,
    weights: bool = True,
    four_bits: FourBits | None = None,
) -> Any:
    """Return one part, or add to the problems why it cannot be used."""
    try:
        if part == "tokenizer":
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if part == "scheduler":
            return _read_sampler(folder)
        if not weights:
            return _without_weights(part, folder, four_bits if part == "unet" else None)
        if four_bits is not None and part == "unet":
            from pipelines.four_bits import prepare, quantizing

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
        problems.append(f"{part}/ cannot be read: {first_line(error)}")
        return None
    missing = sorted(report["missing_keys"])
    if missing:
        problems.append(
            f"{part}/ lacks {len(missing)} of its weights ({', '.join(missing[:3])}{', …' if missing[3:] else ''}); "
            "they would be random. Fetch the model again."
        )
    else:
        problems += [f"{part}/ {problem}" for problem in module_problems(module)]
    if four_bits is not None and part == "unet":
        prepare(module, four_bits.dtype)
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
    name = parsed((folder / "scheduler_config.json").read_bytes()).get("_class_name")
    schedulers = {cls.__name__: cls for cls in SAMPLERS}
    if name not in schedulers:
        raise ValueError(f"found the scheduler {name}, expected one of {', '.join(schedulers)}.")
    sampler = schedulers[name].from_pretrained(folder, local_files_only=True)
    if sampler.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"found prediction_type {sampler.config.prediction_type}, expected one of {', '.join(PREDICTION_TYPES)}."
        )
    return sampler


def _states(folder: Path, variant: str | None) -> dict[str, tuple[FileState, ...]]:
    """Return the states of the files of each part that is hashed once for all runs."""
    files = {part: [folder / part / weights_file(part, variant), folder / part / "config.json"] for part in WEIGHTS}
    files["tokenizer"] = sorted(path for path in (folder / "tokenizer").iterdir() if path.is_file())
    return {part: file_states(paths) for part, paths in files.items()}


def _fingerprint(
    folder: Path, variant: str | None, read: Mapping[str, Any], states: Mapping[str, tuple[FileState, ...]]
) -> str:
    vae, text, tokenizer = (read[part] for part in ("vae", "text_encoder", "tokenizer"))
    facts = {part: _decisive(read[part]) for part in WEIGHTS}
    # of the file: in memory the U-Net may be in 4 bits
    unet_file = folder / "unet" / weights_file("unet", variant)
    return together(
        {
            "unet": remembered(states["unet"], facts["unet"], lambda: of_file(unet_file, facts["unet"])),
            "vae": remembered(states["vae"], facts["vae"], lambda: of_module(vae, facts["vae"])),
            "text_encoder": remembered(
                states["text_encoder"], facts["text_encoder"], lambda: of_module(text, facts["text_encoder"])
            ),
            "tokenizer": remembered(states["tokenizer"], {}, lambda: tokenizer_fingerprint(tokenizer)),
            "scheduler": _scheduler_fingerprint(read["scheduler"]),
        }
    )


def tokenizer_fingerprint(tokenizer: CLIPTokenizer) -> PartFingerprint:
    """Return the fingerprint of what a tokenizer makes of a text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # set anew at each call
    backend.no_padding()
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    facts = [backend.to_str(), special, tokenizer.model_max_length]
    return of_facts(facts, facts)


def _scheduler_fingerprint(scheduler: Any) -> PartFingerprint:
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return of_facts([type(scheduler).__name__, config], {key: config.get(key) for key in _NOISE})


def _decisive(module: Any) -> dict[str, Any]:
    """Return what a part's config says beyond the defaults of its class: a file may write them out or not."""
    if isinstance(module, ModelMixin):
        defaults = {name: each.default for name, each in inspect.signature(type(module).__init__).parameters.items()}
        said = dict(module.config)
    else:
        defaults, said = type(module.config)().to_dict(), module.config.to_dict()
    plain = {key: _as_list(value) for key, value in said.items() if key not in _IDLE and not key.startswith("_")}
    return {key: value for key, value in plain.items() if value != _as_list(defaults.get(key))}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
