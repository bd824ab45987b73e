"""The weights of a checkpoint in the pipeline of a run's result, for every kind of thing that is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from data.errors import OutputError
from pipelines.adapters import export_lora, load_adapter
from pipelines.components import build_pipeline, load_components
from pipelines.embeddings import export_embeddings, load_embeddings
from pipelines.evaluation.checkpoints import restore_checkpoint


def _checkpoint(folder: Path, **files: Mapping[str, Tensor]) -> Path:
    """Write the files of a checkpoint with their hashes, as the training loop does, an optimizer's beside them."""
    folder.mkdir()
    records = {}
    for name, tensors in {**files, "optimizer": {"x": torch.zeros(1)}}.items():
        path = folder / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        records[path.name] = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"step": 1, "files": records}))
    return folder


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("use_dora", [False, True])
def test_factors_of_an_adapter(use_dora: bool, tiny_base_dir: Path, tmp_path: Path) -> None:
    parts = {}
    trained: dict[str, dict[str, Tensor]] = {}
    components = load_components(str(tiny_base_dir))
    for name, module, layers in (
        ("unet", components.unet, ["to_q", "to_v"]),
        ("text_encoder", components.text_encoder, ["q_proj"]),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(r=2, lora_alpha=2.0, target_modules=layers, use_dora=use_dora)
            module.add_adapter(config, adapter_name="filrouge")
        factors = {path: p for path, p in module.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for number, parameter in enumerate(factors.values()):
                parameter.copy_(_noise(parameter.shape, number))
        trained[f"{name}_lora"] = {path: p.detach() + 1 for path, p in factors.items()}
        parts[name] = module
    export_lora(tmp_path / "run", parts, "filrouge", {})
    pipeline = build_pipeline(load_components(str(tiny_base_dir)))
    load_adapter(pipeline, tmp_path / "run")
    restore_checkpoint(pipeline, tmp_path / "run", _checkpoint(tmp_path / "checkpoint-1", **trained))
    num_found = 0
    for name, module in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        live = dict(module.named_parameters())
        for path, tensor in trained[f"{name}_lora"].items():
            assert torch.equal(live[path.replace(".filrouge", ".adapter_0")], tensor)
            num_found += 1
    assert num_found == sum(map(len, trained.values())) > (20 if use_dora else 12)


def test_rows_of_a_learnt_word(tiny_base_dir: Path, tmp_path: Path) -> None:
    rows = _noise(torch.Size([2, 32]), 0)
    export_embeddings(tmp_path / "run", "<dry>", rows, {})
    pipeline = build_pipeline(load_components(str(tiny_base_dir)))
    before = pipeline.text_encoder.get_input_embeddings().weight.clone()
    load_embeddings(pipeline, tmp_path / "run")
    restore_checkpoint(
        pipeline, tmp_path / "run", _checkpoint(tmp_path / "checkpoint-1", token_rows={"rows": rows + 1})
    )
    after = pipeline.text_encoder.get_input_embeddings().weight
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<dry>", "<dry>_1"])
    assert torch.equal(after[ids], rows + 1)
    kept = [number for number in range(len(before)) if number not in ids]
    assert torch.equal(after[kept], before[kept])
    wide = _checkpoint(tmp_path / "checkpoint-2", token_rows={"rows": torch.zeros(2, 48)})
    with pytest.raises(OutputError, match="not those of <dry>"):
        restore_checkpoint(pipeline, tmp_path / "run", wide)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_whole_module_or_its_average(averaged: bool, tiny_base_dir: Path, tmp_path: Path) -> None:
    pipeline = build_pipeline(load_components(str(tiny_base_dir)))
    weights = {name: tensor + 1 for name, tensor in pipeline.unet.state_dict().items()}
    average = {f"ema/{name}": tensor + 2 for name, tensor in pipeline.unet.state_dict().items()}
    checkpoint = _checkpoint(tmp_path / "checkpoint-1", unet={**weights, **average} if averaged else weights)
    restore_checkpoint(pipeline, tiny_base_dir, checkpoint)
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, average[f"ema/{name}"] if averaged else weights[name])


@pytest.mark.parametrize("kept", [False, True])
def test_what_the_optimizer_would_have_used_goes_before_what_it_trains(
    kept: bool, tiny_base_dir: Path, tmp_path: Path
) -> None:
    """kept: a moving average, which is what the run exports."""
    pipeline = build_pipeline(load_components(str(tiny_base_dir)))
    before = {part: getattr(pipeline, part).state_dict() for part in ("unet", "text_encoder")}
    before = {part: {key: tensor.clone() for key, tensor in weights.items()} for part, weights in before.items()}
    trained = {part: {key: tensor + 1 for key, tensor in weights.items()} for part, weights in before.items()}
    averaged = {f"{part}/{key}": tensor + 2 for part, weights in before.items() for key, tensor in weights.items()}
    if kept:
        trained["unet"] |= {f"ema/{key}": tensor + 3 for key, tensor in before["unet"].items()}
    restore_checkpoint(pipeline, tiny_base_dir, _checkpoint(tmp_path / "checkpoint-1", **trained, averaged=averaged))
    for part, added in (("unet", 3 if kept else 2), ("text_encoder", 2)):
        for key, tensor in getattr(pipeline, part).state_dict().items():
            assert torch.equal(tensor, before[part][key] + added), (part, key)


def test_weights_of_another_run_and_unknown_parts_are_refused(tiny_base_dir: Path, tmp_path: Path) -> None:
    pipeline = build_pipeline(load_components(str(tiny_base_dir)))
    other = _checkpoint(tmp_path / "checkpoint-1", unet={"conv_in.weight": torch.zeros(1)})
    with pytest.raises(OutputError, match="not those of the run's result"):
        restore_checkpoint(pipeline, tiny_base_dir, other)
    unknown = _checkpoint(tmp_path / "checkpoint-2", discriminator={"x": torch.zeros(1)})
    with pytest.raises(OutputError, match="no part that can be drawn with"):
        restore_checkpoint(pipeline, tiny_base_dir, unknown)
