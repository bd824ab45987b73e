"""The options of a run: one definition feeds the command line, the YAML file and the help.

A field's name is the flag's name, in the spelling of diffusers' scripts; type, default, bounds and description stand
beside it. `finetune/core/cli.py` fills the fields from files and flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from data.errors import OutputError

DATA_VARIABLE = "FILROUGE_DATA"
# Spellings of other scripts' flags, and switches that stand for one value (DreamBooth's --offset_noise is 0.1 there).
ALIASES = {"validation_prompts": "validation_prompt", "logger": "report_to", "num_epochs": "num_train_epochs"}
SWITCHES = {"offset_noise": ("noise_offset", "0.1")}
# What may differ between a run and its continuation without changing what is learnt.
FREE_ON_RESUME = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run", "dataloader_num_workers"),
        *("checkpointing_steps", "checkpoints_total_limit", "report_to", "logging_steps"),
        *("validation_steps", "num_validation_images", "validation_prompt"),
    }
)
LENGTHS = ("max_train_steps", "num_train_epochs")  # one of the two says how long a run is


def _concept_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):  # it becomes part of a folder's name
        raise ValueError("expected up to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
    return name


def _checkpoint_name(name: str) -> str:
    if not re.fullmatch(r"latest|checkpoint-[0-9]+", name):
        raise ValueError("expected latest, or checkpoint-N as a folder of --output_dir is called")
    return name


class Settings(BaseModel):
    """What every group of options shares: nothing unknown, nothing infinite, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def contradictions(self) -> list[str]:
        """Return one sentence for each pair of options that cannot stand together, naming the flag to change."""
        return []

    @model_validator(mode="after")
    def _agrees(self) -> Settings:
        if problems := self.contradictions():
            raise ValueError("\n".join(problems))
        return self


class ModelSettings(Settings):
    """Base model."""

    pretrained_model_name_or_path: str = Field(
        default="swatch",
        min_length=1,
        description="folder or hub id of the base model; swatch is the one in this repository",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of the hub id")
    variant: str | None = Field(default=None, description="variant of the weight files, such as fp16")


class DataSettings(Settings):
    """Images and captions."""

    concept: Annotated[str, AfterValidator(_concept_name)] = Field(
        description="which images, under which words, such as sf_dry"
    )
    data_root: Path | None = Field(
        default=None,
        description=f"folder of the volumes and of dtd/; none: generated stand-ins; {DATA_VARIABLE} can set it",
    )
    resolution: int | None = Field(
        default=None, ge=8, description="side of the images in pixels; none: the base model's own"
    )
    um_per_px: float | None = Field(
        default=None, gt=0, description="micrometres per pixel after resampling; none: the voxel size of the volumes"
    )
    images_per_class: int | None = Field(default=None, ge=1, description="images taken from each class; none: all")
    center_crop: bool = Field(default=False, description="crop at the centre instead of at a drawn place")
    random_flip: bool = Field(default=False, description="draw flips among the symmetries that the plane allows")
    proportion_empty_prompts: float = Field(
        default=0.1, ge=0, le=1, description="share of captions replaced by the empty one"
    )
    held_out_fraction: float = Field(default=0.2, gt=0, le=0.5, description="share of each class kept out of training")


class OptimiseSettings(Settings):
    """Optimisation."""

    seed: int = Field(default=0, ge=0, description="seed of every random draw")
    train_batch_size: int = Field(default=8, ge=1, description="images per process and micro-step")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="micro-steps per optimiser step")
    max_train_steps: int = Field(default=1000, ge=1, description="optimiser steps")
    num_train_epochs: int | None = Field(
        default=None, ge=1, description="passes over the images, instead of --max_train_steps"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="learning rate after warm-up")
    scale_lr: bool = Field(default=False, description="multiply the learning rate by the images per optimiser step")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = Field(default="constant", description="course of the learning rate")
    lr_warmup_steps: int = Field(default=0, ge=0, description="optimiser steps of warm-up from zero")
    lr_num_cycles: int = Field(default=1, ge=1, description="restarts of cosine_with_restarts")
    lr_power: float = Field(default=1.0, gt=0, description="exponent of polynomial")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the gradient's mean")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the squared gradient's mean")
    adam_weight_decay: float = Field(default=1e-2, ge=0, description="decoupled weight decay")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="term against division by zero")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients with a larger norm are scaled down to it")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        default=None, description="precision of the passes; none: as the accelerate configuration says"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    dataloader_num_workers: int = Field(
        default=0, ge=0, description="processes that read images; 0: the training process"
    )
    num_threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; none: torch's own choice")

    def contradictions(self) -> list[str]:
        """Return what disagrees about the length of the run and the course of the learning rate."""
        problems = super().contradictions()
        by_epochs = self.num_train_epochs is not None
        if by_epochs and "max_train_steps" in self.model_fields_set:
            problems.append(
                f"--max_train_steps, --num_train_epochs: found {self.max_train_steps} and {self.num_train_epochs}, "
                "expected only one of them."
            )
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            problems.append(
                f"--lr_warmup_steps: found {self.lr_warmup_steps}, but --lr_scheduler constant has no warm-up. "
                "Write --lr_scheduler constant_with_warmup, or --lr_warmup_steps 0."
            )
        elif not by_epochs and self.lr_warmup_steps >= self.max_train_steps:
            problems.append(
                f"--lr_warmup_steps: found {self.lr_warmup_steps}, expected fewer than --max_train_steps "
                f"{self.max_train_steps}. Lower it, or train longer."
            )
        if self.lr_scheduler != "cosine_with_restarts" and self.lr_num_cycles != 1:
            problems.append(
                f"--lr_num_cycles: found {self.lr_num_cycles}, but --lr_scheduler {self.lr_scheduler} has no restarts. "
                "Write --lr_scheduler cosine_with_restarts, or --lr_num_cycles 1."
            )
        if self.lr_scheduler != "polynomial" and self.lr_power != 1:
            problems.append(
                f"--lr_power: found {self.lr_power}, but --lr_scheduler {self.lr_scheduler} has no exponent. "
                "Write --lr_scheduler polynomial, or --lr_power 1."
            )
        return problems


class LossSettings(Settings):
    """Loss."""

    snr_gamma: float | None = Field(
        default=None, gt=0, description="min-SNR weighting's gamma, 5 is usual; none: no weighting"
    )
    noise_offset: float = Field(default=0.0, ge=0, description="strength of offset noise, 0.05 to 0.1 is usual")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        default=None, description="what the denoiser predicts; none: as the base model does"
    )


class OutputSettings(Settings):
    """Output, checkpoints and samples."""

    output_dir: Path | None = Field(default=None, description="folder of the run; none: runs/<concept>-<method>")
    overwrite_output_dir: bool = Field(
        default=False, description="move an earlier run's folder aside (it is never deleted)"
    )
    resume_from_checkpoint: Annotated[str, AfterValidator(_checkpoint_name)] | None = Field(
        default=None, description="latest, or checkpoint-N; none: start anew"
    )
    checkpointing_steps: int = Field(default=500, ge=1, description="optimiser steps between checkpoints")
    checkpoints_total_limit: int | None = Field(
        default=None, ge=2, description="checkpoints kept, the newest; none: all"
    )
    report_to: Literal["none", "tensorboard"] = Field(default="none", description="tracker beside metrics.jsonl")
    logging_steps: int = Field(default=10, ge=1, description="optimiser steps between lines of metrics.jsonl")
    validation_steps: int = Field(default=500, ge=1, description="optimiser steps between sample sheets")
    num_validation_images: int = Field(default=4, ge=1, description="images per caption of a sample sheet")
    validation_prompt: tuple[str, ...] = Field(
        default=(), description="captions of the sample sheets; none: the captions of the concept"
    )
    dry_run: bool = Field(default=False, description="resolve everything, print the plan and stop")

    def contradictions(self) -> list[str]:
        """Return what disagrees about the folder of the run."""
        problems = super().contradictions()
        if self.overwrite_output_dir and self.resume_from_checkpoint is not None:
            problems.append(
                f"--overwrite_output_dir: it moves aside what --resume_from_checkpoint {self.resume_from_checkpoint} "
                "goes on from. Leave out one of them."
            )
        return problems


class AdapterSettings(Settings):
    """Adapter."""

    target: Literal["attention", "attention+conv"] = Field(
        default="attention", description="adapted layers: attention projections, or the convolutions of ResNets too"
    )
    rank: int = Field(default=16, ge=1, description="rank of each update")
    lora_alpha: float | None = Field(
        default=None, gt=0, description="the update is scaled by lora_alpha / rank; none: rank"
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of an adapter's inputs dropped in training")


# Bases stand last to first: pydantic collects fields from the last base onwards, and help and YAML follow it.
class LoopSettings(OutputSettings, OptimiseSettings):
    """Train: what the loop reads, whatever the method."""


class ConceptSettings(LoopSettings, LossSettings, DataSettings, ModelSettings):
    """Fine-tune a base model on a concept."""


class LoraSettings(AdapterSettings, ConceptSettings):
    """Fine-tune low-rank updates of a base model's attention on a concept."""


class WorldSettings(Settings):
    """The drawn world of the embedded base."""

    num_images: int = Field(default=24000, ge=1, description="pictures drawn for training")
    init_from: Path | None = Field(default=None, description="folder of an earlier result to go on from; none: nothing")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="decay of the average of the weights")


class AutoencoderSettings(WorldSettings, LoopSettings):
    """Train an autoencoder on the drawn world, and on pictures of anything."""

    block_out_channels: tuple[int, ...] = Field(
        default=(32, 48, 64), min_length=2, description="channels of each block; f = 2 ** (blocks - 1)"
    )
    kl_weight: float = Field(default=3e-4, ge=0, description="weight of the divergence from the standard normal law")
    anything_share: float = Field(default=0.4, ge=0, le=1, description="share of pictures that are not of the world")


class TextEncoderSettings(WorldSettings, LoopSettings):
    """Train a text encoder to find the drawn picture that its caption describes."""

    vae: Path = Field(description="folder of the trained autoencoder")
    text_width: int = Field(default=128, ge=8, multiple_of=8, description="width of the text encoder")
    text_layers: int = Field(default=3, ge=1, description="layers of the text encoder")


class LatentDiffusionSettings(WorldSettings, LoopSettings, LossSettings):
    """Train a U-Net from nothing, and a text encoder with it, in the latent space of an autoencoder."""

    vae: Path = Field(description="folder of the trained autoencoder")
    text_encoder: Path = Field(description="folder of the text encoder to go on from, with its tokenizer")
    block_out_channels: tuple[int, ...] = Field(
        default=(48, 96, 160), min_length=2, description="channels of each block of the U-Net"
    )
    high_noise_share: float = Field(
        default=0.5, ge=0, le=1, description="share of timesteps drawn from the noisier half of the schedule"
    )
    textured_shape_share: float = Field(
        default=1 / 3, ge=0, le=1, description="share of the pictures that are textured shapes, the hardest to learn"
    )
    text_encoder_lr_scale: float = Field(
        default=0.2, gt=0, description="learning rate of the text encoder, as a factor of the U-Net's"
    )
    train_text_encoder: bool = Field(default=True, description="train the text encoder with the U-Net")
    proportion_empty_prompts: float = Field(default=0.1, ge=0, le=1, description="share of captions left empty")


def to_yaml(settings: Settings) -> str:
    """Return the settings as a YAML file that `--config` reads back to equal settings."""
    values = settings.model_dump(mode="json")
    if values.get("num_train_epochs") is not None:
        values.pop("max_train_steps", None)  # the epochs stand in its place
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class Changes(NamedTuple):
    """Options that differ between a run and its continuation: {name: (value then, value now)}."""

    free: dict[str, tuple[Any, Any]]
    refused: dict[str, tuple[Any, Any]]


def changed_settings(old: Mapping[str, Any], new: Settings) -> Changes:
    """Return the options that differ, those that may (FREE_ON_RESUME, a longer run) apart from those that must not.

    old: the mapping that `to_yaml` wrote when the run was started; an option that it lacks counts as its default, one
    that only it has is refused with None as its value now.
    A run may grow only under a constant learning rate: every other schedule depends on the length.
    """
    now = new.model_dump(mode="json")
    then = {**_plain_defaults(new), **old}
    constant = str(now.get("lr_scheduler")).startswith("constant")
    changes = Changes({}, {})
    for name in [*now, *(name for name in old if name not in now)]:
        before, after = then.get(name), now.get(name)
        if name in now and name in then and before == after:
            continue
        grows = name in LENGTHS and isinstance(before, int) and isinstance(after, int) and after > before
        free = name in FREE_ON_RESUME or (grows and constant)
        (changes.free if free else changes.refused)[name] = (before, after)
    return changes


def _plain_defaults(settings: Settings) -> dict[str, Any]:
    defaults = {n: option.default for n, option in type(settings).model_fields.items() if not option.is_required()}
    return settings.model_copy(update=defaults).model_dump(mode="json", include=set(defaults))


def refuse_changes(settings_file: Path, new: Settings) -> None:
    """Raise OutputError naming every option that must not differ between a run and its continuation.

    settings_file: what `to_yaml` wrote when the run was started; OutputError too where it cannot be read.
    """
    try:
        old = yaml.safe_load(settings_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OutputError(str(settings_file), f"expected the settings of the run to resume, but {error}.") from error
    if not isinstance(old, dict):
        raise OutputError(str(settings_file), f"found {old!r}, expected the settings of the run to resume.")
    problems = [
        f"--{name}: found {now!r}, the run was started with {then!r}."
        + (" It may grow, under a constant --lr_scheduler." if name in LENGTHS else "")
        for name, (then, now) in changed_settings(old, new).refused.items()
    ]
    if problems:
        raise OutputError(str(settings_file), *problems, "Restore these, or start a new run with another --output_dir.")
