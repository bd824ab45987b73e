"""A merged model draws as its base with the adapters beside it, and the base stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file

from data.errors import SettingsError
from data.exits import exit_code
from pipelines import merge_adapters
from pipelines.adapters import export_lora
from pipelines.components import Components, load_components
from pipelines.embeddings import export_embeddings
from pipelines.merging import combine, merge, merge_in_place
from pipelines.runs import read_facts
from tests.tiny_adapters import tiny_adapter

PARTS = ("unet", "text_encoder")


def exported(base: str, folder: Path, seed: int, scale: float = 0.1, **targets_and_options: Any) -> Path:
    """Write an adapter of random factors. Targets by part; all else is an option of peft's."""
    components = load_components(base)
    options = {key: value for key, value in targets_and_options.items() if key not in PARTS}
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for part in PARTS:
        if part not in targets_and_options:
            continue
        module = parts[part] = getattr(components, part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=4, lora_alpha=8, target_modules=targets_and_options[part], **options)
            module.add_adapter(config, adapter_name="filrouge")
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.data = parameter.data * (1 + 0.1 * noise)
            elif "lora" in name:
                parameter.data = noise * scale
    facts = {"base": base, "base_fingerprint": components.fingerprint, "prediction_type": "epsilon"}
    export_lora(folder, parts, "filrouge", {"filrouge": json.dumps(facts)})
    return folder


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> Components:
    """Return the base; no test may change it."""
    return load_components(str(tiny_base_dir))


@pytest.fixture(scope="module")
def both(base: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    return exported(base.name, folder, 1, unet=["to_q", "to_v", "conv1"], text_encoder=["q_proj", "fc1"])


@pytest.fixture(scope="module")
def pictures(base: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(base.name, tmp_path_factory.mktemp("pictures"), 2, unet=["to_q", "conv_out"])


@pytest.fixture(scope="module")
def magnitudes(base: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("magnitudes")
    return exported(base.name, folder, 3, unet=["to_q", "conv1"], text_encoder=["q_proj"], use_dora=True)


@torch.no_grad()
def outputs(model: Components | StableDiffusionPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    latents, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 77, 32)))
    return (
        model.unet.eval()(latents, torch.tensor([10, 700]), states).sample,
        model.text_encoder.eval()(torch.arange(77)[None] % 40)[0],
    )


@pytest.mark.parametrize(
    ("named", "weights"),
    [
        (["both"], [1.0]),
        (["both"], [-0.5]),
        (["both", "pictures"], [0.7, 1.5]),
        (["pictures", "both"], [0.0, 1.0]),
        (["magnitudes"], [0.6]),
        (["magnitudes", "both"], [1.0, 0.5]),
        (["both", "magnitudes"], [1.0, 0.5]),
    ],
    ids=str,
)
def test_merged_weights_do_what_the_adapters_do(
    named: list[str], weights: list[float], base: Components, request: pytest.FixtureRequest
) -> None:
    adapters = [(request.getfixturevalue(name), weight) for name, weight in zip(named, weights, strict=True)]
    before = outputs(base)
    merged = merge(base, adapters)
    assert merged.unet.state_dict().keys() == base.unet.state_dict().keys()
    assert merged.text_encoder.state_dict().keys() == base.text_encoder.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(outputs(base), before, strict=True))
    beside = outputs(combine(load_components(base.name), adapters))
    for found, expected in zip(outputs(merged), beside, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert (beside[0] - before[0]).abs().max() > 0.01


def test_merged_weight_in_closed_form(base: Components, both: Path, pictures: Path) -> None:
    """W + w1 alpha / rank B1 A1 + w2 alpha / rank B2 A2."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    expected = base.unet.get_submodule(layer).weight.detach().clone()
    for folder, weight in ((both, 0.25), (pictures, -2.0)):
        stored = load_file(folder / "pytorch_lora_weights.safetensors")
        up, down = (stored[f"unet.{layer}.{factor}.weight"] for factor in ("lora_B", "lora_A"))
        expected += weight * 2 * up @ down
    merged = merge(base, [(both, 0.25), (pictures, -2.0)])
    torch.testing.assert_close(merged.unet.get_submodule(layer).weight, expected)
    assert torch.equal(merged.unet.conv_in.weight, base.unet.conv_in.weight)


@pytest.mark.parametrize("names", [["both"], ["magnitudes", "both"]], ids=str)
def test_adapters_merged_in_place_are_taken_out_bit_for_bit(
    names: list[str], base: Components, request: pytest.FixtureRequest
) -> None:
    pipeline = combine(load_components(base.name), [(request.getfixturevalue(name), 0.7) for name in names])
    weights = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    beside = outputs(pipeline)
    for _ in range(2):
        take_out = merge_in_place(pipeline)
        moved = [name for name, tensor in pipeline.unet.state_dict().items() if not torch.equal(tensor, weights[name])]
        assert len(moved) > 10
        assert all(name.endswith("base_layer.weight") for name in moved)
        for found, expected in zip(outputs(pipeline), beside, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        take_out()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in pipeline.unet.state_dict().items())
        assert all(torch.equal(a, b) for a, b in zip(outputs(pipeline), beside, strict=True))


def test_weights_that_are_not_finite_are_refused(base: Components, tmp_path: Path) -> None:
    adapter = exported(base.name, tmp_path, 4, scale=1e30, unet=["to_q"])
    with pytest.raises(SettingsError, match=r"cannot be merged.*Choose smaller weights"):
        merge(base, [(adapter, 1.0)])


def run(*arguments: object) -> int:
    return exit_code(lambda: merge_adapters.main([str(argument) for argument in arguments]), "merge_adapters")


def test_script_writes_a_model_that_plain_diffusers_loads(
    base: Components, both: Path, magnitudes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "merged"
    assert run("--adapter", both, magnitudes, "--weights", "1", "0.5", "--output_dir", folder) == 0
    assert f"from_pretrained({str(folder)!r}" in capsys.readouterr().out
    loaded = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert loaded.text_encoder.dtype == loaded.unet.dtype == torch.float32
    for found, expected in zip(outputs(loaded), outputs(merge(base, [(both, 1), (magnitudes, 0.5)])), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    record = json.loads((folder / "merged.json").read_text())
    assert record == {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "adapters": [{"adapter": str(both), "weight": 1.0}, {"adapter": str(magnitudes), "weight": 0.5}],
    }
    assert load_components(str(folder)).fingerprint != base.fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]


def test_a_merged_model_says_what_its_adapters_said(
    base: Components, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = {"window": [0.0, 900.0], "dtype": "uint16"}
    said = [
        {"base": "here", "prediction_type": "epsilon", "um_per_px": 40.0, "grey_values": {"dry": grey}},
        {"base": "there", "prediction_type": "epsilon", "um_per_px": 80.0, "grey_values": {"dry": grey, "wet": grey}},
    ]
    names = ["first", "second", "foreign"]
    for name, facts in zip(names, [*said, None], strict=True):
        tiny_adapter(Path(base.name), tmp_path / name, facts)
    adapters = [tmp_path / name for name in names]
    folder, of_base = tmp_path / "merged", ("--pretrained_model_name_or_path", base.name)
    assert run("--adapter", *adapters, both, "--output_dir", folder, *of_base) == 0
    assert read_facts(folder) == {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "revision": None,
        "variant": None,
        "prediction_type": "epsilon",
        "grey_values": {"dry": {"um_per_px": 40.0, **grey}, "wet": {"um_per_px": 80.0, **grey}},
    }
    told = capsys.readouterr().out
    assert f"{adapters[1]}: trained with another window or pixel scale than those before it on dry;" in told
    assert all(f"{path}: says nothing of grey values" in told for path in (adapters[2], both))


def test_a_new_word_beside_an_adapter_goes_into_the_merged_model(base: Components, tmp_path: Path) -> None:
    adapter = exported(base.name, tmp_path / "adapter", 4, unet=["to_q"])
    rows = torch.randn((2, 32), generator=torch.Generator().manual_seed(0))
    export_embeddings(adapter, "<dry>", rows, {})
    folder = tmp_path / "merged"
    assert run("--adapter", adapter, "--prompt", "a <dry> slice", "--output_dir", folder) == 0
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    ids = pipe.tokenizer.convert_tokens_to_ids(["<dry>", "<dry>_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], rows)


def test_script_keeps_no_model_that_draws_something_else(
    base: Components, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = merge(base, [(both, 8.0)])
    monkeypatch.setattr("pipelines.merging.merge", lambda *_: merged)
    assert run("--adapter", both, "--output_dir", tmp_path / "merged") == 4
    assert "Nothing was kept" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _full(both: Path, folder: Path) -> list[object]:
    (folder / "kept").write_text("kept")
    return ["--adapter", both, "--output_dir", folder]


WRONG: dict[str, tuple[Callable[[Path, Path], list[object]], int, str]] = {
    "folder in use": (_full, 4, "exists and is not empty"),
    "too few weights": (
        lambda both, folder: ["--adapter", both, both, "--weights", "1", "--output_dir", folder],
        2,
        "found 1 weights for 2 adapters",
    ),
    "weight in words": (
        lambda both, folder: ["--adapter", both, "--weights", "half", "--output_dir", folder],
        2,
        "invalid float value: 'half'",
    ),
    "no adapter": (lambda _, folder: ["--output_dir", folder], 2, "required: --adapter"),
    "missing adapter": (
        lambda _, folder: ["--adapter", folder / "nowhere", "--output_dir", folder],
        2,
        "this file does not exist",
    ),
    "missing base": (
        lambda both, folder: [
            *("--adapter", both, "--output_dir", folder),
            *("--pretrained_model_name_or_path", folder / "nowhere"),
        ],
        2,
        "this folder does not exist",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG.values(), ids=WRONG)
def test_script_names_what_is_wrong_and_writes_nothing(
    arguments: Callable[[Path, Path], list[object]],
    code: int,
    said: str,
    both: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*arguments(both, tmp_path)) == code
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"kept"}


def test_script_refuses_adapters_of_different_bases(
    both: Path, make_tiny_base: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = exported(str(make_tiny_base(tmp_path / "base", seed=1)), tmp_path / "other", 5, unet=["to_q"])
    assert run("--adapter", both, other, "--output_dir", tmp_path / "merged") == 2
    assert "expected adapters of one base" in capsys.readouterr().err
    base = ("--pretrained_model_name_or_path", tmp_path / "base")
    assert run("--adapter", both, other, "--output_dir", tmp_path / "merged", *base) == 2
    assert "which has other weights of the same shape" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
