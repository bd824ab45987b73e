"""Small models built from nothing, in the architectures of Stable Diffusion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, ModelMixin, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.errors import SettingsError
from data.randomness import derive
from data.synthetic.world import SIZE_PX
from pipelines.components import Components, load_components
from pipelines.finite import module_problems
from pipelines.spaces import LatentSpace

LATENT_CHANNELS = 4
M = TypeVar("M", bound=nn.Module)
# far apart from the start: with the usual 0.02, words are told apart late (measured, docs/design.md)
TOKEN_SD, PLACE_SD = 0.5, 0.1
CHANNELS_PER_HEAD = 32


def autoencoder(block_out_channels: Sequence[int], seed: int, init_from: Path | None = None) -> AutoencoderKL:
    """Return an AutoencoderKL that halves the size between blocks: f = 2 ** (blocks - 1), 4 latent channels.

    init_from: a folder whose weights to start from instead.
    """
    if init_from is not None:
        return _read(AutoencoderKL, init_from)
    blocks = len(block_out_channels)
    with seeded(seed, "autoencoder"):
        return AutoencoderKL(
            sample_size=SIZE_PX,
            block_out_channels=tuple(block_out_channels),
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=LATENT_CHANNELS,
        )


def text_encoder(
    tokenizer: CLIPTokenizer, width: int, layers: int, seed: int, init_from: Path | None = None
) -> CLIPTextModel:
    """Return a CLIP text model for a tokenizer, its token embeddings far apart.

    init_from: a folder whose text_encoder/ to start from instead.
    """
    if init_from is not None:
        return _read(CLIPTextModel, init_from / "text_encoder")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // CHANNELS_PER_HEAD),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seed, "text-encoder"):
        model = CLIPTextModel(config)
        nn.init.normal_(model.get_input_embeddings().weight, std=TOKEN_SD)
        places = model.embeddings.position_embedding.weight
        nn.init.normal_(places, std=PLACE_SD)
    return model


def unet(block_out_channels: Sequence[int], latent_size: int, text_width: int, seed: int) -> UNet2DConditionModel:
    """Return a conditional U-Net with cross-attention in every block but the deepest.

    Its `attention_head_dim` is the number of heads, whatever the name says; heads have about 32 channels.
    """
    attending = len(block_out_channels) - 1
    with seeded(seed, "unet"):
        return UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=1,
            cross_attention_dim=text_width,
            attention_head_dim=tuple(heads(channels) for channels in block_out_channels),
            down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
            norm_num_groups=16,
        )


def heads(channels: int) -> int:
    """Return the number of attention heads: the largest divisor of channels that leaves 24 channels or more to each."""
    return max(n for n in range(1, channels + 1) if (channels % n == 0 and channels // n >= 24) or n == 1)


def scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule (scaled linear, 0.00085 to 0.012, 1000 steps) with a DDIM sampler."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def contrast_tower(text_width: int, seed: int) -> ContrastTower:
    """Return the part of a contrast that is thrown away when the text encoder is trained."""
    with seeded(seed, "tower"):
        return ContrastTower(text_width)


def latent_space(vae: Path, device: torch.device) -> LatentSpace:
    """Return the latent space of a trained autoencoder's folder."""
    return LatentSpace(_read(AutoencoderKL, vae).requires_grad_(False).eval().to(device))


def fingerprint(folder: Path) -> str:
    """Return a hash of the weights and the config in a model's folder."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def diffusion_components(
    vae: Path, text_folder: Path, block_out_channels: Sequence[int], seed: int, init_from: Path | None
) -> Components:
    """Return a Stable Diffusion with a trained autoencoder and text encoder and a new U-Net.

    text_folder: holds text_encoder/ and tokenizer/. init_from: a whole base model to go on from; then its U-Net and
    text encoder are taken.
    """
    if init_from is not None:
        autoencoder = _read(AutoencoderKL, vae).requires_grad_(False).eval()
        base = load_components(str(init_from))
        return replace(base, vae=autoencoder, folder=None, fingerprint="")  # the folder holds another autoencoder
    autoencoder = _read(AutoencoderKL, vae).requires_grad_(False).eval()
    text = _read(CLIPTextModel, text_folder / "text_encoder")
    scale = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    denoiser = unet(block_out_channels, SIZE_PX // scale, text.config.hidden_size, seed)
    sampler = scheduler()
    return Components(
        name="scratch",
        source="scratch",
        unet=denoiser,
        vae=autoencoder,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(
            text_folder / "tokenizer", local_files_only=True, trust_remote_code=False
        ),
        scheduler=DDPMScheduler.from_config(sampler.config),
        sampler=sampler,
        own_sampler=sampler,
        fingerprint="",
    )


def _read(cls: type[M], folder: Path) -> M:
    """Load one part; a folder that does not hold it is a SettingsError."""
    try:
        part, report = cls.from_pretrained(  # type: ignore[attr-defined]
            str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(str(folder), f"holds no {cls.__name__}: {reason}") from None
    if report["missing_keys"]:
        raise SettingsError(str(folder), f"lacks weights of its {cls.__name__}, such as {report['missing_keys'][0]}.")
    if problems := module_problems(part):
        raise SettingsError(str(folder), *problems)
    if isinstance(part, ModelMixin):
        part.register_to_config(_name_or_path="")  # a path of this machine, which an export would carry along
    return part


class ContrastTower(nn.Module):
    """Reads latents (B, 4, h, w) and token outputs (B, tokens, width) into unit vectors of one space, with a scale."""

    def __init__(self, text_width: int, width: int = 64) -> None:
        super().__init__()
        self.pictures = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.SiLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Linear(8 * width, text_width)
        self.captions = nn.Linear(text_width, text_width)
        self.log_scale = nn.Parameter(torch.tensor(2.6))  # 1 / 0.07 (Radford et al. 2021, section 2.5)

    def forward(self, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.pictures(latents)
        pictures = self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))
        captions = self.captions(tokens.mean(1))
        normalize = nn.functional.normalize
        return normalize(pictures, dim=-1), normalize(captions, dim=-1), self.log_scale.exp().clamp(max=100)


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Initialise what is built inside from a seed of its own, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, purpose))
        yield
