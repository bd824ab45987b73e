"""Models of pixels built from nothing: the U-Net of DDPM at the sizes that people use, and its noise schedule.

A level halves the side of the one before. Self-attention stands where the side is 16 px, and in the middle (Ho et al.
2020, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from data.dataset import ConceptDataset
from data.errors import SettingsError
from finetune.core.scratch import seeded
from finetune.core.settings import DdpmSettings
from pipelines.diffusion.schedules import alphas_cumprod, betas
from pipelines.pixel_model import PixelModel

ModelSize = Literal["small", "medium", "ddpm"]
# by the largest side of the pictures: 32 and 256 as Ho et al. 2020, 64 and 128 as Dhariwal and Nichol 2021, table 11
_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
}
_WIDTHS = {"medium": 64, "ddpm": 128}
_LAYERS = {"small": 1, "medium": 2, "ddpm": 2}
# for a CPU: the levels of large maps are the dear ones
_SMALL: dict[int, tuple[int, ...]] = {
    32: (32, 64, 64, 96),
    64: (32, 48, 64, 96),
    128: (16, 32, 48, 64, 96),
    256: (16, 16, 32, 48, 64, 96),
}
_ATTENDING_PX = range(12, 24)  # the level that is nearest to 16 px: one of them at most
_CHANNELS_PER_HEAD = 32
_LARGEST_NUM_GROUPS = 32
# of diffusers' own schedules, in float32, from the exact one
_SAME_SCHEDULE = 1e-6


@dataclass(frozen=True)
class UNetShape:
    """Channels of each level, from the picture down, and ResNet blocks in each of them."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int


def unet_shape(
    size: ModelSize, size_px: int, block_out_channels: Sequence[int] = (), layers_per_block: int | None = None
) -> UNetShape:
    """Return the U-Net of a preset for pictures of size_px, with what is given in the place of its own.

    A preset has as many levels as the side can be halved, at most those of its size. Raises SettingsError for a side
    that cannot be halved so often, or channels that cannot be normalised in groups.
    """
    channels = tuple(block_out_channels) or _channels(size, size_px)
    problems = []
    divisor = 2 ** (len(channels) - 1)
    if size_px % divisor:
        problems.append(
            f"--resolution: found {size_px}, expected a multiple of {divisor}, as {len(channels)} levels halve it "
            f"{len(channels) - 1} times. Give fewer --block_out_channels, or another --resolution."
        )
    if any(number % 8 for number in channels):
        problems.append(f"--block_out_channels: found {' '.join(map(str, channels))}, expected multiples of 8.")
    if problems:
        raise SettingsError("U-Net", *problems)
    return UNetShape(channels, layers_per_block or _LAYERS[size])


def _channels(size: ModelSize, size_px: int) -> tuple[int, ...]:
    """Return a preset's channels, without the last levels where the side cannot be halved so often."""
    side = min((side for side in _MULTIPLIERS if size_px <= side), default=max(_MULTIPLIERS))
    channels = _SMALL[side] if size == "small" else tuple(_WIDTHS[size] * factor for factor in _MULTIPLIERS[side])
    while len(channels) > 2 and size_px % 2 ** (len(channels) - 1):
        channels = channels[:-1]
    return channels


def unet(
    shape: UNetShape,
    size_px: int,
    *,
    channels: int,
    learned_variance: bool,
    num_classes: int,
    dropout: float,
    seed: int,
) -> UNet2DModel:
    """Return a new U-Net: GroupNorm, SiLU, sinusoidal timesteps, self-attention at 16 px and in the middle.

    learned_variance: twice as many channels come out as go in. num_classes: 0 for a model without; else one more
    embedding than classes, the last one for "no label".
    """
    attends = [size_px // 2**level in _ATTENDING_PX for level in range(len(shape.block_out_channels))]
    with seeded(seed, "unet"):
        return UNet2DModel(
            sample_size=size_px,
            in_channels=channels,
            out_channels=2 * channels if learned_variance else channels,
            block_out_channels=shape.block_out_channels,
            layers_per_block=shape.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            attention_head_dim=_head_dim(shape.block_out_channels),
            norm_num_groups=_num_groups(shape.block_out_channels),
            dropout=dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )


def _num_groups(channels: Sequence[int]) -> int:
    """Return the largest number of groups, up to 32, that divides the channels of every level with 4 or more in each.

    A level of the way up reads the sum of two neighbours' channels, which is divided too.
    """
    groups = (_LARGEST_NUM_GROUPS, 16, 8, 4, 2)
    return next(n for n in groups if all(width % n == 0 and width // n >= 4 for width in channels))


def _head_dim(channels: Sequence[int]) -> int:
    """Return the channels of an attention head: 32, or fewer where 32 does not divide the channels of every level."""
    return next(n for n in (_CHANNELS_PER_HEAD, 16, 8) if all(width % n == 0 for width in channels))


def scheduler(model: PixelModel) -> DDPMScheduler:
    """Return diffusers' scheduler of a model: its noise schedule by name where diffusers has it, else as betas."""
    common = {
        "num_train_timesteps": model.num_train_timesteps,
        "prediction_type": model.prediction_type,
        "variance_type": "learned_range" if model.learned_variance else "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "trailing",
    }
    named = {"linear": {"beta_schedule": "linear"}, "cosine": {"beta_schedule": "squaredcos_cap_v2"}}
    if model.schedule in named:
        found = DDPMScheduler(**common, **named[model.schedule])
        if _difference(found, model.alphas_cumprod) < _SAME_SCHEDULE:
            return found
    return DDPMScheduler(**common, trained_betas=betas(model.alphas_cumprod).tolist())


def _difference(candidate: DDPMScheduler, exact: Tensor) -> float:
    return float((candidate.alphas_cumprod.double() - exact).abs().max())


def new_model(
    settings: DdpmSettings, dataset: ConceptDataset, channels: int, class_labels: tuple[str, ...], device: torch.device
) -> PixelModel:
    """Return the model of pixels that the settings describe, for the pictures of a dataset, with a new U-Net."""
    size_px = dataset.resolution
    network = unet(
        unet_shape(settings.model_size, size_px, settings.block_out_channels, settings.layers_per_block),
        size_px,
        channels=channels,
        learned_variance=settings.learned_variance,
        num_classes=len(class_labels),
        dropout=settings.dropout,
        seed=settings.seed,
    )
    return PixelModel(
        unet=network.to(device),
        alphas_cumprod=alphas_cumprod(settings.noise_schedule, settings.num_train_timesteps),
        prediction_type=settings.prediction_type,
        learned_variance=settings.learned_variance,
        channels=channels,
        size_px=size_px,
        class_labels=class_labels,
        normalized=settings.normalize,
        grey_values=dataset.grey_values,
        um_per_px=dataset.um_per_px,
        schedule=settings.noise_schedule,
    )
