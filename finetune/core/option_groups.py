"""The options of runs in groups that methods share: one definition feeds the command line, the YAML file and the help.

A field's name is the flag's name, in the spelling of diffusers' scripts; type, default, bounds and description stand
beside it. `finetune/core/settings.py` puts the groups of each method together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from data.dtd import NUM_SPLITS
from data.environment import DATA_VARIABLE
from data.image_splits import SplitBy
from data.texts import says_nothing
from finetune.core import optimizer_options
from finetune.core.contradictions import DEFAULT, TYPED, Contradiction, ContradictoryError, Origin
from finetune.core.optimizer_options import OptimizerName

# Spellings of other scripts' flags, and switches that stand for one value (DreamBooth's --offset_noise is 0.1 there).
ALIASES = {
    "validation_prompts": "validation_prompt",
    "logger": "report_to",
    "num_epochs": "num_train_epochs",
    "instance_data_dir": "train_data_dir",
    "lora_rank": "rank",
    "ddpm_num_steps": "num_train_timesteps",
    "ddpm_beta_schedule": "noise_schedule",
    "ema_max_decay": "ema_decay",
}
SWITCHES = {"offset_noise": ("noise_offset", "0.1"), "use_8bit_adam": ("optimizer", "adamw_8bit")}
LENGTHS = ("max_train_steps", "num_train_epochs")  # one of the two says how long a run is
PART_RATES = ("text_encoder_lr", "embedding_lr")  # of parts that may have a learning rate of their own


def fitting_warmup(num_steps: int) -> int:
    """Return the warm-up of a run that is too short for that of its recipe: a tenth of its steps."""
    return num_steps // 10


def _concept_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):  # it becomes part of a folder's name
        raise ValueError("expected up to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
    return name


def _checkpoint_name(name: str) -> str:
    if not re.fullmatch(r"latest|auto|checkpoint-[0-9]+", name):
        raise ValueError("expected latest, auto, or checkpoint-N as a folder of --output_dir is called")
    return name


def _tracker_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return () if names == ("none",) else names


def _one_or_three(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("expected 1 (grey) or 3 (colours)")
    return channels


class Settings(BaseModel):
    """What every group of options shares: nothing unknown, nothing infinite, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where the values come from, and what is to be told of them."""
        return self._origin

    def coming_from(self, origin: Origin) -> Self:
        """Return equal settings that know where their values come from."""
        copied = self.model_copy()
        copied._origin = origin
        return copied

    def strength(self, name: str) -> int:
        """Return how strong a value is, as in `contradictions`; in settings made by hand all that is set is typed."""
        if self._origin.ranks is not None:
            return self._origin.ranks.get(name, DEFAULT)
        return TYPED if name in self.model_fields_set else DEFAULT

    def giving_way(self, name: str, value: Any, why: str) -> Self:
        """Return the settings with another value of an option that the recipe has, and a line of the plan about it."""
        found = dict(self)[name]
        line = f"gives way   --{name} {found} is {'none' if value is None else value} here: {why}"
        return self.model_copy(update={name: value}).coming_from(self._origin.telling(line))

    def contradictions(self) -> list[Contradiction]:
        """Return all options that cannot stand together."""
        return []

    def idle(self, name: str, beside: str, text: str) -> Contradiction:
        """Return that an option does nothing as another one stands; it gives way to it, and to nothing else."""
        return Contradiction(text, (name, beside), {name: type(self).model_fields[name].default})

    def changed(self) -> set[str]:
        """Return the names of the options that are not at their defaults."""
        return {name for name, value in self if value != type(self).model_fields[name].default}

    @model_validator(mode="after")
    def _agrees(self) -> Settings:
        if found := self.contradictions():
            raise ContradictoryError(found)
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


class ImageSettings(Settings):
    """Images."""

    concept: Annotated[str, AfterValidator(_concept_name)] | None = Field(
        default=None, description="which images, under which words, such as sf_dry or dtd_zigzagged"
    )
    train_data_dir: Path | None = Field(
        default=None, description="folder of images with captions, instead of --concept"
    )
    dataset_name: str | None = Field(
        default=None, description="Hugging Face dataset, by name or folder, instead of --concept"
    )
    dataset_config_name: str | None = Field(default=None, description="configuration of --dataset_name")
    image_column: str = Field(default="image", description="column of images of --dataset_name")
    caption_column: str = Field(
        default="text", description="column of captions of --dataset_name, or key of captions in metadata.jsonl"
    )
    default_caption: str | None = Field(
        default=None, description="caption of images that have none; none: they are refused where others have one"
    )
    skip_bad: bool = Field(
        default=False, description="leave out images that cannot be used, listed in skipped.txt, instead of stopping"
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
    px_per_voxel: float | None = Field(
        default=None, gt=0, description="pixels per voxel, for volumes of unknown voxel size; none: one"
    )
    aspect_buckets: bool = Field(
        default=False,
        description="train on images of several proportions, each batch of one size, instead of on squares",
    )
    images_per_class: int | None = Field(default=None, ge=1, description="images taken from each class; none: all")
    center_crop: bool = Field(default=False, description="crop at the centre instead of at a drawn place")
    random_flip: bool = Field(default=False, description="draw flips among the symmetries that the plane allows")
    held_out_fraction: float = Field(default=0.2, gt=0, le=0.5, description="share of each class kept out of training")
    split_by: SplitBy = Field(
        default="group",
        description="what is kept out as a whole: a group of metadata.jsonl or --group_column (each image where there "
        "is none), the folder an image lies in, or its label",
    )
    group_column: str | None = Field(
        default=None, description="column of --dataset_name that is equal in rows of one group, such as a specimen"
    )
    dtd_split: int = Field(default=1, ge=1, le=NUM_SPLITS, description="which of DTD's official splits")
    allow_outside_files: bool = Field(
        default=False, description="take files that links, or rows of a dataset, lead to outside of the data's folder"
    )

    @property
    def subject(self) -> str:
        """The short name of the images, for the run's folder."""
        if self.concept is not None:
            return self.concept
        if self.train_data_dir is not None:
            return self.train_data_dir.resolve().name
        return str(self.dataset_name).rstrip("/").rpartition("/")[2]

    def contradictions(self) -> list[Contradiction]:
        """Return what disagrees about where the images come from."""
        problems = super().contradictions()
        given = tuple(name for name in ("concept", "train_data_dir", "dataset_name") if name in self.changed())
        if not given:
            text = "--concept: missing (which images, such as sf_dry). Or give --train_data_dir or --dataset_name."
            problems.append(Contradiction(text, ("concept",)))
        elif len(given) > 1:
            text = f"{', '.join(f'--{name}' for name in given)}: expected only one of them."
            problems.append(Contradiction(text, given, dict.fromkeys(given)))
        if self.dataset_name is None:
            columns = {"dataset_config_name", "image_column", "group_column"}
            for name in sorted(self.changed() & columns):
                text = f"--{name}: belongs to --dataset_name, which is not given. Leave it out."
                problems.append(self.idle(name, "dataset_name", text))
            if self.train_data_dir is None and "caption_column" in self.changed():
                text = (
                    "--caption_column: belongs to --dataset_name or --train_data_dir; neither is given. Leave it out."
                )
                problems.append(self.idle("caption_column", "dataset_name", text))
        if self.default_caption is not None and says_nothing(self.default_caption):
            text = "--default_caption: found an empty caption, expected words."
            problems.append(Contradiction(text, ("default_caption",)))
        if self.um_per_px is not None and self.px_per_voxel is not None:
            scales = ("um_per_px", "px_per_voxel")
            text = "--um_per_px, --px_per_voxel: expected only one of them."
            problems.append(Contradiction(text, scales, dict.fromkeys(scales)))
        if self.group_column is not None and self.split_by != "group":
            text = f"--group_column: --split_by {self.split_by} leaves it unused. Leave out one of them."
            ways = {"group_column": None, "split_by": "group"}
            problems.append(Contradiction(text, ("group_column", "split_by"), ways))
        return problems


class DataSettings(ImageSettings):
    """Captions."""

    instance_prompt: tuple[str, ...] = Field(
        default=(), description="prompt in place of the captions: one, or one for each caption; none: the captions"
    )
    proportion_empty_prompts: float = Field(
        default=0.1, ge=0, le=1, description="share of captions replaced by the empty one"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return prompts that say nothing."""
        problems = super().contradictions()
        if any(says_nothing(prompt) for prompt in self.instance_prompt):
            text = "--instance_prompt: found an empty prompt, expected words."
            problems.append(Contradiction(text, ("instance_prompt",)))
        return problems


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
    optimizer: OptimizerName = Field(
        default="adamw", description="optimiser; prodigy and schedule_free need the extra optimizers, adamw_8bit gpu"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients with a larger norm are scaled down to it")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        default=None, description="precision of the passes; none: as the accelerate configuration says"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    enable_xformers_memory_efficient_attention: bool = Field(
        default=False, description="xformers' attention instead of torch's; needs a GPU and the extra gpu"
    )
    allow_tf32: bool = Field(default=False, description="TensorFloat-32 on NVIDIA GPUs: faster, less exact")
    dataloader_num_workers: int = Field(
        default=0, ge=0, description="processes that read images; 0: the training process"
    )
    ddp_timeout_minutes: float = Field(
        default=30.0, gt=0, description="how long one of several processes waits for the others before the run ends"
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each process; none: its share of all cores"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return what disagrees about the length of the run, the optimizer and the course of the learning rate."""
        problems = super().contradictions()
        problems += self._length_contradictions()
        problems += optimizer_options.contradictions(
            self.optimizer,
            learning_rate=self.learning_rate,
            other_rates={name: value for name, value in self if name in PART_RATES and value is not None},
            scale_lr=self.scale_lr,
            lr_scheduler=self.lr_scheduler,
            adam_beta1=self.adam_beta1,
            changed=self.changed(),
        )
        if self.lr_scheduler != "cosine_with_restarts" and self.lr_num_cycles != 1:
            text = (
                f"--lr_num_cycles: found {self.lr_num_cycles}, but --lr_scheduler {self.lr_scheduler} has no restarts. "
                "Write --lr_scheduler cosine_with_restarts, or --lr_num_cycles 1."
            )
            ways = {"lr_num_cycles": 1, "lr_scheduler": "cosine_with_restarts"}
            problems.append(Contradiction(text, ("lr_num_cycles", "lr_scheduler"), ways))
        if self.lr_scheduler != "polynomial" and self.lr_power != 1:
            text = (
                f"--lr_power: found {self.lr_power}, but --lr_scheduler {self.lr_scheduler} has no exponent. "
                "Write --lr_scheduler polynomial, or --lr_power 1."
            )
            ways = {"lr_power": 1.0, "lr_scheduler": "polynomial"}
            problems.append(Contradiction(text, ("lr_power", "lr_scheduler"), ways))
        return problems

    def _length_contradictions(self) -> list[Contradiction]:
        """Return what disagrees about the length of the run and of its warm-up."""
        problems = []
        by_epochs = self.num_train_epochs is not None
        if by_epochs and "max_train_steps" in self.model_fields_set:
            text = (
                f"--max_train_steps, --num_train_epochs: found {self.max_train_steps} and {self.num_train_epochs}, "
                "expected only one of them."
            )
            problems.append(Contradiction(text, LENGTHS))
        if self.lr_scheduler == "constant" and self.lr_warmup_steps and self.optimizer != "schedule_free":
            text = (
                f"--lr_warmup_steps: found {self.lr_warmup_steps}, but --lr_scheduler constant has no warm-up. "
                "Write --lr_scheduler constant_with_warmup, or --lr_warmup_steps 0."
            )
            ways = {"lr_warmup_steps": 0, "lr_scheduler": "constant_with_warmup"}
            problems.append(Contradiction(text, ("lr_warmup_steps", "lr_scheduler"), ways))
        elif not by_epochs and self.lr_warmup_steps >= self.max_train_steps:
            text = (
                f"--lr_warmup_steps: found {self.lr_warmup_steps}, expected fewer than --max_train_steps "
                f"{self.max_train_steps}. Lower it, or train longer."
            )
            ways = {"lr_warmup_steps": fitting_warmup(self.max_train_steps)}
            problems.append(Contradiction(text, ("lr_warmup_steps", "max_train_steps"), ways))
        return problems


class LossSettings(Settings):
    """Loss."""

    input_perturbation: float = Field(
        default=0.0, ge=0, description="strength of noise added to the input's noise alone, 0.1 is usual"
    )
    zero_terminal_snr: bool = Field(
        default=False, description="rescale the schedule so that its last step is pure noise; not with epsilon"
    )

    snr_gamma: float | None = Field(
        default=None, gt=0, description="min-SNR weighting's gamma, 5 is usual; none: no weighting"
    )
    noise_offset: float = Field(default=0.0, ge=0, description="strength of offset noise, 0.05 to 0.1 is usual")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        default=None, description="what the denoiser predicts; none: as the base model does"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return a schedule that the prediction type makes no sense under."""
        problems = super().contradictions()
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            text = (
                "--zero_terminal_snr: the noise of pure noise says nothing of the image. "
                "Write --prediction_type v_prediction."
            )
            ways = {"zero_terminal_snr": False, "prediction_type": "v_prediction"}
            problems.append(Contradiction(text, ("zero_terminal_snr", "prediction_type"), ways))
        return problems


class OutputSettings(Settings):
    """Output, checkpoints and samples."""

    output_dir: Path | None = Field(default=None, description="folder of the run; none: runs/<concept>-<method>")
    overwrite_output_dir: bool = Field(
        default=False, description="move an earlier run's folder aside (it is never deleted)"
    )
    resume_from_checkpoint: Annotated[str, AfterValidator(_checkpoint_name)] | None = Field(
        default=None,
        description="latest, or checkpoint-N; auto: latest, or anew where there is no checkpoint; none: start anew",
    )
    checkpointing_steps: int = Field(default=500, ge=1, description="optimiser steps between checkpoints")
    checkpoints_total_limit: int | None = Field(
        default=None, ge=2, description="checkpoints kept, the newest; none: all"
    )
    on_save_error: Literal["stop", "warn"] = Field(
        default="stop",
        description="where the disk does not take a checkpoint: end the run, or warn and go on up to three in a row",
    )
    report_to: Annotated[tuple[str, ...], AfterValidator(_tracker_names)] = Field(
        default=(),
        description="trackers beside metrics.jsonl, by accelerate's names: tensorboard, wandb, trackio, mlflow and "
        "others; all: those that are installed",
    )
    tracker_project_name: Annotated[str, AfterValidator(_concept_name)] = Field(
        default="filrouge", description="project that the trackers show the run in"
    )
    logging_dir: Path = Field(
        default=Path("logs"), description="folder of the trackers' files, below that of the run unless it is absolute"
    )
    logging_steps: int = Field(default=10, ge=1, description="optimiser steps between lines of metrics.jsonl")
    validation_steps: int = Field(
        default=500,
        ge=1,
        description="optimiser steps between measurements of held-out images, and between sample sheets",
    )
    num_validation_images: int = Field(
        default=0, ge=0, description="images per prompt of a sample sheet; 0: no sheets, or 1 with --validation_prompt"
    )
    validation_prompt: tuple[str, ...] = Field(
        default=(), description="prompts of the sample sheets; none: the first captions of the images"
    )
    push_to_hub: bool = Field(default=False, description="upload the result to the Hugging Face Hub at the end")
    hub_model_id: str | None = Field(
        default=None, min_length=1, description="repository, name or owner/name; none: the name of the run's folder"
    )
    hub_private_repo: bool = Field(default=False, description="a repository that only its owner sees")
    # excluded: it is written nowhere
    hub_token: SecretStr | None = Field(
        default=None, exclude=True, description="token that may write; none: that of `hf auth login` or HF_TOKEN"
    )
    dry_run: bool = Field(default=False, description="resolve everything, print the plan and stop")

    @property
    def draws_sheets(self) -> bool:
        """Whether sample sheets are drawn."""
        return bool(self.num_validation_images or self.validation_prompt)

    def contradictions(self) -> list[Contradiction]:
        """Return what disagrees about the folder of the run, and a token that others would see."""
        problems = super().contradictions()
        if self.overwrite_output_dir and self.resume_from_checkpoint is not None:
            text = (
                f"--overwrite_output_dir: it moves aside what --resume_from_checkpoint {self.resume_from_checkpoint} "
                "goes on from. Leave out one of them."
            )
            ways = {"overwrite_output_dir": False, "resume_from_checkpoint": None}
            problems.append(Contradiction(text, ("overwrite_output_dir", "resume_from_checkpoint"), ways))
        if not self.push_to_hub:
            problems += [
                self.idle(name, "push_to_hub", f"--{name}: nothing is uploaded. Write --push_to_hub too.")
                for name in sorted(self.changed() & {"hub_model_id", "hub_private_repo", "hub_token"})
            ]
        if self.hub_token is not None and self.report_to:
            text = "--hub_token: trackers keep the command line. Leave it out, and run `hf auth login` or set HF_TOKEN."
            problems.append(Contradiction(text, ("hub_token", "report_to"), {"report_to": ()}))
        return problems


class AdapterSettings(Settings):
    """Adapter."""

    target: Literal["attention", "attention+conv", "all"] = Field(
        default="attention",
        description="adapted layers: attention projections, the convolutions of ResNets too, or every layer",
    )
    rank: int = Field(default=16, ge=1, description="rank of each update")
    lora_alpha: float | None = Field(
        default=None, gt=0, description="the update is scaled by lora_alpha / rank; none: rank"
    )
    conv_rank: int | None = Field(default=None, ge=1, description="rank of the convolutions' updates; none: rank")
    conv_alpha: float | None = Field(
        default=None, gt=0, description="alpha of the convolutions' updates; none: their rank's share of lora_alpha"
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of an adapter's inputs dropped in training")
    use_dora: bool = Field(default=False, description="learn length and direction of the weights apart (DoRA)")
    load_in_4bit: bool = Field(
        default=False, description="keep the matrices of the frozen U-Net in 4 bits (nf4); needs the extra gpu"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return options of convolutions that no convolution is adapted by."""
        problems = super().contradictions()
        if self.target == "attention":
            problems += [
                Contradiction(
                    f"--{name}: found {value}, but --target attention adapts no convolution. "
                    "Write --target attention+conv.",
                    (name, "target"),
                    {name: None, "target": "attention+conv"},
                )
                for name, value in (("conv_rank", self.conv_rank), ("conv_alpha", self.conv_alpha))
                if value is not None
            ]
        return problems


class TextEncoderSettings(Settings):
    """Text encoder."""

    train_text_encoder: bool = Field(default=False, description="train the text encoder with the U-Net")
    text_encoder_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the text encoder; none: --learning_rate"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return options of a text encoder that is not trained."""
        problems = super().contradictions()
        if not self.train_text_encoder and self.text_encoder_lr is not None:
            text = "--text_encoder_lr: the text encoder is not trained. Write --train_text_encoder too."
            problems.append(self.idle("text_encoder_lr", "train_text_encoder", text))
        return problems


class TextAdapterSettings(TextEncoderSettings):
    """Adapter of the text encoder."""

    text_encoder_rank: int | None = Field(
        default=None, ge=1, description="rank of the text encoder's updates; none: --rank"
    )
    text_encoder_alpha: float | None = Field(
        default=None,
        gt=0,
        description="alpha of the text encoder's updates; none: --text_encoder_rank, or without it --lora_alpha",
    )

    def contradictions(self) -> list[Contradiction]:
        """Return options of an adapter that is not there."""
        problems = super().contradictions()
        if not self.train_text_encoder:
            problems += [
                self.idle(
                    name,
                    "train_text_encoder",
                    f"--{name}: the text encoder is not trained. Write --train_text_encoder too.",
                )
                for name in sorted(self.changed() & {"text_encoder_rank", "text_encoder_alpha"})
            ]
        return problems


class AverageSettings(Settings):
    """Average of the weights."""

    use_ema: bool = Field(default=False, description="keep a moving average of the weights, and export it")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="decay of that average")

    def contradictions(self) -> list[Contradiction]:
        """Return a decay of no average."""
        problems = super().contradictions()
        if not self.use_ema and "ema_decay" in self.changed():
            problems.append(self.idle("ema_decay", "use_ema", "--ema_decay: no average is kept. Write --use_ema too."))
        return problems


class PriorSettings(Settings):
    """Prior preservation."""

    with_prior_preservation: bool = Field(
        default=False, description="train on images of the class too, drawn by the base, so that it is not forgotten"
    )
    class_prompt: str | None = Field(
        default=None, min_length=1, description='prompt of the class; none: "a" and the class noun'
    )
    num_class_images: int = Field(default=100, ge=1, description="images of the class")
    prior_loss_weight: float = Field(default=1.0, ge=0, description="weight of the loss on images of the class")
    class_data_dir: Path | None = Field(
        default=None, description="folder in which images of the class are kept; none: the cache"
    )
    sample_batch_size: int = Field(default=16, ge=1, description="images of the class drawn together")

    def contradictions(self) -> list[Contradiction]:
        """Return options of a prior that is not preserved."""
        problems = super().contradictions()
        options = {"class_prompt", "num_class_images", "prior_loss_weight", "class_data_dir", "sample_batch_size"}
        if not self.with_prior_preservation:
            problems += [
                self.idle(
                    name,
                    "with_prior_preservation",
                    f"--{name}: no prior is preserved. Write --with_prior_preservation too.",
                )
                for name in sorted(self.changed() & options)
            ]
        elif "aspect_buckets" in self.changed():
            text = (
                "--aspect_buckets: the images of the class are squares, and stand in one batch with the others. Leave "
                "it out, or leave out --with_prior_preservation."
            )
            ways = {"aspect_buckets": False, "with_prior_preservation": False}
            problems.append(Contradiction(text, ("aspect_buckets", "with_prior_preservation"), ways))
        return problems


class PlaceholderSettings(Settings):
    """Placeholder."""

    placeholder_token: str | None = Field(
        default=None, description="new word to be learnt, such as <dry-slice>; none: the concept's name in brackets"
    )
    initializer_token: str | None = Field(default=None, description="known word to start from; none: the class noun")
    num_vectors: int = Field(default=1, ge=1, le=32, description="vectors of the new word")
    learnable_property: Literal["object", "style"] = Field(
        default="object", description="prompt templates: of a thing that is shown, or of a look"
    )


class UNetSettings(Settings):
    """U-Net."""

    model_size: Literal["small", "medium", "ddpm"] = Field(
        default="small", description="U-Net preset for the --resolution: for a CPU, of 64, or of 128 channels at first"
    )
    block_out_channels: tuple[int, ...] = Field(
        default=(), description="channels of each level, which halve the side; none: those of --model_size"
    )
    layers_per_block: int | None = Field(
        default=None, ge=1, description="ResNet blocks of each level; none: those of --model_size"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the features dropped in training")
    channels: Annotated[int, AfterValidator(_one_or_three)] | None = Field(
        default=None, description="channels of the pictures, 1 or 3; none: 1 for slices and digits, else 3"
    )
    normalize: bool = Field(
        default=True, description="pixels in [-1, 1]; without it they stay in [0, 1]; diffusers draws those pale"
    )
    class_conditional: bool = Field(default=False, description="tell the model the caption of each picture, as a label")
    proportion_empty_labels: float = Field(
        default=0.1, ge=0, le=1, description="share of labels left out, which guidance needs"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return channels without a level to go down to, and labels that are not told."""
        problems = super().contradictions()
        if len(self.block_out_channels) == 1 or any(width < 1 for width in self.block_out_channels):
            text = (
                f"--block_out_channels: found {' '.join(map(str, self.block_out_channels))}, expected two or more "
                "positive numbers."
            )
            problems.append(Contradiction(text, ("block_out_channels",)))
        if not self.class_conditional and "proportion_empty_labels" in self.changed():
            text = "--proportion_empty_labels: no label is told. Write --class_conditional too."
            problems.append(self.idle("proportion_empty_labels", "class_conditional", text))
        return problems


class NoiseSettings(Settings):
    """Noise and loss."""

    noise_schedule: Literal["linear", "cosine", "sigmoid"] = Field(
        default="linear", description="how fast the noise grows over the timesteps"
    )
    num_train_timesteps: int = Field(default=1000, ge=2, description="timesteps from the picture to pure noise")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = Field(
        default="epsilon", description="what the U-Net predicts: the noise, v, or the picture"
    )
    learned_variance: bool = Field(
        default=False, description="predict the variance of each step too; needs --loss hybrid or vlb"
    )
    loss: Literal["simple", "vlb", "hybrid"] = Field(
        default="simple",
        description="squared error of the prediction, the variational bound, or the first plus 0.001 of the second, "
        "which then trains the variance alone",
    )
    snr_gamma: float | None = Field(
        default=None, gt=0, description="min-SNR weighting's gamma, 5 is usual; none: no weighting"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return a variance that nothing trains, and weights on a loss that has its own."""
        problems = super().contradictions()
        names = ("learned_variance", "loss")
        if self.learned_variance and self.loss == "simple":
            text = "--learned_variance: --loss simple does not train it. Write --loss hybrid."
            problems.append(Contradiction(text, names, {"learned_variance": False, "loss": "hybrid"}))
        if self.loss == "hybrid" and not self.learned_variance:
            text = "--loss: hybrid adds the bound to train the variance. Write --learned_variance too."
            problems.append(Contradiction(text, names, {"learned_variance": True, "loss": "simple"}))
        if self.loss == "vlb" and self.snr_gamma is not None:
            text = "--snr_gamma: the bound has weights of its own. Leave it out, or write --loss simple."
            problems.append(Contradiction(text, ("snr_gamma", "loss"), {"snr_gamma": None, "loss": "simple"}))
        return problems
