"""The script that trains a Stable Diffusion from nothing: built as it would train, exported before its first step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from data.errors import SettingsError
from finetune.core.method import Method
from finetune.core.objective import NoiseObjective
from finetune.core.settings import LatentDiffusionSettings
from finetune.latent_diffusion import build
from pipelines.components import load_components


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """The precision of one test's accelerator is not that of the next."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def _build(base: Path, mixed_precision: str = "no", **options: Any) -> Method:
    values = {"vae": base / "vae", "text_encoder": base, "block_out_channels": (16, 32), "num_images": 4, **options}
    return build(LatentDiffusionSettings.model_validate(values), Accelerator(cpu=True, mixed_precision=mixed_precision))


def _noise(method: Method) -> NoiseObjective:
    assert isinstance(method.objective, NoiseObjective)
    return method.objective


def test_without_options_it_predicts_the_noise_on_the_schedule_of_stable_diffusion(
    tiny_base_dir: Path, tmp_path: Path
) -> None:
    method = _build(tiny_base_dir)
    assert _noise(method).prediction_type == "epsilon"
    assert float(_noise(method).alphas_cumprod[-1]) == pytest.approx(0.00466, rel=1e-2)
    method.export(tmp_path)
    written = json.loads((tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    told = ("_class_name", "prediction_type", "beta_schedule", "timestep_spacing", "rescale_betas_zero_snr")
    assert [written[key] for key in told] == ["DDIMScheduler", "epsilon", "scaled_linear", "leading", False]


@pytest.mark.parametrize("from_a_base", [False, True])
def test_prediction_type_and_schedule_are_those_of_the_options(
    from_a_base: bool, tiny_base_dir: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"init_from": tiny_base_dir} if from_a_base else {}
    method = _build(tiny_base_dir, prediction_type="v_prediction", zero_terminal_snr=True, **more)
    assert _noise(method).prediction_type == "v_prediction"
    assert float(_noise(method).alphas_cumprod[-1]) == 0
    method.export(tmp_path)
    left = load_components(str(tmp_path / "pipeline"))
    assert left.prediction_type == "v_prediction"
    assert left.ends_in_pure_noise
    sampler = DDIMScheduler.from_pretrained(tmp_path / "pipeline" / "scheduler")
    assert sampler.config.prediction_type == "v_prediction"
    assert sampler.config.timestep_spacing == "trailing"
    assert float(sampler.alphas_cumprod[-1]) == 0


def test_noise_cannot_be_predicted_where_all_is_noise(tiny_base_dir: Path) -> None:
    with pytest.raises(SettingsError, match="--prediction_type v_prediction"):
        _build(tiny_base_dir, zero_terminal_snr=True)


def test_under_mixed_precision_weights_are_rounded_once_to_what_is_stored(tiny_base_dir: Path, tmp_path: Path) -> None:
    method = _build(tiny_base_dir, "bf16", init_from=tiny_base_dir, train_text_encoder=False)
    method.export(tmp_path)
    base = load_components(str(tiny_base_dir))
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        stored = load_file(tmp_path / "pipeline" / part / f"{file}.safetensors")
        for key, weight in getattr(base, part).state_dict().items():
            assert torch.equal(stored[key], weight.half()), (part, key)
