"""The three scripts that train the embedded base, one after the other, through their real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "methods" / "swatch"


def _run(script: str, run: Path, *arguments: str) -> str:
    command = [
        *(sys.executable, f"finetune/{script}.py", "--output_dir", str(run), "--num_images", "64"),
        *("--max_train_steps", "3", "--lr_warmup_steps", "0", "--num_validation_images", "1", "--logging_steps", "1"),
    ]
    result = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _config(name: str) -> tuple[str, ...]:
    return ("--config", str(CONFIGS / f"{name}.yaml"), "--train_batch_size", "4", "--lr_scheduler", "constant")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("swatch")
    small = ("--block_out_channels", "16", "16", "32")
    _run("autoencoder", runs / "autoencoder", *_config("autoencoder"), *small)
    vae = ("--vae", str(runs / "autoencoder" / "vae"))
    _run("text_encoder", runs / "text", *_config("text_encoder"), *vae, "--text_width", "32", "--text_layers", "1")
    more = (*vae, "--text_encoder", str(runs / "text"), "--block_out_channels", "32", "48")
    _run("latent_diffusion", runs / "together", *_config("together"), *more)
    init = ("--init_from", str(runs / "together" / "pipeline"))
    _run("latent_diffusion", runs / "unet", *_config("unet"), *more, *init)
    return runs


def test_the_result_is_a_stable_diffusion_that_plain_diffusers_loads(stages: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(stages / "unet" / "pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 0
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_weights_are_stored_in_half_precision_and_read_in_full(stages: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(stages / "unet" / "pipeline", safety_checker=None)
    num_parameters = 0
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
        num_parameters += sum(p.numel() for p in part.parameters())
    stored = sum(path.stat().st_size for path in (stages / "unet" / "pipeline").rglob("*.safetensors"))
    assert stored == pytest.approx(2 * num_parameters, rel=0.1)


def test_the_autoencoder_is_scaled_to_unit_latents(stages: Path) -> None:
    from data.synthetic.pictures import WorldDataset

    vae = AutoencoderKL.from_pretrained(stages / "autoencoder" / "vae")
    dataset = WorldDataset(0, 64, anything_share=0.4)
    pixels = torch.stack([torch.from_numpy(dataset.sample(position).pixels) for position in range(500)])
    with torch.no_grad():
        means = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixels.split(50)])
    assert float((means * vae.config.scaling_factor).std()) == pytest.approx(1.0, abs=1e-3)


def test_each_stage_trains_its_own_part_and_leaves_the_others(stages: Path) -> None:
    def weights(folder: Path) -> torch.Tensor:
        kind = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel}[folder.name]
        model = kind.from_pretrained(folder, dtype=torch.float32)
        return torch.cat([p.flatten().half() for p in model.parameters()])

    trained, kept = stages / "together" / "pipeline", stages / "unet" / "pipeline"
    assert torch.equal(weights(trained / "vae"), weights(stages / "autoencoder" / "vae"))
    assert not torch.equal(weights(trained / "text_encoder"), weights(stages / "text" / "text_encoder"))
    assert torch.equal(weights(kept / "text_encoder"), weights(trained / "text_encoder"))
    unets = [StableDiffusionPipeline.from_pretrained(f, safety_checker=None).unet for f in (trained, kept)]
    assert not torch.equal(unets[0].conv_in.weight, unets[1].conv_in.weight)


def test_losses_are_logged_and_the_tokenizer_goes_along(stages: Path) -> None:
    for run in ("autoencoder", "text", "together", "unet"):
        lines = [json.loads(line) for line in (stages / run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert all(np.isfinite(line["loss"]) and line["loss"] > 0 for line in lines)
    tokenizer = CLIPTokenizer.from_pretrained(stages / "unet" / "pipeline" / "tokenizer")
    assert len(tokenizer("two red circles").input_ids) == 5
    assert tokenizer.model_max_length == 77
