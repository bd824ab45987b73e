"""Mixed precision in runs that train a model whole: the passes are lowered, the weights that are exported are not."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.core.method import Batch, Method
from finetune.core.run import run
from pipelines.components import load_components
from tests.finetune.test_contract import ROWS, Row

WHOLE_ROWS = {name: row for name, row in ROWS.items() if row.trains}
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """The precision of one test's accelerator is not that of the next."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def arguments(tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    for name in ("assembly.SAMPLING_STEPS", "exports.SAMPLING_STEPS", "concept_images.CLASS_SAMPLING_STEPS"):
        monkeypatch.setattr(f"finetune.core.{name}", 2)
    monkeypatch.setattr("finetune.core.assembly.VALIDATION_IMAGES", 1)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(3)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a dry texture\n")
    return {
        "train_data_dir": pictures,
        "pretrained_model_name_or_path": str(tiny_base_dir),
        "output_dir": tmp_path / "run",
        "max_train_steps": 1,
        "train_batch_size": 2,
        "num_validation_images": 1,
        "mixed_precision": "bf16",
    }


def _settings(row: Row, arguments: dict[str, Any], **more: Any) -> Any:
    return row.settings.model_validate({**arguments, **row.options, **more})


def _build(row: Row, arguments: dict[str, Any], accelerator: Accelerator) -> Method:
    method: Method = import_module(f"finetune.{row.script}").build(_settings(row, arguments), accelerator)
    return method


def _of_base(folder: Path) -> dict[str, dict[str, Tensor]]:
    components = load_components(str(folder))
    return {part: getattr(components, part).state_dict() for part in WEIGHTS}


@pytest.mark.parametrize("name", WHOLE_ROWS)
def test_before_the_first_step_the_result_holds_the_weights_of_the_base_bit_for_bit(
    name: str, arguments: dict[str, Any], tiny_base_dir: Path, tmp_path: Path
) -> None:
    method = _build(WHOLE_ROWS[name], arguments, Accelerator(cpu=True, mixed_precision="bf16"))
    (tmp_path / "result").mkdir()
    method.export(tmp_path / "result")
    for part, weights in _of_base(tiny_base_dir).items():
        stored = load_file(tmp_path / "result" / part / WEIGHTS[part])
        assert stored.keys() == weights.keys()
        assert all(torch.equal(stored[key], weight) for key, weight in weights.items()), part
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
        assert any(not torch.equal(weight.bfloat16().float(), weight) for weight in weights.values()), part


def test_a_step_moves_weights_by_the_rate_and_not_to_rounded_values(
    arguments: dict[str, Any], tiny_base_dir: Path
) -> None:
    """With its sample sheet and its validation; Adam's first step is the rate, far below what bf16 can tell apart."""
    row = ROWS["dreambooth"]
    script = import_module("finetune.dreambooth")
    run(_settings(row, arguments, learning_rate=1e-6, adam_weight_decay=0.0), script.build, default_dir="unused")
    folder: Path = arguments["output_dir"]
    assert (folder / "samples" / "step-000001.png").exists()
    base = _of_base(tiny_base_dir)
    stored = {part: load_file(folder / part / file) for part, file in WEIGHTS.items()}
    moved = [float((stored["unet"][key] - weight).abs().max()) for key, weight in base["unet"].items()]
    assert 0.9e-6 < max(moved) < 1.2e-6
    for part in ("vae", "text_encoder"):
        assert all(torch.equal(stored[part][key], weight) for key, weight in base[part].items()), part


def test_the_passes_are_in_bf16_and_the_gradients_in_float32(arguments: dict[str, Any]) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    method = _build(ROWS["dreambooth, text encoder"], arguments, accelerator)
    passed: dict[str, set[torch.dtype]] = {part.name: set() for part in method.trainables}
    for part in method.trainables:
        layers = [layer for layer in part.module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        assert layers
        for layer in layers:
            layer.register_forward_hook(lambda _, __, output, name=part.name: passed[name].add(output.dtype))
    with accelerator.autocast():
        losses = method.objective.losses(Batch.collate([[(p, method.dataset.sample(p))] for p in range(2)]))
    losses.sum().backward()
    assert passed == {"unet": {torch.bfloat16}, "text_encoder": {torch.bfloat16}}
    for part in method.trainables:
        gradients = [p.grad for p in part.named_parameters().values() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
