"""A Stable Diffusion small enough to be built, loaded and run in a test: random weights, 32 px images, f = 4."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pipelines.vocabulary import build_tokenizer

CAPTIONS = (
    "a photo of a dry striped composite texture",
    "compacted warp slice",
    "injected weft and thickness, red, blue",
)


def tiny_base(folder: Path, cross_attention_dim: int = 32, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a tiny random Stable Diffusion in diffusers' folder format and return its folder."""
    tokenizer = build_tokenizer(re.findall("[a-z]+", " ".join(CAPTIONS)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(16, 16, 32),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=8,
                latent_channels=4,
                sample_size=32,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=cross_attention_dim,
                    intermediate_size=2 * cross_attention_dim,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=tokenizer.model_max_length,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(32, 64),
                layers_per_block=1,
                cross_attention_dim=cross_attention_dim,
                attention_head_dim=(1, 2),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                norm_num_groups=8,
            ),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
