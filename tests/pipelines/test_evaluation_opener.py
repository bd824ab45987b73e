"""A run's models one after the other: merged for drawing, and each as if it had been opened alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from pipelines.adapters import export_lora
from pipelines.components import load_components
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.grid import Arm
from pipelines.evaluation.opener import PipelineOpener
from pipelines.evaluation.states import AskedRun, State
from pipelines.runs import BaseNeed

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> BaseModel:
    return BaseModel.load("base", BaseNeed(str(tiny_base_dir)), "cpu")


@pytest.fixture(scope="module")
def run(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AskedRun:
    """Return a run of an adapter whose factors are all 0.1, with a checkpoint in which they are all 0.2."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    components = load_components(base.components.source)
    with torch.random.fork_rng(devices=[]):
        components.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]), adapter_name="filrouge")
    factors = {name: p for name, p in components.unet.named_parameters() if p.requires_grad}
    for parameter in factors.values():
        parameter.data.fill_(0.1)
    facts = {"base": base.components.source, "base_fingerprint": base.components.fingerprint}
    export_lora(folder, {"unet": components.unet}, "filrouge", {"filrouge": json.dumps(facts)})
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir()
    path = checkpoint / "unet_lora.safetensors"
    save_file({name: torch.full_like(p, 0.2) for name, p in factors.items()}, path)
    record = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": 1, "files": {path.name: record}}))
    return AskedRun.read(folder, "run")


def weight(pipeline: StableDiffusionPipeline) -> Tensor:
    layer = pipeline.unet.get_submodule(LAYER)
    assert isinstance(layer, BaseTunerLayer)
    assert layer.merged
    merged: Tensor = layer.get_base_layer().weight.detach().clone()
    return merged


def test_every_model_of_a_run_is_merged_into_the_base_itself(base: BaseModel, run: AskedRun) -> None:
    """B A of rank 2 with factors c is 2 c squared in every entry, whatever was open before."""
    checkpoint = State(1, run.path / "checkpoint-1")
    asked = [(run.result, 1.0), (run.result, 0.0), (run.result, -0.5), (checkpoint, 1.0), (checkpoint, 0.5)]
    opener = PipelineOpener({"base": base}, {"run": run}, "cpu")
    plain = base.components.unet.get_submodule(LAYER).weight.detach()
    for _ in range(2):
        for state, strength in asked:
            added = 2 * (0.1 if state.folder is None else 0.2) ** 2 * strength
            found = weight(opener.open(Arm("run", state, strength, "base")))
            torch.testing.assert_close(found, plain + added, atol=1e-7, rtol=0)
        untouched = opener.open(Arm("base", None, 1.0, "base")).unet.get_submodule(LAYER)
        assert torch.equal(untouched.weight, plain)
