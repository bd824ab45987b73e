"""What every fine-tuning method promises, in one table: the same tests run over all of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from data.tif.writer import write_stack
from finetune.core import settings as options
from finetune.core.method import Batch, Method
from finetune.core.run import run
from finetune.core.trainables import WholeModule
from pipelines.components import Components, load_components, present


class Row(NamedTuple):
    """A method as it is run here, which parts of the model it may change, and what it leaves."""

    script: str
    settings: type[options.ConceptSettings | options.DdpmSettings]
    options: dict[str, Any]
    trains: tuple[str, ...]
    leaves: tuple[str, ...]


LORA, WORD, WHOLE = (
    "pytorch_lora_weights.safetensors",
    "learned_embeds.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
)
PRIOR = {"with_prior_preservation": True, "num_class_images": 3}
NEW_WORD = {"placeholder_token": "<dry>", "initializer_token": "dry", "num_vectors": 2}
ROWS = {
    "full_unet": Row("full_unet", options.FullUnetSettings, {"use_ema": True}, ("unet",), (WHOLE,)),
    "full_unet, text encoder, zero-terminal SNR": Row(
        "full_unet",
        options.FullUnetSettings,
        {"train_text_encoder": True, "prediction_type": "v_prediction", "zero_terminal_snr": True},
        ("unet", "text_encoder"),
        (WHOLE, "text_encoder/model.safetensors"),
    ),
    "textual_inversion": Row("textual_inversion", options.TextualInversionSettings, NEW_WORD, (), (WORD,)),
    "dreambooth": Row("dreambooth", options.DreamboothSettings, PRIOR, ("unet",), (WHOLE,)),
    "dreambooth, text encoder": Row(
        "dreambooth",
        options.DreamboothSettings,
        {"train_text_encoder": True, "text_encoder_lr": 1e-3, "instance_prompt": ("a dry slice",)},
        ("unet", "text_encoder"),
        (WHOLE,),
    ),
    "lora": Row("lora", options.LoraSettings, {"rank": 4, "lora_alpha": 8.0}, (), (LORA,)),
    "lora, everything": Row(
        "lora",
        options.LoraSettings,
        {"target": "all", "rank": 4, "conv_rank": 2, "train_text_encoder": True, "text_encoder_rank": 3},
        (),
        (LORA,),
    ),
    "lora, DoRA": Row("lora", options.LoraSettings, {"rank": 4, "use_dora": True}, (), (LORA,)),
    "lora_dreambooth": Row(
        "lora_dreambooth", options.LoraDreamboothSettings, {**PRIOR, "prior_loss_weight": 0.5}, (), (LORA,)
    ),
    "pivotal_tuning": Row("pivotal_tuning", options.PivotalTuningSettings, {**NEW_WORD, **PRIOR}, (), (WORD, LORA)),
}
# a model from nothing has no base; the same contract otherwise
PIXELS = {"resolution": 16, "block_out_channels": (8, 16), "dropout": 0.1, "num_train_timesteps": 20}
PIXEL_ROWS = {
    "ddpm": Row("ddpm", options.DdpmSettings, PIXELS, ("unet",), (WHOLE,)),
    "ddpm, learned variance, classes": Row(
        "ddpm",
        options.DdpmSettings,
        {
            **PIXELS,
            "concept": "sf_dry",
            "noise_schedule": "cosine",
            "prediction_type": "v_prediction",
            "learned_variance": True,
            "loss": "hybrid",
            "snr_gamma": 5.0,
            "class_conditional": True,
            "proportion_empty_labels": 0.4,
        },
        ("unet",),
        (WHOLE,),
    ),
    "ddpm, bound, no average": Row(
        "ddpm",
        options.DdpmSettings,
        {**PIXELS, "noise_schedule": "sigmoid", "prediction_type": "sample", "loss": "vlb", "use_ema": False},
        ("unet",),
        (WHOLE,),
    ),
}
EVERY_ROW = {**ROWS, **PIXEL_ROWS}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one volume of smooth noise, (40, 44, 130) voxels."""
    folder = tmp_path_factory.mktemp("scans")
    field = gaussian_filter(np.random.default_rng(5).standard_normal((40, 44, 130)), (1.0, 2.0, 3.0))
    grey = (20000 + 40000 * (field - field.min()) / np.ptp(field)).clip(0, 65535).astype(np.uint16)
    write_stack(folder / "dry.tif", grey, (40.0, 40.0, 40.0))
    return folder


@pytest.fixture
def arguments(scans: Path, tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    for module in ("assembly", "exports", "concept_images", "pixel_assembly"):  # a few steps show as much as thirty
        for steps in ("SAMPLING_STEPS", "CLASS_SAMPLING_STEPS"):
            monkeypatch.setattr(f"finetune.core.{module}.{steps}", 3, raising=False)
    for module in ("assembly", "pixel_assembly"):
        monkeypatch.setattr(f"finetune.core.{module}.VALIDATION_IMAGES", 2)
    return {
        "concept": "sf_dry_warp",
        "data_root": scans,
        "pretrained_model_name_or_path": str(tiny_base_dir),
        "output_dir": tmp_path / "run",
        "max_train_steps": 4,
        "train_batch_size": 2,
        "checkpointing_steps": 2,
        "logging_steps": 1,
        "num_validation_images": 1,
        "learning_rate": 1e-2,
        "held_out_fraction": 0.4,
    }


Change = Callable[[Method, Components | None], Method]


def _train(row: Row, arguments: dict[str, Any], **more: Any) -> tuple[Method, Components]:
    """Run a method on a base as its script does, and return what it was made of."""
    made: list[tuple[Method, Components | None]] = []

    def note(method: Method, components: Components | None) -> Method:
        made.append((method, components))
        return method

    _run(row, arguments, note, **more)
    method, components = made[-1]
    assert components is not None
    return method, components


def _run(row: Row, arguments: dict[str, Any], change: Change = lambda method, _: method, **more: Any) -> Method:
    """Run any method as its script does, and return it. change: makes another method of it, given its base."""
    made: list[Method] = []
    script = import_module(f"finetune.{row.script}")
    parts: list[Components | None] = [None]
    assembly = import_module("finetune.core.assembly")
    placed: Callable[..., Components] = assembly.placed

    def note(components: Components, *rest: Any) -> Components:
        made_whole = placed(components, *rest)
        parts.append(made_whole)
        return made_whole

    def build(settings: Any, accelerator: Accelerator) -> Method:
        made.append(change(script.build(settings, accelerator), parts[-1]))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "placed", note)
        run(_settings(row, arguments, **more), build, default_dir="unused")
    return made[-1]


def _settings(row: Row, arguments: dict[str, Any], **more: Any) -> Any:
    """Return the settings of a row; what is said of a base is left out where there is none."""
    absent = {"pretrained_model_name_or_path"} - row.settings.model_fields.keys()
    values = {key: value for key, value in {**arguments, **row.options, **more}.items() if key not in absent}
    return row.settings.model_validate(values)


@pytest.mark.parametrize("name", ROWS)
def test_only_what_is_declared_changes(name: str, arguments: dict[str, Any], tiny_base_dir: Path) -> None:
    row = ROWS[name]
    method, components = _train(row, arguments)
    declared = {id(p) for part in method.trainables for p in part.named_parameters().values()}
    before = load_components(str(tiny_base_dir))
    with present(components):
        for part in ("unet", "vae", "text_encoder"):
            changed = []
            trained = dict(getattr(components, part).named_parameters())
            original = dict(getattr(before, part).named_parameters())
            for path, weight in original.items():
                now = trained.get(path)
                if now is None:  # an adapted layer keeps its own weights one level below
                    stem, _, kind = path.rpartition(".")
                    now = trained[f"{stem}.base_layer.{kind}"]
                if not torch.equal(now[: len(weight)], weight):  # a new word adds rows to the table
                    changed.append(path)
                    assert id(now) in declared, path
            assert bool(changed) == (part in row.trains), (part, changed[:3])
    for part in method.trainables:
        assert all(p.dtype == torch.float32 for p in part.named_parameters().values())


def _draw(pipe: StableDiffusionPipeline, final: dict[str, Any]) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    call = {key: final[key] for key in ("prompt", "num_inference_steps", "guidance_scale")}
    return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(final["seed"])).images[0], int)


@pytest.mark.parametrize("name", ROWS)
def test_plain_diffusers_draws_the_image_that_the_run_drew_at_its_end(
    name: str, arguments: dict[str, Any], tiny_base_dir: Path
) -> None:
    row = ROWS[name]
    _train(row, arguments, max_train_steps=2)
    folder: Path = arguments["output_dir"]
    assert all((folder / file).exists() for file in row.leaves)
    final = json.loads((folder / "final.json").read_text())
    source = folder if WHOLE in row.leaves else tiny_base_dir
    pipe = StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    untouched = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    if WORD in row.leaves:
        pipe.load_textual_inversion(str(folder), weight_name=WORD)
    if LORA in row.leaves:
        pipe.load_lora_weights(str(folder))
    drawn = np.asarray(Image.open(folder / "final.png"), int)
    assert np.abs(_draw(pipe, final) - drawn).max() < 2
    assert np.abs(_draw(untouched, final) - drawn).max() > 2
    if "zero_terminal_snr" in row.options:
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        assert scheduler.config.prediction_type == "v_prediction"
        assert float(scheduler.alphas_cumprod[-1]) == 0
        assert scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("name", EVERY_ROW)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    row = EVERY_ROW[name]
    straight = tmp_path / "straight"
    _run(row, {**arguments, "output_dir": straight})
    resumed = arguments["output_dir"]
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    for file in row.leaves:
        (resumed / file).unlink()
    _run(row, arguments, resume_from_checkpoint="latest")
    for file in (*row.leaves, "final.png", "metrics.jsonl"):
        assert (resumed / file).read_bytes() == (straight / file).read_bytes(), file
    cost = [json.loads(line) for line in (resumed / "cost.jsonl").read_text().splitlines()]
    assert [(each["first_step"], each["last_step"], each["image_visits"]) for each in cost] == [(0, 4, 8), (2, 4, 4)]
    assert all(each["seconds"] > 0 and each["peak_memory_mib"] > 100 for each in cost)


def test_another_seed_is_another_run(arguments: dict[str, Any], tmp_path: Path) -> None:
    """The negative control of the test above."""
    for seed in (0, 1):
        _train(ROWS["lora"], {**arguments, "output_dir": tmp_path / str(seed)}, seed=seed, max_train_steps=2)
    assert (tmp_path / "0" / LORA).read_bytes() != (tmp_path / "1" / LORA).read_bytes()


def _in_float64(method: Method, components: Components | None) -> Method:
    """Return a method that computes in float64 from its first layer on, and draws and exports nothing."""
    unet = method.trainables[0].module if components is None else components.unet
    for module in (unet,) if components is None else (unet, components.text_encoder):
        module.double()
    for part in method.trainables:
        for parameter in part.named_parameters().values():
            parameter.data = parameter.data.double()
        if isinstance(part, WholeModule):
            part.averaged.update({name: weight.double() for name, weight in part.averaged.items()})

    def cast(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(_double(value) for value in inputs), {key: _double(value) for key, value in named.items()}

    unet.register_forward_pre_hook(cast, with_kwargs=True)
    return replace(method, preview=None, validate=None, export=lambda _: [])


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("name", EVERY_ROW)
def test_four_images_at_once_are_four_accumulated(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """Equal but for the order of sums; the large epsilon keeps Adam from making steps of the last bits."""
    row = EVERY_ROW[name]
    more = {"adam_epsilon": 1.0, "max_train_steps": 2, "max_grad_norm": 1e6, "learning_rate": 1.0}
    if "dropout" in row.options:  # it is drawn for a micro-step, which holds other images here and there
        more |= {"dropout": 0.0}
    states = []
    for size, accumulated in ((4, 1), (1, 4)):
        folder = tmp_path / f"{size}x{accumulated}"
        sizes = {"train_batch_size": size, "gradient_accumulation_steps": accumulated, "output_dir": folder}
        _run(row, {**arguments, **sizes}, _in_float64, **more)
        files = sorted((folder / "checkpoint-2").glob("*.safetensors"))
        states.append({f"{p.stem}/{key}": t for p in files for key, t in load_file(p).items() if p.stem != "optimizer"})
    at_once, one_by_one = states
    assert at_once.keys() == one_by_one.keys()
    for key, tensor in at_once.items():
        assert tensor.dtype == torch.float64, key
        torch.testing.assert_close(
            tensor, one_by_one[key], rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", PIXEL_ROWS)
def test_every_weight_of_a_model_from_nothing_is_trained_and_is_float32(name: str, arguments: dict[str, Any]) -> None:
    row = PIXEL_ROWS[name]
    method = _run(row, arguments, max_train_steps=2)
    (part,) = method.trainables
    assert list(part.named_parameters()) == [path for path, _ in part.module.named_parameters()]
    assert all(p.dtype == torch.float32 for p in part.named_parameters().values())
    script = import_module(f"finetune.{row.script}")
    untrained: Method = script.build(_settings(row, arguments), Accelerator(cpu=True))
    before = dict(untrained.trainables[0].named_parameters())
    still = [path for path, p in part.named_parameters().items() if torch.equal(p, before[path])]
    assert not [path for path in still if not path.startswith("class_embedding")]  # of labels that were not drawn


@pytest.mark.parametrize("name", PIXEL_ROWS)
def test_plain_diffusers_draws_the_picture_that_a_model_of_pixels_left(name: str, arguments: dict[str, Any]) -> None:
    row = PIXEL_ROWS[name]
    method = _run(row, arguments, max_train_steps=2)
    folder: Path = arguments["output_dir"]
    final = json.loads((folder / "final.json").read_text())
    pipe = DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if final["label"] is not None:
        label = torch.tensor([final["label"]])
        pipe.unet.forward = partial(pipe.unet.forward, class_labels=label)
    generator = torch.Generator().manual_seed(final["seed"])
    image = pipe(generator=generator, num_inference_steps=final["num_inference_steps"]).images[0]
    drawn = np.asarray(Image.open(folder / "final.png").convert("L"), int)
    assert np.abs(np.asarray(image.convert("L"), int) - drawn).max() <= 1
    assert np.ptp(drawn) > 10
    averaged = load_file(folder / "checkpoint-2" / "unet.safetensors")
    kind = "ema/" if row.options.get("use_ema", True) else ""
    for key, weight in load_file(folder / WHOLE).items():
        assert torch.equal(weight, averaged[kind + key]), key
    assert method.manifest["pixel_model"]["learned_variance"] == row.options.get("learned_variance", False)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.trains])
def test_before_the_first_step_an_adapter_is_the_base(
    name: str, arguments: dict[str, Any], tiny_base_dir: Path
) -> None:
    row = ROWS[name]
    script = import_module(f"finetune.{row.script}")
    method: Method = script.build(_settings(row, arguments), Accelerator(cpu=True))
    base = load_components(str(tiny_base_dir))
    noisy = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 900])
    with torch.no_grad():
        ids = base.tokenizer(["dry slice", ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        text = base.text_encoder(ids)[0]
        expected = base.unet(noisy, t, encoder_hidden_states=text).sample
        modules = {part.name: part.module for part in method.trainables}
        unet = modules.get("unet_lora", base.unet)
        encoder = modules.get("text_encoder_lora", modules.get("token_rows", base.text_encoder))
        found = unet(noisy, t, encoder_hidden_states=encoder(ids)[0]).sample
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["dreambooth", "lora_dreambooth"])
def test_prior_weight_zero_is_no_prior(name: str, arguments: dict[str, Any]) -> None:
    """The gradient of a batch with images of the class at weight 0 is that of the batch without them."""
    row = ROWS[name]
    script = import_module(f"finetune.{row.script}")
    grads: list[dict[str, Tensor]] = []
    for more in (
        {"with_prior_preservation": False, "num_class_images": 100, "prior_loss_weight": 1.0},
        {"prior_loss_weight": 0.0},
    ):
        settings = row.settings.model_validate({**arguments, **row.options, **more})
        method: Method = script.build(settings, Accelerator(cpu=True))
        groups = [
            [(p, method.dataset.sample(p))] + ([] if method.prior is None else [(-1 - p, method.prior.sample(p))])
            for p in range(2)
        ]
        method.objective.losses(Batch.collate(groups)).sum().backward()
        grads.append(
            {n: p.grad for part in method.trainables for n, p in part.named_parameters().items() if p.grad is not None}
        )
    without, weightless = grads
    assert without.keys() == weightless.keys()
    for key, gradient in without.items():
        torch.testing.assert_close(gradient, weightless[key], rtol=1e-4, atol=1e-6)


def test_an_epoch_is_over_the_instance_images(arguments: dict[str, Any]) -> None:
    """However many images of the class there are (a defect of DreamBooth scripts: the longer of the two counts)."""
    row = ROWS["dreambooth"]
    few = {"images_per_class": 3, "num_class_images": 5, "max_train_steps": None, "num_train_epochs": 2}
    arguments = {key: value for key, value in arguments.items() if key != "max_train_steps"}
    few.pop("max_train_steps")
    method, _ = _train(row, arguments, **few)
    assert len(method.dataset) == 3
    steps = [json.loads(line)["step"] for line in (arguments["output_dir"] / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 3  # 2 epochs of 3 images in batches of 2


def test_the_word_is_still_after_the_pivot_and_the_adapter_before_it(arguments: dict[str, Any]) -> None:
    _train(ROWS["pivotal_tuning"], arguments)
    folder: Path = arguments["output_dir"]

    def state(step: int, part: str) -> dict[str, Tensor]:
        return load_file(folder / f"checkpoint-{step}" / f"{part}.safetensors")

    assert all(torch.equal(t, state(4, "token_rows")[key]) for key, t in state(2, "token_rows").items())
    assert all(not t.any() for key, t in state(2, "unet_lora").items() if "lora_B" in key)
    assert any(t.any() for key, t in state(4, "unet_lora").items() if "lora_B" in key)


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("pivotal_tuning", {"embedding_lr": 5e-2}, [{"lr": 5e-2}] * 2 + [{"lr": 1e-2}] * 2),
        ("dreambooth, text encoder", {"max_train_steps": 2}, [{"lr": 1e-2, "lr_text_encoder": 1e-3}] * 2),
    ],
)
def test_the_rates_of_a_run_are_those_of_what_is_trained_at_each_step(
    name: str, more: dict[str, Any], expected: list[dict[str, float]], arguments: dict[str, Any]
) -> None:
    _train(ROWS[name], arguments, **more)
    lines = [json.loads(line) for line in (arguments["output_dir"] / "metrics.jsonl").read_text().splitlines()]
    rates = [{key: value for key, value in line.items() if key.startswith("lr")} for line in lines]
    assert rates == [pytest.approx(each) for each in expected]


def test_the_lines_that_a_run_ends_with_load_the_weights_that_it_loaded(
    arguments: dict[str, Any], tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base that has fp16 weights alone: diffusers would look for others, and mix precisions."""
    base = tmp_path / "fp16"
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    pipe.to(dtype=torch.float16).save_pretrained(base, variant="fp16")
    more = {"pretrained_model_name_or_path": str(base), "variant": "fp16", "revision": "main", "max_train_steps": 1}
    _train(ROWS["lora"], arguments, **more)
    card = (arguments["output_dir"] / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "from_pretrained('fp16', revision='main', variant='fp16', dtype=torch.float32" in code
    assert str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)  # where the base and the run lie side by side
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image"].size == (32, 32)


@pytest.mark.parametrize(
    ("more", "alpha"),
    [
        ({}, 4.0),
        ({"lora_alpha": 8.0}, 8.0),
        ({"lora_alpha": 8.0, "text_encoder_rank": 3}, 3.0),
        ({"lora_alpha": 8.0, "text_encoder_rank": 3, "text_encoder_alpha": 5.0}, 5.0),
    ],
    ids=["rank", "alpha", "rank of its own", "alpha of its own"],
)
def test_the_alpha_of_the_text_encoder_is_its_own_or_that_of_its_rank(
    more: dict[str, Any], alpha: float, arguments: dict[str, Any]
) -> None:
    row = Row("lora", options.LoraSettings, {"rank": 4, "train_text_encoder": True}, (), ())
    method: Method = import_module("finetune.lora").build(_settings(row, arguments, **more), Accelerator(cpu=True))
    encoder: Any = method.trainables[1].module
    assert encoder.peft_config["filrouge"].lora_alpha == alpha


def test_a_new_word_is_told_with_its_way_and_its_neighbours(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _train(ROWS["textual_inversion"], arguments, max_train_steps=2)
    told = capsys.readouterr().out
    assert "starts near dry 1.00" in told
    moved = re.search(r"<dry> moved by ([0-9.]+) from where it started", told)
    assert moved
    last = json.loads((arguments["output_dir"] / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["token_distance"] == pytest.approx(float(moved[1]), abs=0.005)
    assert last["token_distance"] > 0
    assert told.count("its vectors are nearest to") == 2
