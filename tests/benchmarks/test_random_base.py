"""A base of random weights has the shape of the published one, and draws what stays finite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.random_base import write_random_base
from pipelines.components import build_pipeline, load_components
from pipelines.sampling import sample


@pytest.mark.parametrize(
    ("shape", "unet", "text_encoder", "prediction_type"),
    [("sd15", 859_520_964, 123_060_480, "epsilon"), ("sd21", 865_910_724, 340_387_840, "v_prediction")],
)
def test_a_base_without_weights_has_the_published_sizes(
    shape: str, unet: int, text_encoder: int, prediction_type: str, tmp_path: Path
) -> None:
    folder = write_random_base(tmp_path, shape, weights=False)
    assert not list(folder.rglob("*.safetensors"))
    with torch.device("meta"):
        modules = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
        }
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    assert sizes == {"unet": unet, "vae": 83_653_863, "text_encoder": text_encoder}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == prediction_type


def test_the_small_base_loads_and_draws_finite_pictures(tmp_path: Path) -> None:
    components = load_components(str(write_random_base(tmp_path, "small")))
    assert components.resolution == 128
    pictures = sample(
        build_pipeline(components), ["a slice"], [0], num_inference_steps=2, guidance_scale=3.0, batch_size=1
    )
    assert pictures.std() > 0.01  # NaN would be black
