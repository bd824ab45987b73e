"""Commands draw on the GPU where there is one, with every module of the model there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.components import build_pipeline, load_components
from pipelines.devices import drawing_device, move


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_taken_where_there_is_one(has_gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert drawing_device() == torch.device(device)


def test_all_modules_of_a_pipeline_move(tiny_base_dir: Path) -> None:
    components = load_components(str(tiny_base_dir))
    pipeline = build_pipeline(components)
    move(components, "meta")
    modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {tensor.device.type for module in modules for tensor in module.parameters()} == {"meta"}
