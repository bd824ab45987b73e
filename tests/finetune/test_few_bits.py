"""What is kept in few bits, AdamW's state in 8 and the frozen base in 4, trains, resumes and is used on a CPU."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from data.errors import SettingsError
from finetune.core import settings as options
from finetune.core.hardware import require
from finetune.core.method import Method
from finetune.core.run import run
from pipelines.components import FourBits, load_components

EIGHT, FOUR = {"optimizer": "adamw_8bit"}, {"load_in_4bit": True}
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def arguments(tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("finetune.core.assembly.SAMPLING_STEPS", 2)
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(3)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("dry slice")
    return {
        "train_data_dir": images,
        "pretrained_model_name_or_path": str(tiny_base_dir),
        "output_dir": tmp_path / "run",
        "max_train_steps": 4,
        "train_batch_size": 2,
        "checkpointing_steps": 2,
        "num_validation_images": 1,
        "learning_rate": 1e-2,
        "identifier_report": False,
    }


def _train(method: str, arguments: dict[str, Any], **more: Any) -> Method:
    made = []
    settings_class = getattr(options, "".join(word.capitalize() for word in method.split("_")) + "Settings")

    def build(settings: Any, accelerator: Accelerator) -> Method:
        made.append(import_module(f"finetune.{method}").build(settings, accelerator))
        return made[-1]

    values = {**arguments, **more}
    known = {name: value for name, value in values.items() if name in settings_class.model_fields}
    run(settings_class.model_validate(known), build, default_dir="unused")
    return made[-1]


def _resumed_at_half(method: str, arguments: dict[str, Any], **more: Any) -> tuple[Path, Path]:
    """Return the last checkpoint of a straight run, and that of one that was resumed at half."""
    _train(method, arguments, **more)
    straight = arguments["output_dir"]
    resumed = straight.with_name("resumed")
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    _train(method, arguments, **more, output_dir=resumed, resume_from_checkpoint="latest")
    return straight / "checkpoint-4", resumed / "checkpoint-4"


def _same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("method", ["full_unet", "lora"])
def test_8_bit_adamw_trains_and_resumes_bit_for_bit(method: str, arguments: dict[str, Any]) -> None:
    straight, resumed = _resumed_at_half(method, arguments, **EIGHT, rank=128)
    _same_files(straight, resumed)
    state = load_file(straight / "optimizer.safetensors")
    of_eight_bits = {name: tensor for name, tensor in state.items() if re.search(r"/state[12]$", name)}
    small = {name for name, tensor in of_eight_bits.items() if tensor.dtype == torch.float32}
    # tensors of fewer than 4096 numbers keep 32 bits: what is tested here must be more than those
    assert {tensor.dtype for name, tensor in of_eight_bits.items() if name not in small} == {torch.uint8}
    assert len(small) < len(of_eight_bits)
    assert any(tensor.float().std() > 1 for name, tensor in of_eight_bits.items() if name not in small)


def test_8_bit_adamw_needs_a_fourth_of_the_state(arguments: dict[str, Any]) -> None:
    sizes = {}
    for name in ("adamw", "adamw_8bit"):
        _train("full_unet", arguments, optimizer=name, output_dir=arguments["output_dir"] / name)
        sizes[name] = (arguments["output_dir"] / name / "checkpoint-4" / "optimizer.safetensors").stat().st_size
    assert sizes["adamw_8bit"] < 0.4 * sizes["adamw"]


FOUR_BIT_RUNS = {
    "lora": ("lora", {}),
    "lora, every layer, DoRA": ("lora", {"target": "all", "rank": 2, "use_dora": True}),
    "lora, bf16": ("lora", {"mixed_precision": "bf16"}),
    "lora_dreambooth": ("lora_dreambooth", {"train_text_encoder": True}),
    "pivotal_tuning": ("pivotal_tuning", {"placeholder_token": "<dry>", "initializer_token": "dry"}),
}


@pytest.mark.parametrize("name", FOUR_BIT_RUNS)
def test_a_base_in_4_bits_trains_and_resumes_bit_for_bit(name: str, arguments: dict[str, Any]) -> None:
    method, more = FOUR_BIT_RUNS[name]
    straight, resumed = _resumed_at_half(method, arguments, **FOUR, **more)
    _same_files(straight, resumed)


def test_adapters_of_a_base_in_4_bits_are_used_on_the_base_itself(
    arguments: dict[str, Any], tiny_base_dir: Path
) -> None:
    method = _train("lora", arguments, **FOUR, learning_rate=0.1)
    four_bits = [layer for layer in method.trainables[0].module.modules() if type(layer).__name__ == "Linear4bit"]
    assert len(four_bits) > 10
    base = load_components(str(tiny_base_dir))
    assert method.manifest["base_fingerprint"] == base.fingerprint
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for folder in (None, arguments["output_dir"]):
        if folder is not None:
            pipeline.load_lora_weights(folder)
        generator = torch.Generator().manual_seed(0)
        drawn.append(pipeline("dry slice", num_inference_steps=3, generator=generator, output_type="np").images)
    assert np.abs(drawn[0] - drawn[1]).max() > 0.02
    trained = {name: tensor for name, tensor in load_file(arguments["output_dir"] / LORA).items() if "lora_B" in name}
    assert all(tensor.abs().max() > 0 for tensor in trained.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_4_bits_is_near_the_base(dtype: torch.dtype, tiny_base_dir: Path) -> None:
    base = load_components(str(tiny_base_dir))
    small = load_components(str(tiny_base_dir), four_bits=FourBits(dtype, torch.device("cpu")))
    assert small.fingerprint == base.fingerprint
    matrices = {name: layer for name, layer in base.unet.named_modules() if isinstance(layer, torch.nn.Linear)}
    bytes_of = {
        which.fingerprint + str(which is small): sum(which.unet.get_submodule(name).weight.nbytes for name in matrices)
        for which in (base, small)
    }
    full, quantized = bytes_of.values()
    assert quantized * 8 == full
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    words = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    # in evaluation mode too, and again in training mode after it
    for _ in range(2):
        with torch.no_grad():
            expected = base.unet(latents, torch.tensor([3, 500]), words)[0]
            found = small.unet(latents.to(dtype), torch.tensor([3, 500]), words.to(dtype))[0].float()
        assert 0 < float((found - expected).norm() / expected.norm()) < 0.3
        small.unet.train()
    latents = latents.to(dtype).requires_grad_()
    small.unet(latents, torch.tensor([3, 500]), words.to(dtype))[0].sum().backward()
    assert latents.grad is not None


def test_a_missing_package_is_told_before_anything_is_loaded(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.core.hardware.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"--load_in_4bit: bitsandbytes is not installed.*pip install -e .*\[gpu\]"):
        require(options.LoraSettings.model_validate({**arguments, **FOUR}))
