"""The options of each method's runs, put together from the groups that methods share.

`finetune/core/cli.py` fills the fields from files and flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from finetune.core.contradictions import Contradiction
from finetune.core.option_groups import (
    AdapterSettings,
    AverageSettings,
    DataSettings,
    ImageSettings,
    LossSettings,
    ModelSettings,
    NoiseSettings,
    OptimiseSettings,
    OutputSettings,
    PlaceholderSettings,
    PriorSettings,
    Settings,
    TextAdapterSettings,
    TextEncoderSettings,
    UNetSettings,
)


# Bases stand last to first: pydantic collects fields from the last base onwards, and help and YAML follow it.
class LoopSettings(OutputSettings, OptimiseSettings):
    """Train: what the loop reads, whatever the method."""


class ConceptSettings(LoopSettings, LossSettings, DataSettings, ModelSettings):
    """Fine-tune a base model on a concept."""


class PromptedSettings(ConceptSettings):
    """Words of the prompts."""

    identifier_report: bool = Field(
        default=False, description="say before training what the base already makes of the rare words of the prompts"
    )


class FullUnetSettings(AverageSettings, TextEncoderSettings, PromptedSettings):
    """Fine-tune the whole U-Net of a base model on a concept."""


class TextualInversionSettings(PlaceholderSettings, ConceptSettings):
    """Learn a new word for a concept; the base model stays as it is."""

    def contradictions(self) -> list[Contradiction]:
        """Return words that would be given twice."""
        problems = super().contradictions()
        if self.instance_prompt:
            text = "--instance_prompt: the prompts are templates around --placeholder_token. Leave it out."
            problems.append(self.idle("instance_prompt", "placeholder_token", text))
        return problems


class DreamboothSettings(PriorSettings, AverageSettings, TextEncoderSettings, PromptedSettings):
    """Bind an identifier to a concept by training the whole U-Net, and keep what the class meant."""


class LoraSettings(TextAdapterSettings, AdapterSettings, PromptedSettings):
    """Fine-tune low-rank updates of a base model on a concept."""


class LoraDreamboothSettings(PriorSettings, TextAdapterSettings, AdapterSettings, PromptedSettings):
    """Bind an identifier to a concept by low-rank updates, and keep what the class meant."""


class PivotalTuningSettings(PriorSettings, PlaceholderSettings, AdapterSettings, ConceptSettings):
    """Learn a new word for a concept first, then low-rank updates of the U-Net around it."""

    pivot: float = Field(default=0.5, gt=0, lt=1, description="share of the steps in which the new word is learnt")
    embedding_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the new word; none: --learning_rate"
    )

    def contradictions(self) -> list[Contradiction]:
        """Return words that would be given twice."""
        problems = super().contradictions()
        if self.instance_prompt:
            text = "--instance_prompt: the prompts are templates around --placeholder_token. Leave it out."
            problems.append(self.idle("instance_prompt", "placeholder_token", text))
        return problems


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


class TextTowerSettings(WorldSettings, LoopSettings):
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


class DdpmSettings(AverageSettings, NoiseSettings, UNetSettings, LoopSettings, ImageSettings):
    """Train a diffusion model of pixels from nothing."""

    resolution: int | None = Field(
        default=None, ge=8, description="side of the images in pixels; none: 64, or that of --data_format"
    )
    data_format: Literal["images", "mnist", "cifar10"] = Field(
        default="images", description="what --train_data_dir holds: pictures, or the files of MNIST or CIFAR-10"
    )
    use_ema: bool = Field(default=True, description="keep a moving average of the weights, and export it")

    def contradictions(self) -> list[Contradiction]:
        """Return options that a format or a model without labels has no use for."""
        problems = super().contradictions()
        if not self.class_conditional and self.validation_prompt:
            text = "--validation_prompt: the model is told no label. Write --class_conditional too."
            problems.append(self.idle("validation_prompt", "class_conditional", text))
        if self.aspect_buckets:
            text = "--aspect_buckets: a model of pixels learns squares of one size. Leave it out."
            problems.append(Contradiction(text, ("aspect_buckets",)))
        if self.data_format != "images":
            if self.train_data_dir is None:
                text = f"--data_format {self.data_format}: expected --train_data_dir, the folder of its files."
                problems.append(Contradiction(text, ("data_format", "train_data_dir")))
            unused = {"um_per_px", "px_per_voxel", "center_crop"}
            unused |= {"held_out_fraction", "split_by", "dtd_split"}
            unused |= {"px_per_voxel", "aspect_buckets", "split_by", "dtd_split"}
            unused |= {"caption_column", "default_caption", "skip_bad"}
            problems += [
                self.idle(
                    name,
                    "data_format",
                    f"--{name}: pictures of --data_format {self.data_format} are taken whole, as they are. "
                    "Leave it out.",
                )
                for name in sorted(self.changed() & unused)
            ]
        if self.data_format == "mnist" and self.random_flip:
            text = "--random_flip: a mirrored digit is none. Write --no-random_flip."
            problems.append(self.idle("random_flip", "data_format", text))
        # the presets of --model_size give up levels for a side that cannot be halved so often, down to two of them
        levels = max(2, len(self.block_out_channels))
        multiple = 2 ** (levels - 1)
        if self.resolution is not None and self.resolution % multiple:
            below = self.resolution - self.resolution % multiple
            near = " or ".join(str(side) for side in (below, below + multiple) if side)
            text = (
                f"--resolution: found {self.resolution}, expected a multiple of {multiple}, as {levels} levels halve "
                f"it {levels - 1} times: {near}."
            )
            problems.append(Contradiction(text, ("resolution", "block_out_channels")))
        return problems
