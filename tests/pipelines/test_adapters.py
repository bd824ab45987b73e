"""An adapter's file restores what was trained, in plain diffusers too, and is refused where it would not."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import SettingsError
from pipelines.adapters import export_lora, load_adapter, read_adapter_metadata
from pipelines.components import Components, build_pipeline, load_components

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = [*ATTENTION, "conv1", "conv2", "conv_shortcut", "time_emb_proj"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]
FILE = "pytorch_lora_weights.safetensors"
FACTS = {"base": "tiny", "prediction_type": "epsilon", "concept": "sf_dry", "rank": 4, "alpha": 8}


def with_adapter(components: Components, targets: list[str] | str = ATTENTION, **options: Any) -> Components:
    """Give the U-Net an adapter whose factors are all random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        components.unet.add_adapter(
            LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets} | options), adapter_name="filrouge"
        )
    generator = torch.Generator().manual_seed(6)
    for name, parameter in components.unet.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return components


def with_text_adapter(components: Components, targets: list[str] = PROJECTIONS, **options: Any) -> Components:
    """Give the text encoder an adapter whose factors and magnitudes are all random."""
    module = components.text_encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets} | options)
        module.add_adapter(config, adapter_name="filrouge")
    generator = torch.Generator().manual_seed(9)
    for name, parameter in module.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return components


def parts_of(components: Components) -> dict[str, torch.nn.Module]:
    parts = {"unet": components.unet, "text_encoder": components.text_encoder}
    return {part: module for part, module in parts.items() if "filrouge" in getattr(module, "peft_config", {})}


def every_layer(module: torch.nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]


def facts_of(components: Components, **others: Any) -> dict[str, str]:
    return {"filrouge": json.dumps({**FACTS, "base_fingerprint": components.fingerprint} | others)}


@torch.no_grad()
def denoised(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    shapes = (2, 4, 8, 8), (2, 77, 32)
    latents, states = (torch.randn(shape, generator=generator).to(unet.dtype) for shape in shapes)
    return unet.eval()(latents, torch.tensor([10, 700]), states).sample


@torch.no_grad()
def encoded(text_encoder: torch.nn.Module) -> torch.Tensor:
    return text_encoder.eval()(torch.arange(77)[None] % 40)[0]


@pytest.fixture
def fresh(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture(scope="module")
def trained(tiny_base_dir: Path) -> Components:
    return with_adapter(load_components(str(tiny_base_dir)))


@pytest.fixture
def exported(trained: Components, tmp_path: Path) -> Path:
    return export_lora(tmp_path / "run", {"unet": trained.unet}, "filrouge", facts_of(trained))


def plain_pipeline(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def rewrite(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"} if metadata is None else metadata)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (ATTENTION, {}),
        (CONVOLUTIONS, {}),
        (CONVOLUTIONS, {"use_rslora": True}),
        (ATTENTION, {"use_dora": True}),
        (ATTENTION, {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3}}),
        (ATTENTION, {"lora_dropout": 0.1, "init_lora_weights": "gaussian"}),
        (r".*\.attn2\.to_[kv]", {}),
    ],
    ids=["attention", "convolutions", "rank-stabilised", "dora", "patterns", "dropout", "expression"],
)
def test_plain_diffusers_restores_the_adapter_to_the_bit(
    targets: list[str] | str, options: dict[str, Any], fresh: Components, tiny_base_dir: Path, tmp_path: Path
) -> None:
    before = denoised(fresh.unet)
    components = with_adapter(fresh, targets, **options)
    export_lora(tmp_path, {"unet": components.unet}, "filrouge", facts_of(components))
    pipeline = plain_pipeline(tiny_base_dir)
    pipeline.load_lora_weights(tmp_path)
    expected = denoised(components.unet)
    assert torch.equal(denoised(pipeline.unet), expected)
    assert (expected - before).abs().max() > 0.01
    names = [name for name in components.unet.state_dict() if "lora_A" in name]
    assert sum("lora_A" in name for name in pipeline.unet.state_dict()) == len(names)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_plain_diffusers_restores_adapters_of_every_layer(
    options: dict[str, Any], fresh: Components, tiny_base_dir: Path, tmp_path: Path
) -> None:
    names = every_layer(fresh.unet)
    with_adapter(fresh, names, **options)
    stored = load_file(export_lora(tmp_path, parts_of(fresh), "filrouge", {}))
    assert sum("lora_A" in key for key in stored) == len(names) > 80
    pipeline = plain_pipeline(tiny_base_dir)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(denoised(pipeline.unet), denoised(fresh.unet), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (PROJECTIONS, {}),
        (PROJECTIONS, {"r": 2, "lora_alpha": 5}),
        (PROJECTIONS, {"use_dora": True}),
        (PROJECTIONS, {"use_dora": True, "r": 1}),
        (PROJECTIONS, {"use_rslora": True}),
        (
            PROJECTIONS,
            {
                "rank_pattern": {"q_proj": 2},
                "alpha_pattern": {"q_proj": 3, "encoder.layers.1.self_attn.k_proj": 7},
            },
        ),
        ([*PROJECTIONS, "fc1", "fc2"], {}),
        (["fc1", "fc2"], {}),
    ],
    ids=["attention", "other alpha", "dora", "dora of rank 1", "rank-stabilised", "patterns", "all", "feed-forward"],
)
def test_plain_diffusers_and_our_loader_restore_the_text_encoder_too(
    targets: list[str], options: dict[str, Any], fresh: Components, tiny_base_dir: Path, tmp_path: Path
) -> None:
    before = encoded(fresh.text_encoder)
    components = with_text_adapter(with_adapter(fresh), targets, **options)
    stored = load_file(export_lora(tmp_path, parts_of(components), "filrouge", facts_of(components)))
    texts = [key for key in stored if key.startswith("text_encoder.")]
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in texts)
    assert sum("down" in key for key in texts) == 2 * len(targets)
    plain, ours = plain_pipeline(tiny_base_dir), build_pipeline(load_components(str(tiny_base_dir)))
    plain.load_lora_weights(tmp_path)
    load_adapter(ours, tmp_path, base_fingerprint=components.fingerprint)
    assert (encoded(components.text_encoder) - before).abs().max() > 0.01
    for pipeline in (plain, ours):
        for found, expected in (
            (denoised(pipeline.unet), denoised(components.unet)),
            (encoded(pipeline.text_encoder), encoded(components.text_encoder)),
        ):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_diffusers_loses_the_magnitudes_of_a_text_encoder_under_the_names_of_peft(
    fresh: Components, tiny_base_dir: Path, tmp_path: Path
) -> None:
    """Why the export does not use them there; fails when the libraries learn to read them."""
    components = with_text_adapter(fresh, use_dora=True)
    path = export_lora(tmp_path, {"text_encoder": components.text_encoder}, "filrouge", {})
    rewrite(
        path,
        {key.replace("vector.weight", "vector"): tensor for key, tensor in load_file(path).items()},
        read_adapter_metadata(path),
    )
    plain = plain_pipeline(tiny_base_dir)
    plain.load_lora_weights(tmp_path)
    assert (encoded(plain.text_encoder) - encoded(components.text_encoder)).abs().max() > 0.01
    ours = build_pipeline(load_components(str(tiny_base_dir)))
    load_adapter(ours, path)  # which puts in what is in the file
    torch.testing.assert_close(encoded(ours.text_encoder), encoded(components.text_encoder), atol=1e-6, rtol=0)


def test_alpha_is_lost_without_the_header(trained: Components, exported: Path, tiny_base_dir: Path) -> None:
    rewrite(exported, load_file(exported))
    pipeline = plain_pipeline(tiny_base_dir)
    pipeline.load_lora_weights(exported.parent)
    assert (denoised(pipeline.unet) - denoised(trained.unet)).abs().max() > 0.01


def test_our_loader_restores_the_adapter_to_the_bit(trained: Components, exported: Path, fresh: Components) -> None:
    rng = torch.get_rng_state()
    name = load_adapter(build_pipeline(fresh), exported.parent, base_fingerprint=fresh.fingerprint)
    assert torch.equal(denoised(fresh.unet), denoised(trained.unet))
    assert fresh.unet.peft_config[name].r == 4
    assert fresh.unet.peft_config[name].lora_alpha == 8
    assert torch.equal(torch.get_rng_state(), rng)


def test_our_loader_keeps_float32_factors_in_a_half_precision_model(
    exported: Path, fresh: Components, tiny_base_dir: Path
) -> None:
    # the way a run under mixed precision holds them
    live = load_components(str(tiny_base_dir))
    live.unet.to(torch.bfloat16)
    live = with_adapter(live)
    fresh.unet.to(torch.bfloat16)
    load_adapter(build_pipeline(fresh), exported)
    assert {p.dtype for name, p in fresh.unet.named_parameters() if "lora" in name} == {torch.float32}
    assert torch.equal(denoised(fresh.unet), denoised(live.unet))


@pytest.mark.parametrize(
    ("stored", "model", "kept"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_factors_of_both_parts_lose_no_precision(
    stored: torch.dtype, model: torch.dtype, kept: torch.dtype, fresh: Components, tiny_base_dir: Path, tmp_path: Path
) -> None:
    path = export_lora(tmp_path, parts_of(with_text_adapter(with_adapter(fresh))), "filrouge", {})
    factors = {key: tensor.to(stored) for key, tensor in load_file(path).items()}
    rewrite(path, factors, read_adapter_metadata(path))
    live = load_components(str(tiny_base_dir))
    for module in (live.unet, live.text_encoder):
        module.to(model)
    load_adapter(build_pipeline(live), path)
    for module, key in (
        (live.unet, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
        (live.text_encoder, "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
    ):
        adapted = {p.dtype for name, p in module.named_parameters() if "lora" in name}
        assert adapted == {kept}
        layer = module.get_submodule(key.removeprefix("text_encoder.text_model.").removeprefix("unet."))
        names = (f"{key}.lora_A.weight", f"{key}.lora_linear_layer.down.weight")
        assert torch.equal(layer.lora_A["adapter_0"].weight, next(factors[n] for n in names if n in factors).to(kept))


def test_header_names_ours_and_what_diffusers_reads(exported: Path, trained: Components) -> None:
    for given in (exported, exported.parent):
        metadata = read_adapter_metadata(given)
        assert json.loads(metadata["filrouge"]) == {**FACTS, "base_fingerprint": trained.fingerprint}
    with safe_open(exported, framework="pt") as tensors:
        assert tensors.metadata() == metadata
        assert tensors.metadata()["format"] == "pt"
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (4, 8)
    assert config["unet.target_modules"] == sorted(ATTENTION)


def test_file_holds_the_factors_in_float32_under_the_names_of_peft(exported: Path, trained: Components) -> None:
    factors = get_peft_model_state_dict(trained.unet, adapter_name="filrouge")
    stored = load_file(exported)
    assert stored.keys() == {f"unet.{name}" for name in factors}
    assert all(torch.equal(stored[f"unet.{name}"], factor) for name, factor in factors.items())


def test_equal_adapters_give_equal_bytes(trained: Components, tmp_path: Path) -> None:
    metadata = {f"key{number}": "value" for number in range(6)}
    written = {
        export_lora(tmp_path / str(number), {"unet": trained.unet}, "filrouge", metadata).read_bytes()
        for number in range(4)
    }
    assert len(written) == 1


def test_file_mode_follows_the_umask(trained: Components, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        path = export_lora(tmp_path, {"unet": trained.unet}, "filrouge", {})
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_weight_scales_what_the_adapter_adds(weight: float, tiny_base_dir: Path, tmp_path: Path) -> None:
    # one layer, so that the output is linear in the weight
    trained = with_adapter(load_components(str(tiny_base_dir)), "conv_out")
    export_lora(tmp_path, {"unet": trained.unet}, "filrouge", {})
    fresh = load_components(str(tiny_base_dir))
    without = denoised(fresh.unet)
    load_adapter(build_pipeline(fresh), tmp_path, weight=weight)
    torch.testing.assert_close(
        denoised(fresh.unet), without + weight * (denoised(trained.unet) - without), atol=1e-5, rtol=1e-4
    )


def test_the_adapter_loaded_last_is_the_active_one(
    trained: Components, exported: Path, fresh: Components, tmp_path: Path
) -> None:
    other = with_adapter(load_components(fresh.name), "conv_out")
    export_lora(tmp_path / "other", {"unet": other.unet}, "filrouge", {})
    pipeline = build_pipeline(fresh)
    names = [load_adapter(pipeline, tmp_path / "other"), load_adapter(pipeline, exported)]
    assert len(set(names)) == 2
    assert torch.equal(denoised(fresh.unet), denoised(trained.unet))
    pipeline.set_adapters(names, [1.0, 0.0])
    torch.testing.assert_close(denoised(fresh.unet), denoised(other.unet))


def test_two_adapters_add_weight_times_change_each(tiny_base_dir: Path, tmp_path: Path) -> None:
    """On one linear layer, base + w1 * d1 + w2 * d2, with d = alpha / rank * B A x."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(10))
    changes, folders = [], []
    for number, alpha in enumerate((8, 3)):
        trained = with_adapter(load_components(str(tiny_base_dir)), [layer], lora_alpha=alpha)
        for name, parameter in trained.unet.named_parameters():
            if "lora" in name:
                parameter.data = parameter.data * (number + 1)
        folders.append(tmp_path / str(number))
        stored = load_file(export_lora(folders[-1], {"unet": trained.unet}, "filrouge", {}))
        changes.append(
            alpha / 4 * x @ (stored[f"unet.{layer}.lora_B.weight"] @ stored[f"unet.{layer}.lora_A.weight"]).T
        )
    fresh = load_components(str(tiny_base_dir))
    base = fresh.unet.get_submodule(layer)(x)
    pipeline = build_pipeline(fresh)
    names = [load_adapter(pipeline, folder) for folder in folders]
    pipeline.set_adapters(names, [0.7, -1.5])
    found = fresh.unet.get_submodule(layer)(x)
    torch.testing.assert_close(found, base + 0.7 * changes[0] - 1.5 * changes[1], atol=1e-6, rtol=0)
    assert changes[0].abs().max() > 0.05


def test_adapters_of_different_parts_are_combined_and_told_apart(fresh: Components, tmp_path: Path) -> None:
    both = with_text_adapter(with_adapter(load_components(fresh.name)))
    words = with_text_adapter(load_components(fresh.name), ["q_proj", "fc1"])
    export_lora(tmp_path / "both", parts_of(both), "filrouge", {})
    export_lora(tmp_path / "words", parts_of(words), "filrouge", {})
    pipeline = build_pipeline(fresh)
    names = [load_adapter(pipeline, tmp_path / folder) for folder in ("both", "words")]
    for name, trained in zip(names, (both, words), strict=True):
        pipeline.set_adapters(name)
        torch.testing.assert_close(encoded(fresh.text_encoder), encoded(trained.text_encoder), atol=1e-6, rtol=0)
        torch.testing.assert_close(denoised(fresh.unet), denoised(trained.unet), atol=1e-6, rtol=0)


def test_adapters_of_the_text_encoder_made_elsewhere_load_too(fresh: Components, tmp_path: Path) -> None:
    source = with_adapter(load_components(fresh.name))
    source.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]), adapter_name="filrouge")
    with torch.no_grad():
        for name, parameter in source.text_encoder.named_parameters():
            if "lora" in name:
                parameter.fill_(0.1)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(
            get_peft_model_state_dict(source.unet, adapter_name="filrouge")
        ),
        text_encoder_lora_layers=get_peft_model_state_dict(source.text_encoder, adapter_name="filrouge"),
    )
    assert "filrouge" not in read_adapter_metadata(tmp_path)
    load_adapter(build_pipeline(fresh), tmp_path, base_fingerprint=fresh.fingerprint)
    ids = torch.arange(77)[None]
    assert torch.equal(fresh.text_encoder(ids)[0], source.text_encoder(ids)[0])


def relabel(path: Path, **facts: Any) -> None:
    metadata = read_adapter_metadata(path)
    rewrite(path, load_file(path), {**metadata, "filrouge": json.dumps(json.loads(metadata["filrouge"]) | facts)})


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: rewrite(
        path, {name.replace(old, new): t for name, t in load_file(path).items()}, read_adapter_metadata(path)
    )


def without(part: str) -> Callable[[Path], None]:
    return lambda path: rewrite(
        path, {name: t for name, t in load_file(path).items() if part not in name}, read_adapter_metadata(path)
    )


def in_names_that_lose_convolutions(path: Path) -> None:
    """Write the layers as diffusers' conversion names them, of which its loader finds only some (diffusers #14548)."""
    components = with_adapter(
        load_components(json.loads(read_adapter_metadata(path)["filrouge"])["base"]), ["conv_in", *ATTENTION]
    )
    factors = convert_state_dict_to_diffusers(get_peft_model_state_dict(components.unet, adapter_name="filrouge"))
    rewrite(path, {f"unet.{name}": factor.contiguous() for name, factor in factors.items()})


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "this file does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
    "pickled": (lambda path: torch.save({"a": torch.zeros(1)}, path), "is not a whole safetensors file"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not a whole safetensors file"),
    "other weights": (lambda path: relabel(path, base_fingerprint="0123"), "other weights of the same shape"),
    "other prediction": (
        lambda path: relabel(path, prediction_type="v_prediction"),
        "trained to predict v_prediction, this pipeline takes the U-Net to predict epsilon",
    ),
    "facts that are no JSON": (
        lambda path: rewrite(path, load_file(path), {"filrouge": "{"}),
        "its entry filrouge is not JSON",
    ),
    "facts that are a list": (
        lambda path: rewrite(path, load_file(path), {"filrouge": "[]"}),
        "its entry filrouge is not a table",
    ),
    "no adapter": (lambda path: rewrite(path, {"conv_in.weight": torch.zeros(2, 2)}), "0 first and 0 second factors"),
    "a factor missing": (without("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B"), "first and"),
    "one factor under another name": (
        renamed(
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B",
            "tnet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B",
        ),
        "lacks 1 factors of the layers that it adapts: unet.down_blocks.0",
    ),
    "a factor without axes": (
        lambda path: rewrite(
            path,
            {k: t.sum() if "attn2.to_k.lora_A" in k else t for k, t in load_file(path).items()},
            read_adapter_metadata(path),
        ),
        "of its layers do not exist in this model, or have other sizes",
    ),
    "numbers that are not finite": (
        lambda path: rewrite(
            path,
            {k: t * float("nan") if "mid_block" in k else t for k, t in load_file(path).items()},
            read_adapter_metadata(path),
        ),
        "holds numbers that are not finite",
    ),
    "a layer of another model": (
        renamed("mid_block", "end_block"),
        "4 of its layers do not exist|8 of its layers do not",
    ),
    "a part of another model": (renamed("unet.mid_block", "transformer.mid_block"), "of which"),
    "names that lose layers": (in_names_that_lose_convolutions, "of which"),
}


@pytest.fixture
def exported_twofold(fresh: Components, tmp_path: Path) -> Path:
    """Return the file of an adapter with magnitudes of both parts."""
    live = load_components(fresh.name)
    with_text_adapter(with_adapter(live, CONVOLUTIONS, use_dora=True), use_dora=True)
    return export_lora(tmp_path / "both", parts_of(live), "filrouge", facts_of(live))


def configured(**fields: Any) -> Callable[[Path], None]:
    """Return what writes other fields into the configuration in an adapter's header, dots for double underscores."""

    def change(path: Path) -> None:
        metadata = read_adapter_metadata(path)
        others = {field.replace("__", "."): value for field, value in fields.items()}
        config = json.loads(metadata["lora_adapter_metadata"]) | others
        rewrite(path, load_file(path), {**metadata, "lora_adapter_metadata": json.dumps(config)})

    return change


def transposed(part: str) -> Callable[[Path], None]:
    return lambda path: rewrite(
        path, {name: t.T.contiguous() if part in name else t for name, t in load_file(path).items()}
    )


Q_PROJ = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
BAD_TWOFOLD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a factor of the text encoder missing": (without(f"{Q_PROJ}.lora_linear_layer.up"), "first and"),
    "a layer of another text encoder": (renamed("layers.1.", "layers.7."), "4 of its layers do not exist"),
    "other sizes in the text encoder": (transposed(f"{Q_PROJ}.lora_linear_layer.down"), "1 of its layers do not exist"),
    "another text encoder": (renamed("text_encoder.", "text_encoder_2."), "of which"),
    "a magnitude missing": (without(f"{Q_PROJ}.lora_magnitude_vector"), r"magnitudes \(DoRA\) for"),
    "magnitudes of a convolution missing": (without("conv1.lora_magnitude_vector"), r"magnitudes \(DoRA\) for"),
    "magnitudes that the header denies": (configured(unet__use_dora=False), r"magnitudes \(DoRA\) for"),
    "a rank that the header denies": (configured(text_encoder__r=2), "diffusers cannot load it|found no place"),
    "layers that the header denies": (configured(text_encoder__target_modules=["q_proj"]), "of which"),
    "kohya's form": (
        lambda path: rewrite(path, {"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4, 3, 3)}),
        "convert_adapter.py --to diffusers --adapter ",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), BAD_TWOFOLD.values(), ids=BAD_TWOFOLD)
def test_a_file_of_both_parts_is_restored_whole_or_not_at_all(
    spoil: Callable[[Path], object], said: str, exported_twofold: Path, fresh: Components
) -> None:
    pictures, words = denoised(fresh.unet), encoded(fresh.text_encoder)
    spoil(exported_twofold)
    pipeline = build_pipeline(fresh)
    with pytest.raises(SettingsError, match=said):
        load_adapter(pipeline, exported_twofold, base_fingerprint=fresh.fingerprint)
    assert not pipeline.get_list_adapters()
    assert torch.equal(denoised(fresh.unet), pictures)
    assert torch.equal(encoded(fresh.text_encoder), words)


@pytest.mark.parametrize("use_dora", [False, True])
def test_plain_diffusers_loads_both_parts_without_a_word(use_dora: bool, tiny_base_dir: Path, tmp_path: Path) -> None:
    """transformers (5.23) takes for the adapter's own whatever layer has the adapter's name in its name.

    So it tells of base layers that it misses where the name is "a", say; nothing in a file can change that.
    """
    live = load_components(str(tiny_base_dir))
    with_text_adapter(with_adapter(live, ATTENTION, use_dora=use_dora), use_dora=use_dora)
    export_lora(tmp_path, parts_of(live), "filrouge", facts_of(live))

    def told(**name: str) -> str:
        lines: list[str] = []
        logger, handler = logging.getLogger("transformers.integrations.peft"), logging.Handler(logging.WARNING)
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        level = logger.level
        logger.setLevel(logging.WARNING)
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
        pipeline.load_lora_weights(tmp_path, **name)
        logger.setLevel(level)
        logger.removeHandler(handler)
        return "\n".join(lines)

    assert told() == ""
    assert "base_layer" in told(adapter_name="a")


def test_the_header_names_no_place_of_this_machine(exported_twofold: Path, tiny_base_dir: Path) -> None:
    config = json.loads(read_adapter_metadata(exported_twofold)["lora_adapter_metadata"])
    assert not [field for field, value in config.items() if str(tiny_base_dir) in str(value)]


@pytest.mark.parametrize(("spoil", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_restored_is_refused(
    spoil: Callable[[Path], object], said: str, exported: Path, fresh: Components
) -> None:
    relabel(exported, base=fresh.name)
    before = denoised(fresh.unet)
    spoil(exported)
    with pytest.raises(SettingsError, match=said) as caught:
        load_adapter(build_pipeline(fresh), exported, base_fingerprint=fresh.fingerprint)
    assert caught.value.where == str(exported)
    assert torch.equal(denoised(fresh.unet), before)


def test_an_adapter_for_another_width_is_refused_in_one_line(
    exported: Path, make_tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    wide = load_components(str(make_tiny_base(tmp_path / "wide", cross_attention_dim=64)))
    with pytest.raises(SettingsError) as caught:
        load_adapter(build_pipeline(wide), exported, base_fingerprint=wide.fingerprint)
    assert str(caught.value) == f"{exported}: trained on cross_attention_dim 32, this model has 64."


def test_widths_of_known_families_are_named(exported: Path, fresh: Components) -> None:
    tensors = {
        name: torch.zeros(4, 768) if "attn2.to_k.lora_A" in name else t for name, t in load_file(exported).items()
    }
    rewrite(exported, tensors)
    with pytest.raises(SettingsError, match=r"trained on cross_attention_dim 768 \(SD 1.x\), this model has 32"):
        load_adapter(build_pipeline(fresh), exported)


def test_a_base_of_the_same_shape_is_told_apart(
    exported: Path, make_tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    other = load_components(str(make_tiny_base(tmp_path / "other", seed=1)))
    with pytest.raises(SettingsError, match="trained on tiny, which has other weights of the same shape"):
        load_adapter(build_pipeline(other), exported, base_fingerprint=other.fingerprint)
    load_adapter(build_pipeline(other), exported)  # no fingerprint: the user answers for it


def test_a_base_with_another_autoencoder_is_told_apart(exported: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base_dir, tmp_path / "base")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor / 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    other = load_components(str(folder))
    with pytest.raises(SettingsError, match=r"this model differs from it in vae\. Give the base"):
        load_adapter(build_pipeline(other), exported, base_fingerprint=other.fingerprint)


def test_a_file_of_another_ending_is_refused(exported: Path, fresh: Components) -> None:
    other = exported.rename(exported.with_suffix(".st"))
    with pytest.raises(SettingsError, match=r"ends with \.safetensors\. Rename it"):
        load_adapter(build_pipeline(fresh), other)


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    for given, where in ((tmp_path, tmp_path / FILE), (tmp_path / "nowhere", tmp_path / "nowhere")):
        with pytest.raises(SettingsError) as caught:
            read_adapter_metadata(given)
        assert caught.value.where == str(where)
