"""Loading a base model: what comes back, and every way in which a folder or an id cannot be one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from data.errors import SettingsError
from pipelines.base_folders import RETIRED, SWATCH
from pipelines.components import Components, build_pipeline, load_components
from pipelines.conditioning import TextConditioner
from pipelines.spaces import LatentSpace

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def components(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture
def base_copy(tiny_base_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_dir, tmp_path / "base"))


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def drop(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def test_parts_are_frozen_float32_and_in_evaluation_mode(components: Components) -> None:
    for module in (components.unet, components.vae, components.text_encoder):
        assert not module.training
        assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(torch.float32, False)}


def test_weights_and_schedule_are_those_of_the_folder(components: Components, tiny_base_dir: Path) -> None:
    stored = load_file(tiny_base_dir / UNET)
    assert components.unet.state_dict().keys() == stored.keys()
    assert all(torch.equal(components.unet.state_dict()[name], tensor) for name, tensor in stored.items())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # "scaled_linear"
    torch.testing.assert_close(components.scheduler.alphas_cumprod, (1 - betas).cumprod(0))
    assert (components.prediction_type, components.resolution, components.vae_scale_factor) == ("epsilon", 32, 4)
    assert components.name == str(tiny_base_dir)


def test_pipeline_draws_what_plain_diffusers_draws_from_the_folder(components: Components, tiny_base_dir: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    ours = build_pipeline(components)
    assert isinstance(ours.scheduler, DDIMScheduler)
    images = [
        pipeline(
            "a dry slice", generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np"
        ).images
        for pipeline in (plain, ours)
    ]
    assert (images[0] == images[1]).all()


def test_a_saved_pipeline_names_no_folder_of_the_machine_it_was_made_on(
    components: Components, tiny_base_dir: Path, tmp_path: Path
) -> None:
    build_pipeline(components).save_pretrained(tmp_path)
    for path in tmp_path.rglob("*.json"):
        assert str(tiny_base_dir) not in path.read_text(encoding="utf-8"), path
    for path in SWATCH.rglob("*config.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_pipeline_holds_the_live_parts(components: Components) -> None:
    pipeline = build_pipeline(components)
    assert pipeline.unet is components.unet
    assert pipeline.vae is components.vae
    assert pipeline.text_encoder is components.text_encoder
    assert pipeline.scheduler is not components.sampler


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_prediction_type_of_the_folder_is_kept(
    prediction_type: str, make_tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    components = load_components(str(make_tiny_base(tmp_path / "base", prediction_type=prediction_type)))
    assert components.prediction_type == prediction_type
    assert not components.predicts_otherwise
    assert build_pipeline(components).scheduler.config.prediction_type == prediction_type


def test_predicting_otherwise_reaches_the_pipeline_and_no_other_components(components: Components) -> None:
    other = components.predicting("v_prediction")
    assert (other.prediction_type, other.predicts_otherwise) == ("v_prediction", True)
    assert build_pipeline(other).scheduler.config.prediction_type == "v_prediction"
    given = PNDMScheduler.from_config(components.sampler.config)
    assert build_pipeline(other, given).scheduler.config.prediction_type == "v_prediction"
    assert (components.prediction_type, components.sampler.config.prediction_type) == ("epsilon", "epsilon")
    with pytest.raises(SettingsError, match="found noise"):
        components.predicting("noise")


OLD_ATTENTION = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def old_names(name: str) -> str:
    """Return the name that a weight has in the files of Stable Diffusion 1.x."""
    for new, old in OLD_ATTENTION.items():
        name = name.replace(new, old)
    return name


def test_files_with_the_names_of_stable_diffusion_1_load_completely(components: Components, base_copy: Path) -> None:
    edit_weights(
        base_copy / TEXT,
        lambda tensors: {
            **{f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()},
            "text_model.embeddings.position_ids": torch.arange(77)[None],
        },
    )
    edit_weights(base_copy / VAE, lambda tensors: {old_names(name): tensor for name, tensor in tensors.items()})
    loaded = load_components(str(base_copy))
    for part in ("text_encoder", "vae"):
        new, old = getattr(loaded, part).state_dict(), getattr(components, part).state_dict()
        assert new.keys() == old.keys()
        assert all(torch.equal(new[name], old[name]) for name in old)


BAD_FOLDERS: dict[str, tuple[Spoil, list[str]]] = {
    "no U-Net": (lambda base: shutil.rmtree(base / "unet"), ["lacks unet/;"]),
    "several parts missing": (
        lambda base: [shutil.rmtree(base / part) for part in ("unet", "tokenizer", "scheduler")],
        ["lacks unet/, tokenizer/, scheduler/;"],
    ),
    "a part and a file missing": (
        lambda base: [shutil.rmtree(base / "vae"), (base / TEXT).unlink()],
        ["2 problems", "lacks vae/;", "text_encoder/ holds no model.safetensors"],
    ),
    "pickled weights only": (
        lambda base: (base / UNET).rename(base / "unet/diffusion_pytorch_model.bin"),
        ["found diffusion_pytorch_model.bin", "Pickled weights are refused"],
    ),
    "another variant": (
        lambda base: (base / UNET).rename(base / "unet/diffusion_pytorch_model.fp16.safetensors"),
        ["Give --variant fp16."],
    ),
    "no config": (lambda base: (base / "vae/config.json").unlink(), ["vae/config.json is missing"]),
    "broken config": (lambda base: (base / "vae/config.json").write_text("{"), ["vae/config.json is not JSON"]),
    "config that is a list": (lambda base: (base / "unet/config.json").write_text("[]"), ["holds no settings"]),
    "widths that differ": (
        lambda base: edit_json(base / "unet/config.json", cross_attention_dim=768),
        ["cross_attention_dim 768", "hidden_size 32"],
    ),
    "inpainting U-Net": (
        lambda base: edit_json(base / "unet/config.json", in_channels=9),
        ["takes 9 channels", "gives 4"],
    ),
    "other autoencoder": (
        lambda base: edit_json(base / "vae/config.json", _class_name="VQModel"),
        ["vae/ is a VQModel, expected a AutoencoderKL"],
    ),
    "a U-Net weight dropped": (
        lambda base: edit_weights(base / UNET, drop("conv_in.weight")),
        ["unet/ lacks 1 of its weights (conv_in.weight)"],
    ),
    "weights dropped in two parts": (
        lambda base: [
            edit_weights(base / VAE, drop("decoder.conv_in.weight", "decoder.conv_in.bias")),
            edit_weights(base / TEXT, drop("text_model.final_layer_norm.weight", "final_layer_norm.weight")),
        ],
        ["vae/ lacks 2 of its weights", "text_encoder/ lacks 1 of its weights"],
    ),
    "file cut short": (
        lambda base: (base / UNET).write_bytes((base / UNET).read_bytes()[:100_000]),
        ["unet/ cannot be read"],
    ),
    "unknown scheduler": (
        lambda base: edit_json(base / "scheduler/scheduler_config.json", _class_name="FlowMatchScheduler"),
        ["found the scheduler FlowMatchScheduler"],
    ),
    "text encoder for fewer tokens": (
        lambda base: [
            edit_json(base / "text_encoder/config.json", vocab_size=100),
            edit_weights(base / TEXT, lambda ts: {n: t[:100] if "token_emb" in n else t for n, t in ts.items()}),
        ],
        ["tokens and the text encoder 100"],
    ),
}


@pytest.mark.parametrize(("spoil", "said"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_is_no_base_is_refused_with_its_reasons(spoil: Spoil, said: list[str], base_copy: Path) -> None:
    spoil(base_copy)
    with pytest.raises(SettingsError) as caught:
        load_components(str(base_copy))
    assert str(base_copy) in str(caught.value)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(("part", "value"), [(UNET, torch.inf), (VAE, torch.nan), (TEXT, -torch.inf)])
def test_a_part_with_a_number_that_is_not_finite_is_refused(part: str, value: float, base_copy: Path) -> None:
    """In the autoencoder it let a whole run train, and was then taken for a fault of the training."""

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = sorted(tensors)[-1]
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value
        return tensors

    edit_weights(base_copy / part, spoil)
    with pytest.raises(SettingsError, match=rf"{part.partition('/')[0]}/ holds numbers that are not finite, in "):
        load_components(str(base_copy))


def test_a_variant_is_loaded_by_its_name_only(base_copy: Path, components: Components) -> None:
    for part in (UNET, VAE, TEXT):
        (base_copy / part).rename(base_copy / part.replace(".safetensors", ".fp16.safetensors"))
    assert load_components(str(base_copy), variant="fp16").fingerprint == components.fingerprint
    with pytest.raises(SettingsError, match=r"3 problems"):
        load_components(str(base_copy))


def test_a_variant_that_is_not_there_is_refused(tiny_base_dir: Path) -> None:
    with pytest.raises(SettingsError, match=r"no diffusion_pytorch_model.fp16.safetensors.*Leave --variant out"):
        load_components(str(tiny_base_dir), variant="fp16")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("swotch", "expected swatch, a folder, or a hub id"),
        ("CompVis/stable-diffusion-v1-4", "not in the cache"),
        ("CompVis/stable-diffusion-v1-4", "unset HF_HUB_OFFLINE"),
        ("runs/my-base", "no folder of this name exists"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_at_once(name: str, said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(SettingsError, match=said):
        load_components(name)
    assert time.monotonic() - begun < 5


def test_a_single_file_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    with pytest.raises(SettingsError, match="from_single_file"):
        load_components(str(tmp_path / "v1-5.safetensors"))


@pytest.mark.parametrize("retired", RETIRED)
def test_a_retired_id_is_replaced_with_a_warning(retired: str) -> None:
    with (
        pytest.warns(UserWarning, match=f"{retired} is gone.*{RETIRED[retired]}"),
        pytest.raises(SettingsError) as caught,
    ):
        load_components(retired)
    assert caught.value.where == RETIRED[retired]


def test_a_hub_id_is_loaded_from_the_cache(
    tiny_base_dir: Path, components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--some-base"
    shutil.copytree(tiny_base_dir, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = load_components("someone/some-base")
    assert (loaded.name, loaded.source) == ("someone/some-base", "someone/some-base")
    assert loaded.fingerprint == components.fingerprint
    shutil.rmtree(repository / "snapshots" / commit / "vae")
    with pytest.raises(SettingsError, match=r"someone/some-base \(in the cache: .*lacks vae/"):
        load_components("someone/some-base", revision=commit)


def test_swatch_is_the_folder_of_the_package(
    tiny_base_dir: Path, components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SWATCH.parts[-2:] == ("pipelines", "swatch")
    monkeypatch.setattr("pipelines.base_folders.SWATCH", tiny_base_dir)
    loaded = load_components("swatch")
    assert (loaded.name, loaded.source, loaded.fingerprint) == ("swatch", str(tiny_base_dir), components.fingerprint)


def test_a_decoded_image_does_not_depend_on_its_batch(components: Components) -> None:
    """What is encoded does in its last bits: finetune/core/encodings.py has groups of one size."""
    space = LatentSpace(components.vae)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    together = space.decode(latents)
    assert together.shape == (3, 3, 32, 32)
    for index in range(3):
        assert torch.equal(space.decode(latents[index : index + 1])[0], together[index])


def test_sampled_latents_are_those_of_the_autoencoder(components: Components) -> None:
    space = LatentSpace(components.vae)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    drawn = components.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(2))
    eps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    mean, std = space.moments(pixels)
    torch.testing.assert_close(space.sample(mean, std, eps), drawn * components.vae.config.scaling_factor)
    torch.testing.assert_close(
        space.decode(drawn * components.vae.config.scaling_factor), components.vae.decode(drawn).sample
    )


def test_a_shift_is_taken_off_latents_and_put_back(components: Components) -> None:
    space = LatentSpace(components.vae)
    space._shift = 0.25
    mean = torch.zeros(1, 4, 8, 8)
    latents = space.sample(mean, mean, mean)
    torch.testing.assert_close(latents, torch.full_like(mean, -0.25 * components.vae.config.scaling_factor))
    torch.testing.assert_close(space.decode(latents), components.vae.decode(mean).sample)


def test_the_autoencoder_computes_in_float32_under_autocast(components: Components) -> None:
    space = LatentSpace(components.vae)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, _ = space.moments(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, _ = space.moments(pixels)
    assert under.dtype == torch.float32
    assert torch.equal(under, mean)


CAPTIONS = ["a dry slice", "", "An UNKNOWN word: κόσμος!", "warp " * 200]


def test_token_ids_are_those_the_pipeline_samples_with(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = components.text_encoder.forward
    monkeypatch.setattr(
        components.text_encoder, "forward", lambda ids, **options: seen.append(ids) or forward(ids, **options)
    )
    build_pipeline(components).encode_prompt(CAPTIONS, "cpu", 1, False)
    ids = TextConditioner(components.tokenizer, components.text_encoder).token_ids(CAPTIONS)
    assert ids.shape == (4, 77)
    assert torch.equal(ids, seen[0])


def test_encoded_captions_are_those_the_pipeline_samples_with(components: Components) -> None:
    encoded = TextConditioner(components.tokenizer, components.text_encoder).encode(CAPTIONS)
    expected = build_pipeline(components).encode_prompt(CAPTIONS, "cpu", 1, False)[0]
    assert encoded.shape == (4, 77, 32)
    assert torch.equal(encoded, expected)


def test_captions_of_more_than_75_tokens_are_counted(components: Components) -> None:
    conditioner = TextConditioner(components.tokenizer, components.text_encoder)
    assert conditioner.num_truncated(["warp " * 75]) == 0
    assert conditioner.num_truncated(["warp " * 75, "warp " * 76, "a slice", "warp " * 200]) == 2


def test_a_placeholder_of_several_vectors_is_spelt_out(tiny_base_dir: Path) -> None:
    components = load_components(str(tiny_base_dir))
    components.tokenizer.add_tokens(["<weave>", "<weave>_1"])
    components.text_encoder.resize_token_embeddings(len(components.tokenizer), mean_resizing=False)
    conditioner = TextConditioner(components.tokenizer, components.text_encoder)
    first, second = components.tokenizer.convert_tokens_to_ids(["<weave>", "<weave>_1"])
    ids = conditioner.token_ids(["a <weave> slice"])[0].tolist()
    assert ids.index(second) == ids.index(first) + 1
    expected = build_pipeline(components).encode_prompt(["a <weave> slice"], "cpu", 1, False)[0]
    assert torch.equal(conditioner.encode(["a <weave> slice"]), expected)
