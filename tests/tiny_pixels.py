"""The run folder of a pixel model small enough for a test: random weights, 16 px, two labels, 20 timesteps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image

from data.sources import ImageSource
from finetune.core.pixel_models import scheduler
from pipelines.diffusion.schedules import alphas_cumprod
from pipelines.pixel_model import FACTS_NAME, PixelModel

SIZE_PX = 16
LABELS = ("bars", "spots")


def tiny_run(
    folder: Path,
    *,
    labels: bool = False,
    learned_variance: bool = False,
    grey: bool = False,
    size_px: int = SIZE_PX,
) -> Path:
    """Write a run folder as finetune/ddpm.py leaves it, its pictures beside it, and return it.

    labels: the model is told the two classes. grey: one channel that stands for grey values of a volume.
    """
    pictures = _pictures(folder / "pictures", size_px)
    channels = 1 if grey else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=size_px,
            in_channels=channels,
            out_channels=channels * (1 + learned_variance),
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            num_class_embeds=len(LABELS) + 1 if labels else None,
        )
    model = PixelModel(
        unet=unet,
        alphas_cumprod=alphas_cumprod("cosine", 20),
        prediction_type="v_prediction",
        learned_variance=learned_variance,
        channels=channels,
        size_px=size_px,
        class_labels=LABELS if labels else (),
        grey_values={"sf_dry": {"window": [1000.0, 41000.0], "dtype": "uint16"}} if grey else {},
        um_per_px=12.5 if grey else None,
        schedule="cosine",
    )
    run = folder / "run"
    DDPMPipeline(unet=unet, scheduler=scheduler(model)).save_pretrained(run)
    (run / FACTS_NAME).write_text(json.dumps(model.facts()), encoding="utf-8")
    source = ImageSource(
        train_data_dir=pictures,
        resolution=size_px,
        held_out_fraction=0.4,
    )
    manifest = {
        "seed": 0,
        "settings": {"class_conditional": labels},
        "source": {"data_format": "images", **source.manifest()},
        "data": source.open().manifest(),
    }
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run


def _pictures(folder: Path, size_px: int) -> Path:
    rng = np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(10):
            if label == "bars":
                grey = (
                    127
                    + 100 * np.sin(np.arange(size_px) / (1.5 + 0.1 * number))[None]
                    + rng.normal(0, 4, (size_px, size_px))
                )
            else:
                grey = 255.0 * (rng.random((size_px, size_px)) > 0.9)
            level = np.clip(grey, 0, 255).astype(np.uint8)
            Image.fromarray(np.stack([level] * 3, -1)).save(folder / label / f"{number}.png")
    return folder
