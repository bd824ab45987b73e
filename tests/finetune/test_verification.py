"""An export that does not hold what was trained is refused, whatever is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import OutputError
from finetune.core import exports
from finetune.core.method import Method
from finetune.core.verification import Artefact, predicted, prompt_states, tensor_problems, twin
from pipelines.components import load_components
from tests.finetune.test_contract import LORA, ROWS, WHOLE, WORD, _settings, arguments, scans  # noqa: F401

Change = Callable[[dict[str, Tensor], dict[str, str]], None]


def _rewritten(name: str, change: Change) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with safe_open(folder / name, "pt") as file:
            header = dict(file.metadata() or {})
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(tensors, header)
        save_file(tensors, folder / name, header)

    return spoil


def _flip_a_bit(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    first = tensors[min(tensors)]
    first.view(torch.uint8).view(-1)[0] ^= 1


def _drop_one(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors.pop(min(tensors))


def _rename_one(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["other.name"] = tensors.pop(min(tensors))


def _round(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors.update({key: tensor.half() for key, tensor in tensors.items()})


def _other_alpha(_: dict[str, Tensor], header: dict[str, str]) -> None:
    told = json.loads(header["lora_adapter_metadata"])
    header["lora_adapter_metadata"] = json.dumps({**told, "unet.lora_alpha": 2 * told["unet.lora_alpha"]})


def _config(part: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


SPOILT = {
    "a bit of an adapter": ("lora", "adapters", _rewritten(LORA, _flip_a_bit), "has other numbers"),
    "a tensor of an adapter": ("lora", "adapters", _rewritten(LORA, _drop_one), "lacks the tensor"),
    "a name of an adapter": ("lora", "adapters", _rewritten(LORA, _rename_one), "which was not trained"),
    "the precision of an adapter": ("lora", "adapters", _rewritten(LORA, _round), "expected torch.float32"),
    "the strength of an adapter": ("lora", "adapters", _rewritten(LORA, _other_alpha), "predicts other noise"),
    "a cut adapter": (
        "lora",
        "adapters",
        lambda folder: (folder / LORA).write_bytes((folder / LORA).read_bytes()[:-9]),
        "cannot be read back",
    ),
    "a bit of a word": ("textual_inversion", "embeddings", _rewritten(WORD, _flip_a_bit), "has other numbers"),
    "the name of a word": ("textual_inversion", "embeddings", _rewritten(WORD, _rename_one), "which was not trained"),
    "a bit of a U-Net": ("dreambooth", "whole", _rewritten(WHOLE, _flip_a_bit), "has other numbers"),
    "the layers of a U-Net": ("dreambooth", "whole", _config("unet", layers_per_block=2), "describes another model"),
    "the time of a U-Net": ("dreambooth", "whole", _config("unet", flip_sin_to_cos=False), "predicts other noise"),
    "the text encoder": ("dreambooth", "whole", _config("text_encoder", hidden_act="relu"), "predicts other noise"),
}


@pytest.fixture
def tiny_arguments(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:  # noqa: F811
    monkeypatch.setattr("pipelines.precision.NUM_STEPS", 1)
    return arguments


def _built(name: str, arguments: dict[str, Any]) -> Method:  # noqa: F811
    row = ROWS[name]
    prior = {"with_prior_preservation": False, "num_class_images": 100} if "num_class_images" in row.options else {}
    settings = _settings(row, arguments, **prior)
    method: Method = import_module(f"finetune.{row.script}").build(settings, Accelerator(cpu=True))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in method.trainables:
            for parameter in part.named_parameters().values():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return method


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_export_is_refused(
    case: str, tiny_arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, kind, spoil, said = SPOILT[case]
    made: Callable[..., Artefact] = getattr(exports, kind)

    def spoiling(*given: Any) -> Artefact:
        artefact = made(*given)

        def write(folder: Path, header: Any) -> None:
            artefact.write(folder, header)
            spoil(folder)

        return replace(artefact, write=write)

    monkeypatch.setattr(exports, kind, spoiling)
    (tmp_path / "result").mkdir()
    with pytest.raises(OutputError, match=said):
        _built(name, tiny_arguments).export(tmp_path / "result")
    assert not (tmp_path / "result" / "final.png").exists()


@pytest.mark.parametrize("name", ["lora, everything", "pivotal_tuning", "dreambooth, text encoder"])
def test_a_sound_export_is_taken_and_the_trained_modules_stay_as_they_are(
    name: str, tiny_arguments: dict[str, Any], tmp_path: Path
) -> None:
    method = _built(name, tiny_arguments)
    before = {f"{part.name}/{key}": t.clone() for part in method.trainables for key, t in part.state().items()}
    modules = [(part.module, [path for path, _ in part.module.named_modules()]) for part in method.trainables]
    (tmp_path / "result").mkdir()
    told = "\n".join(method.export(tmp_path / "result"))
    assert "read back from its files and predicts the same" in told
    assert "in bfloat16" in told
    assert "in float16" in told
    after = {f"{part.name}/{key}": t for part in method.trainables for key, t in part.state().items()}
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    for module, paths in modules:
        assert [path for path, _ in module.named_modules()] == paths


def test_a_twin_takes_no_memory_of_its_own_and_predicts_the_same(tiny_base_dir: Path) -> None:
    components = load_components(str(tiny_base_dir))
    again = twin(components.unet)
    pairs = zip(components.unet.parameters(), again.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    there = replace(components, unet=again, text_encoder=twin(components.text_encoder))
    one, other = (predicted(each, prompt_states(each, "a dry slice"), 32) for each in (there, components))
    assert torch.equal(one, other)


def test_two_names_of_one_tensor_are_one(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    save_file({"a": shared}, tmp_path / "file.safetensors")
    assert tensor_problems(tmp_path / "file.safetensors", {"a": shared, "b": shared}) == []
    assert tensor_problems(tmp_path / "file.safetensors", {"a": shared, "b": shared.clone()}) != []
