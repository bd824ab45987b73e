"""An adapter in kohya's form says the same as in ours, by the form's definition, and comes back to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from data.errors import OutputError, SettingsError
from data.exits import exit_code
from pipelines import convert_adapter
from pipelines.adapters import export_lora, load_adapter, read_adapter, read_adapter_metadata
from pipelines.components import Components, build_pipeline, load_components
from pipelines.kohya import apply_kohya, from_kohya, to_kohya

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]
PATTERNS = {"rank_pattern": {"to_q": 2, "q_proj": 2}, "alpha_pattern": {"to_q": 3, "layers.1.self_attn.q_proj": 7}}
CASES: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "attention": (ATTENTION, [], {}),
    "feed-forward": ([*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"], [], {}),
    "convolutions": ([*ATTENTION, *CONVOLUTIONS, "conv_in", "conv_out", "linear_1"], [], {}),
    "text encoder": (ATTENTION, [*PROJECTIONS, "fc1", "fc2"], {}),
    "patterns": (ATTENTION, PROJECTIONS, PATTERNS),
    "dora": ([*ATTENTION, *CONVOLUTIONS], PROJECTIONS, {"use_dora": True}),
    "rank-stabilised": (ATTENTION, PROJECTIONS, {"use_rslora": True}),
}


def adapted(components: Components, unet: list[str], text_encoder: list[str], **options: Any) -> Components:
    """Give both parts adapters that are all random, magnitudes within a fifth of the rows' norms."""
    generator = torch.Generator().manual_seed(5)
    for module, targets in ((components.unet, unet), (components.text_encoder, text_encoder)):
        if not targets:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets} | options)
            module.add_adapter(config, adapter_name="filrouge")
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.data = parameter.data * (1 + 0.1 * noise)
            elif "lora" in name:
                parameter.data = noise * 0.1
    return components


def exported(components: Components, folder: Path, **facts: Any) -> Path:
    parts = {"unet": components.unet, "text_encoder": components.text_encoder}
    parts = {part: module for part, module in parts.items() if getattr(module, "peft_config", {})}
    told = {"base": components.name, "base_fingerprint": components.fingerprint, **facts}
    return export_lora(folder, parts, "filrouge", {"filrouge": json.dumps(told), "note": "kept"})


@torch.no_grad()
def outputs(components: Components) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    latents, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 77, 32)))
    return (
        components.unet.eval()(latents, torch.tensor([10, 700]), states).sample,
        components.text_encoder.eval()(torch.arange(77)[None] % 40)[0],
    )


def assert_same(found: Components, expected: Components, atol: float = 1e-6) -> None:
    for a, b in zip(outputs(found), outputs(expected), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture
def ours(tiny_base_dir: Path, tmp_path: Path) -> Path:
    """Return a file of ours: both parts, ranks and alphas that differ between layers."""
    return exported(adapted(load_components(str(tiny_base_dir)), *CASES["patterns"][:2], **PATTERNS), tmp_path / "run")


@pytest.fixture
def kohya(ours: Path, tmp_path: Path) -> Path:
    return to_kohya(ours, tmp_path / "kohya.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_both_forms_say_the_same_and_return_to_the_bit(case: str, base: Components, tmp_path: Path) -> None:
    unet, text_encoder, options = CASES[case]
    trained = adapted(load_components(base.name), unet, text_encoder, **options)
    source = exported(trained, tmp_path)
    kohya = to_kohya(source, tmp_path / "new" / "kohya.safetensors")
    returned = from_kohya(kohya, tmp_path / "returned.safetensors", base)

    assert_same(apply_kohya(base, kohya), trained, atol=1e-5)  # the sums are taken in another order
    untouched = outputs(base)
    load_adapter(build_pipeline(base), returned, base_fingerprint=base.fingerprint)
    assert_same(base, trained)
    assert (outputs(base)[0] - untouched[0]).abs().max() > 0.01
    stored, back = load_file(source), load_file(returned)
    assert stored.keys() == back.keys()
    assert all(torch.equal(stored[key], back[key]) for key in stored)
    entries = read_adapter_metadata(returned)
    assert (entries["filrouge"], entries["note"]) == (read_adapter_metadata(source)["filrouge"], "kept")
    assert not any(key.startswith("ss_") for key in entries)


@pytest.mark.parametrize("case", ["attention", "convolutions", "text encoder"])
def test_plain_diffusers_reads_one_alpha_for_all_layers(case: str, base: Components, tmp_path: Path) -> None:
    unet, text_encoder, options = CASES[case]
    trained = adapted(load_components(base.name), unet, text_encoder, **options)
    to_kohya(exported(trained, tmp_path), tmp_path / "kohya" / "k.safetensors")
    build_pipeline(base).load_lora_weights(tmp_path / "kohya", weight_name="k.safetensors")
    assert_same(base, trained)


@pytest.mark.parametrize("case", ["patterns", "dora"])
def test_plain_diffusers_loses_alphas_of_single_layers_and_magnitudes(
    case: str, base: Components, tmp_path: Path
) -> None:
    """Why our loader asks for a conversion; fails when diffusers learns to read them."""
    unet, text_encoder, options = CASES[case]
    trained = adapted(load_components(base.name), unet, text_encoder, **options)
    to_kohya(exported(trained, tmp_path), tmp_path / "kohya" / "k.safetensors")
    build_pipeline(base).load_lora_weights(tmp_path / "kohya", weight_name="k.safetensors")
    assert all((a - b).abs().max() > 0.01 for a, b in zip(outputs(base), outputs(trained), strict=True))


def test_names_are_those_of_the_modules_with_underscores(base: Components, tmp_path: Path) -> None:
    source = exported(adapted(base, [*ATTENTION, "ff.net.0.proj", "conv1"], ["q_proj", "fc1"]), tmp_path)
    names = {key.partition(".")[0] for key in load_file(to_kohya(source, tmp_path / "kohya.safetensors"))}
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    assert {
        f"{block}_attn1_to_q",
        f"{block}_attn2_to_out_0",
        f"{block}_ff_net_0_proj",
        "lora_unet_mid_block_resnets_1_conv1",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_1_mlp_fc1",
    } <= names
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_encoder_layers_")) for name in names)


def test_each_layer_has_its_own_rank_and_alpha(kohya: Path) -> None:
    stored = load_file(kohya)
    scales = {
        name: (stored[f"lora_{name}.lora_down.weight"].shape[0], float(stored[f"lora_{name}.alpha"]))
        for name in (
            "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
            "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k",
            "te_text_model_encoder_layers_0_self_attn_q_proj",
            "te_text_model_encoder_layers_1_self_attn_q_proj",
            "te_text_model_encoder_layers_1_self_attn_k_proj",
        )
    }
    assert list(scales.values()) == [(2, 3.0), (4, 6.0), (2, 6.0), (2, 7.0), (4, 6.0)]
    assert all(stored[key].shape == () for key in stored if key.endswith(".alpha"))


def test_header_says_what_the_web_uis_read_and_keeps_ours(kohya: Path, ours: Path) -> None:
    entries = read_adapter_metadata(kohya)
    assert entries.pop("format") == "pt"
    assert entries == {
        "filrouge": read_adapter_metadata(ours)["filrouge"],
        "note": "kept",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "6.0",
    }


def test_rank_stabilised_alpha_is_written_as_plain_alpha(base: Components, tmp_path: Path) -> None:
    source = exported(adapted(base, ["to_q"], [], use_rslora=True), tmp_path)
    stored = load_file(to_kohya(source, tmp_path / "kohya.safetensors"))
    assert {float(stored[key]) for key in stored if key.endswith(".alpha")} == {6 * math.sqrt(4)}


def test_convolutions_have_four_axes_and_magnitudes_a_column(base: Components, tmp_path: Path) -> None:
    source = exported(adapted(base, ["conv1", "time_emb_proj"], [], use_dora=True), tmp_path)
    stored = load_file(to_kohya(source, tmp_path / "kohya.safetensors"))
    resnet = "lora_unet_mid_block_resnets_0"
    assert {key.removeprefix(f"{resnet}_"): tuple(stored[key].shape) for key in stored if key.startswith(resnet)} == {
        "conv1.alpha": (),
        "conv1.dora_scale": (64, 1, 1, 1),
        "conv1.lora_down.weight": (4, 64, 3, 3),
        "conv1.lora_up.weight": (64, 4, 1, 1),
        "time_emb_proj.alpha": (),
        "time_emb_proj.dora_scale": (64, 1),
        "time_emb_proj.lora_down.weight": (4, 128),
        "time_emb_proj.lora_up.weight": (64, 4),
    }


def test_definition_in_closed_form(base: Components, tmp_path: Path) -> None:
    """The weight of one layer becomes W + alpha / rank * up down."""
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 64, generator=generator), torch.randn(64, 2, generator=generator)
    path = tmp_path / "k.safetensors"
    save_file(
        {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(3)}, path
    )
    before = base.unet.mid_block.attentions[0].proj_in.weight
    after = apply_kohya(base, path).unet.mid_block.attentions[0].proj_in.weight
    torch.testing.assert_close(after.flatten(1), before.flatten(1) + 1.5 * up @ down)
    assert torch.equal(before, load_components(base.name).unet.mid_block.attentions[0].proj_in.weight)


def test_equal_adapters_give_equal_bytes(ours: Path, base: Components, tmp_path: Path) -> None:
    written = {to_kohya(ours.parent, tmp_path / str(number)).read_bytes() for number in range(3)}
    assert len(written) == 1
    returned = {from_kohya(tmp_path / "0", tmp_path / f"{number}.st", base).read_bytes() for number in range(3)}
    assert len(returned) == 1


def resaved(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors, metadata = read_adapter(path)
    path.unlink()
    save_file(change(tensors), path, metadata=metadata)


def test_files_in_half_precision_keep_it_and_are_computed_in_float32(
    kohya: Path, base: Components, tmp_path: Path
) -> None:
    resaved(kohya, lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})
    returned = from_kohya(kohya, tmp_path / "returned.safetensors", base)
    assert {tensor.dtype for tensor in load_file(returned).values()} == {torch.float16}
    expected = apply_kohya(base, kohya)
    load_adapter(build_pipeline(base), returned)
    assert_same(base, expected, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_a_layer_without_alpha_has_its_rank_as_alpha(
    alpha: float | None, kohya: Path, base: Components, tmp_path: Path
) -> None:
    others = {} if alpha is None else {"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(alpha)}
    resaved(kohya, lambda tensors: {k: t for k, t in tensors.items() if not k.endswith(".alpha")})
    if others:
        resaved(kohya, lambda tensors: tensors | {k: torch.tensor(0.0) for k in alphas_of(tensors)})
    config = json.loads(
        read_adapter_metadata(from_kohya(kohya, tmp_path / "r.safetensors", base))["lora_adapter_metadata"]
    )
    for part in ("unet", "text_encoder"):
        assert (config[f"{part}.r"], config[f"{part}.lora_alpha"]) == (4, 4)
        assert config[f"{part}.rank_pattern"] == config[f"{part}.alpha_pattern"]


def alphas_of(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [key.replace("lora_down.weight", "alpha") for key in tensors if key.endswith("lora_down.weight")]


def test_matrices_of_small_convolutions_and_square_axes_of_linear_layers_are_taken(
    base: Components, tmp_path: Path
) -> None:
    trained = adapted(load_components(base.name), ["proj_in", "to_q"], [])
    kohya = to_kohya(exported(trained, tmp_path), tmp_path / "kohya.safetensors")

    def other(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if "proj_in" in key:
            return tensor.flatten(1) if tensor.ndim == 4 else tensor
        return tensor[:, :, None, None] if tensor.ndim == 2 else tensor

    resaved(kohya, lambda tensors: {key: other(key, tensor).contiguous() for key, tensor in tensors.items()})
    load_adapter(build_pipeline(base), from_kohya(kohya, tmp_path / "r.safetensors", base))
    assert_same(base, trained)


def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if part not in key}


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def with_also(**others: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {key.replace("__", "."): tensor for key, tensor in others.items()}


TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
Q_PROJ = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
BAD_KOHYA: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "other form": (lambda _: {"unet.conv_in.lora_A.weight": torch.zeros(2, 2)}, "is not in kohya's form"),
    "layer of another model": (renamed("mid_block", "middle"), "no place in .*lora_unet_middle_attentions_0"),
    "names of diffusers": (renamed("lora_te_text_model_", "lora_te1_"), "no place in .*lora_te1_encoder_layers_0"),
    "LoHa": (with_also(**{f"{TO_Q}__hada_w1_a": torch.zeros(2, 2)}), rf"no place in .*{TO_Q}.hada_w1_a"),
    "stranger": (with_also(stranger=torch.zeros(2)), "no place in .*: stranger"),
    "a factor missing": (
        without(f"{TO_Q}.lora_up"),
        r"lacks the second factor of unet.mid_block.*attn1.to_q; expected",
    ),
    "both factors missing": (without(f"{Q_PROJ}.lora"), "gives text_encoder.encoder.*q_proj an alpha and no factors"),
    "other sizes": (with_also(**{f"{TO_Q}__lora_down__weight": torch.zeros(2, 7)}), rf"shapes do not fit .*{TO_Q}"),
    "other ranks": (
        with_also(**{f"{TO_Q}__lora_down__weight": torch.zeros(3, 64)}),
        "two factors of unet.*to_q have the ranks 3 and 2",
    ),
    "magnitudes of columns": (
        with_also(**{f"{Q_PROJ}__dora_scale": torch.ones(1, 32)}),
        rf"shapes do not fit .*{Q_PROJ}.dora_scale",
    ),
    "some magnitudes": (with_also(**{f"{Q_PROJ}__dora_scale": torch.ones(32, 1)}), "1 of 8 layers of the text_encoder"),
}


@pytest.mark.parametrize(("change", "said"), BAD_KOHYA.values(), ids=BAD_KOHYA)
def test_what_has_no_place_is_named_and_nothing_written(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    said: str,
    kohya: Path,
    base: Components,
    tmp_path: Path,
) -> None:
    resaved(kohya, change)
    with pytest.raises(SettingsError, match=said) as caught:
        from_kohya(kohya, tmp_path / "returned.safetensors", base)
    assert caught.value.where == str(kohya)
    assert not (tmp_path / "returned.safetensors").exists()


BAD_OURS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "kohya's form": (lambda _: {f"{TO_Q}.lora_down.weight": torch.zeros(2, 2)}, "is in kohya's form already"),
    "bias": (with_also(unet__conv_in__lora_B__bias=torch.zeros(2)), "no factors .*: unet.conv_in.lora_B.bias"),
    "a factor missing": (without("0.attn1.to_q.lora_B"), "lacks the second factor of unet"),
}


@pytest.mark.parametrize(("change", "said"), BAD_OURS.values(), ids=BAD_OURS)
def test_what_kohyas_form_cannot_hold_is_named(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str, ours: Path, tmp_path: Path
) -> None:
    resaved(ours, change)
    with pytest.raises(SettingsError, match=said):
        to_kohya(ours, tmp_path / "kohya.safetensors")
    assert not (tmp_path / "kohya.safetensors").exists()


def test_a_header_that_cannot_be_read_is_named(ours: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"unet.no_such_field": 1}'):
        tensors, metadata = read_adapter(ours)
        ours.unlink()
        save_file(tensors, ours, metadata={**metadata, "lora_adapter_metadata": text})
        with pytest.raises(SettingsError, match="its entry lora_adapter_metadata cannot be read"):
            to_kohya(ours, tmp_path / "kohya.safetensors")


def test_script_converts_there_and_back_and_writes_over_nothing(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ours.parent
    convert_adapter.main(["--adapter", str(run), "--to", "kohya"])
    kohya = run / "pytorch_lora_weights_kohya.safetensors"
    assert f"{kohya}: both forms were loaded" in capsys.readouterr().out
    convert_adapter.main(["--adapter", str(kohya), "--to", "diffusers", "--output", str(tmp_path / "back.safetensors")])
    stored, back = load_file(ours), load_file(tmp_path / "back.safetensors")
    assert stored.keys() == back.keys()
    assert all(torch.equal(stored[key], back[key]) for key in stored)
    written = kohya.read_bytes()
    with pytest.raises(OutputError, match="nothing is written over"):
        convert_adapter.main(["--adapter", str(run), "--to", "kohya"])
    assert kohya.read_bytes() == written
    assert sorted(path.name for path in run.iterdir()) == [ours.name, kohya.name]


def test_script_keeps_no_file_that_says_something_else(
    ours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.kohya._alpha", lambda _config, _layer, rank: 1.01 * rank)
    arguments = ["--adapter", str(ours), "--to", "kohya"]
    assert exit_code(lambda: convert_adapter.main(arguments), "convert_adapter") == 4
    assert "Nothing was kept" in capsys.readouterr().err
    assert [path.name for path in ours.parent.iterdir()] == [ours.name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "kohya"], "the following arguments are required: --adapter"),
        (["--adapter", "nowhere", "--to", "kohya"], "nowhere: this file does not exist"),
        (["--adapter", "nowhere", "--to", "webui"], "invalid choice: 'webui'"),
    ],
)
def test_script_names_wrong_options(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: convert_adapter.main(arguments), "convert_adapter") == 2
    assert said in capsys.readouterr().err
