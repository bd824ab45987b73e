"""A Stable Diffusion with random weights: its size and its cost are those of a real one, its pictures are noise.

    python benchmarks/random_base.py FOLDER --shape sd15

What a run takes of time and memory does not depend on what the weights are, so a base of a real shape can be measured
where the real weights cannot be had.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.synthetic.words import ALL
from pipelines.vocabulary import build_tokenizer

SEED = 0
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Shape:
    """What the published configurations of Stable Diffusion differ in.

    resolution_px: side of the images that the base is for. vocabulary: tokens of the tokenizer, and rows of the text
    encoder's table; None takes the tokens that the words need.
    """

    resolution_px: int
    unet_channels: tuple[int, ...]
    unet_heads: int | tuple[int, ...]
    vae_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    text_heads: int
    text_activation: str
    vocabulary: int | None
    predicts_v: bool = False
    linear_projections: bool = False


SHAPES = {
    "sd15": Shape(512, (320, 640, 1280, 1280), 8, (128, 256, 512, 512), 768, 12, 12, "quick_gelu", 49408),
    "sd21": Shape(
        768,
        (320, 640, 1280, 1280),
        (5, 10, 20, 20),
        (128, 256, 512, 512),
        1024,
        23,
        16,
        "gelu",
        49408,
        predicts_v=True,
        linear_projections=True,
    ),
    # the structure of sd15 in 11 million weights; takes 64 px, half its own size, as sd15 takes 256
    "small": Shape(128, (32, 64, 128, 128), 8, (32, 64, 64, 64), 64, 2, 4, "quick_gelu", None),
}


def write_random_base(folder: Path, shape: str = "sd15", weights: bool = True) -> Path:
    """Write a Stable Diffusion in diffusers' folder format, its weights drawn from a fixed seed, and return its folder.

    shape: one of SHAPES. weights: False writes configurations and tokenizer alone.
    The weights keep the scale of what passes through them, so that nothing overflows, in float16 either.
    """
    chosen = SHAPES[shape]
    tokenizer = _tokenizer(chosen.vocabulary)
    with torch.device("meta"):
        unet, vae, text_encoder = _unet(chosen), _vae(chosen), CLIPTextModel(_text_config(chosen, tokenizer))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(chosen),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if weights:
        generator = torch.Generator().manual_seed(SEED)
        for module in (unet, vae, text_encoder):
            _fill(module.to_empty(device="cpu"), generator)
        with torch.no_grad():
            unet.conv_out.weight.mul_(0.1)
        pipeline.save_pretrained(folder, max_shard_size="10GB")  # one file for each part, as published
        return folder
    pipeline.save_config(folder)
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    text_encoder.config.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    return folder


def _unet(shape: Shape) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=shape.resolution_px // 8,
        block_out_channels=shape.unet_channels,
        attention_head_dim=shape.unet_heads,
        cross_attention_dim=shape.text_width,
        use_linear_projection=shape.linear_projections,
        upcast_attention=shape.predicts_v or None,
    )


def _vae(shape: Shape) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=shape.resolution_px,
        block_out_channels=shape.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def _text_config(shape: Shape, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=4 * shape.text_width,
        projection_dim=min(shape.text_width, 768),
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        hidden_act=shape.text_activation,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _scheduler(shape: Shape) -> PNDMScheduler | DDIMScheduler:
    if shape.predicts_v:
        return DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    return PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False)


def _tokenizer(vocabulary: int | None) -> CLIPTokenizer:
    """Return a tokenizer of the embedded base's words, with tokens that no text is made of up to a size of vocabulary.

    The tokens of start and end are the last two, as in CLIP's.
    """
    small = build_tokenizer(ALL)
    if vocabulary is None:
        return small
    model: dict[str, Any] = json.loads(small.backend_tokenizer.to_str())["model"]
    *pieces, start, end = sorted(model["vocab"], key=model["vocab"].__getitem__)
    pieces += [f"unused-{number}" for number in range(vocabulary - len(pieces) - 2)]
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate([*pieces, start, end])},
        merges=[tuple(pair) for pair in model["merges"]],
    )
    tokenizer.model_max_length = small.model_max_length
    return tokenizer


@torch.no_grad()
def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of each layer so that its output has the variance of its input; norms change nothing."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                parameter.fill_(1.0 if name == "weight" else 0.0)
            elif isinstance(layer, nn.Embedding):
                parameter.normal_(0.0, 0.02, generator=generator)  # CLIP's own
            elif name == "bias":
                parameter.zero_()
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="sd15")
    parser.add_argument("--without_weights", action="store_true", help="write configurations and tokenizer alone")
    arguments = parser.parse_args()
    write_random_base(arguments.folder, arguments.shape, not arguments.without_weights)
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file()) / 2**20
    print(f"{arguments.folder}: {arguments.shape}, {size:,.0f} MiB")


if __name__ == "__main__":
    main()
