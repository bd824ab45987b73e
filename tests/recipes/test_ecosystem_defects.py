"""Defects of the training scripts that people know for Stable Diffusion 1.x, one test (or table) for each.

A test is named after the promise, its docstring says the defect. Those of pixel-space DDPM stand in
`test_ddpm_defects.py`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.dataset import Sample
from data.errors import OutputError
from finetune.core import draws
from finetune.core import settings as options
from finetune.core.checkpoint import CheckpointStore, RunLock, read_manifest
from finetune.core.class_images import ClassRecipe, class_images
from finetune.core.cli import CONFIG_DIR, load_settings, run_script
from finetune.core.method import Batch, Method, Objective
from finetune.core.objective import NoiseObjective, min_snr_weight
from finetune.core.run import run
from finetune.core.token_rows import TokenRows
from pipelines.components import load_components
from pipelines.conditioning import TextConditioner
from pipelines.embeddings import export_embeddings
from pipelines.spaces import LatentSpace
from tests.finetune.test_contract import ROWS

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 200, 40),
    "blue": (40, 40, 200),
    "yellow": (200, 200, 40),
    "white": (235, 235, 235),
    "black": (20, 20, 20),
}
SETTINGS: dict[str, type[options.ConceptSettings]] = {
    "full_unet": options.FullUnetSettings,
    "textual_inversion": options.TextualInversionSettings,
    "dreambooth": options.DreamboothSettings,
    "lora": options.LoraSettings,
    "lora_dreambooth": options.LoraDreamboothSettings,
    "pivotal_tuning": options.PivotalTuningSettings,
}
WORD = {"placeholder_token": "<dry-slice>", "initializer_token": "dry", "num_vectors": 3}
LORA_FILE, WORD_FILE = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"
Change = Callable[[Method], Method]


@pytest.fixture(scope="module", autouse=True)
def _short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A few sampling steps show as much as thirty; the precision of one test's accelerator is not that of the next."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("assembly", "exports", "concept_images"):
            for steps in ("SAMPLING_STEPS", "CLASS_SAMPLING_STEPS"):
                patch.setattr(f"finetune.core.{module}.{steps}", 2, raising=False)
        patch.setattr("finetune.core.assembly.VALIDATION_IMAGES", 1)
        patch.setenv("FILROUGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FILROUGE_DATA", raising=False)
        yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six pictures of 40 x 56 px, each of one colour with some noise; a .txt beside each names it."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(11)
    for number, (name, colour) in enumerate(COLOURS.items()):
        pixels = np.array(colour) + rng.integers(-15, 16, (40, 56, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {name} texture\n")
    return folder


@pytest.fixture(scope="module")
def arguments(pictures: Path, tiny_base_dir: Path) -> dict[str, Any]:
    return {
        "train_data_dir": pictures,
        "pretrained_model_name_or_path": str(tiny_base_dir),
        "max_train_steps": 2,
        "train_batch_size": 2,
        "logging_steps": 1,
        "num_validation_images": 1,
        "learning_rate": 1e-2,
    }


def _settings(script: str, arguments: Mapping[str, Any], **more: Any) -> options.ConceptSettings:
    return SETTINGS[script].model_validate({**arguments, **more})


def _build(script: str, settings: options.ConceptSettings, mixed_precision: str = "no") -> Method:
    AcceleratorState._reset_state(True)
    method: Method = import_module(f"finetune.{script}").build(
        settings, Accelerator(cpu=True, mixed_precision=mixed_precision)
    )
    return method


def _train(script: str, settings: options.ConceptSettings, change: Change) -> None:
    AcceleratorState._reset_state(True)
    build = import_module(f"finetune.{script}").build
    run(settings, lambda s, accelerator: change(build(s, accelerator)), default_dir="unused")


def _unseen(method: Method) -> Method:
    """The method without looks at its state on the way."""
    return replace(method, preview=None, validate=None)


def _bare(method: Method) -> Method:
    """The method without looks and without an artefact: steps and checkpoints alone."""
    return replace(_unseen(method), export=lambda _: [])


@dataclass(frozen=True)
class _Enlarged:
    """An objective times a factor."""

    objective: Objective
    factor: float

    def losses(self, batch: Batch) -> Tensor:
        return self.factor * self.objective.losses(batch)


def test_gradient_clipping_reaches_the_gradients_that_the_optimizer_takes(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text-to-image LoRA: the optimizer uses up the `filter` of parameters, and clipping gets an empty one."""
    taken: list[float] = []
    step = torch.optim.AdamW.step

    def spied(self: torch.optim.AdamW, *more: Any, **named: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        taken.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return step(self, *more, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    settings = _settings("lora", arguments, output_dir=tmp_path / "run", max_grad_norm=0.25, train_text_encoder=True)
    _train("lora", settings, lambda method: _bare(replace(method, objective=_Enlarged(method.objective, 1e6))))
    logged = [json.loads(line)["grad_norm"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert min(logged) > 100
    assert taken == pytest.approx([0.25, 0.25], rel=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_trained_weights_are_float32_over_a_base_in_bf16(name: str, arguments: dict[str, Any]) -> None:
    """LoRA and advanced scripts: adapters are brought to float32 under fp16 only; under bf16 they stay bf16."""
    row = ROWS[name]
    method = _build(row.script, _settings(row.script, arguments, **row.options), "bf16")
    for part in method.trainables:
        trained = part.named_parameters()
        assert {p.dtype for p in trained.values()} == {torch.float32}
        frozen = {p.dtype for path, p in part.module.named_parameters() if path not in trained}
        assert frozen <= {torch.bfloat16}  # empty for a part that is trained whole
        assert bool(frozen) == (part.name not in ("unet", "text_encoder"))


class _Plain:
    """Pixels are latents, captions say nothing."""

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels, torch.zeros_like(pixels)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        return torch.zeros(len(captions), 1, 1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_min_snr_with_a_prior_is_the_hand_formula(size: int) -> None:
    """DreamBooth: 2 B timesteps weigh B losses: an error at B > 1, a wrong broadcast at B = 1."""
    alphas_cumprod, gamma, weight = torch.linspace(0.999, 0.005, 1000), 5.0, 0.7
    rng = np.random.default_rng(4)
    pixels = rng.standard_normal((2 * size, 3, 4, 4)).astype(np.float32)
    groups = [
        [(k, Sample(pixels[2 * k], "", False, "")), (-1 - k, Sample(pixels[2 * k + 1], "", True, ""))]
        for k in range(size)
    ]
    plain = _Plain()
    objective = NoiseObjective(
        denoise=lambda noisy, *_: 0.5 * noisy,
        space=plain,
        conditioner=plain,
        alphas_cumprod=alphas_cumprod,
        prediction_type="epsilon",
        seed=6,
        snr_gamma=gamma,
        prior_loss_weight=weight,
    )
    losses = objective.losses(Batch.collate(groups))
    assert losses.shape == (2 * size,)

    by_hand = {False: 0.0, True: 0.0}
    for group in groups:
        for position, sample in group:
            a = float(alphas_cumprod[int(draws.timesteps(6, [position], 1000)[0])])
            noise = draws.normal(6, "noise", [position], (3, 4, 4))[0].numpy()
            noisy = a**0.5 * sample.pixels + (1 - a) ** 0.5 * noise
            ratio = a / (1 - a)
            by_hand[sample.is_prior] += min(ratio, gamma) / ratio * float(((0.5 * noisy - noise) ** 2).mean()) / size
    # the loop's own mean: over the images alone
    assert float(losses.sum()) / size == pytest.approx(by_hand[False] + weight * by_hand[True], rel=1e-4)


@pytest.mark.parametrize(
    ("prediction_type", "at_snr_1", "at_snr_9", "at_snr_99"),
    [("epsilon", 1.0, 5 / 9, 5 / 99), ("v_prediction", 1 / 2, 5 / 10, 5 / 100), ("sample", 1.0, 5.0, 5.0)],
)
def test_min_snr_weights_are_those_of_the_paper(
    prediction_type: Any, at_snr_1: float, at_snr_9: float, at_snr_99: float
) -> None:
    """Advanced and XL DreamBooth: the weight for v is the one for epsilon plus 1. Here gamma is 5."""
    weights = min_snr_weight(torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64), 5.0, prediction_type)
    assert weights.tolist() == pytest.approx([at_snr_1, at_snr_9, at_snr_99])


def test_class_images_are_png_seeded_and_drawn_anew_for_another_prompt(tiny_base_dir: Path, tmp_path: Path) -> None:
    """DreamBooth: class images are JPEG, unseeded, kept after prompt or model change, and any file is counted."""
    base = load_components(str(tiny_base_dir))
    recipe = ClassRecipe("a texture", base.fingerprint, base.prediction_type, 32, 0, 1, 1.0)

    def draw(folder: Path, recipe: ClassRecipe = recipe) -> dict[str, bytes]:
        (folder / recipe.key).mkdir(parents=True, exist_ok=True)
        for junk in ("0-holiday.jpg", "notes.txt", "00007.png"):
            (folder / recipe.key / junk).write_bytes(b"junk")
        images = class_images(base, recipe, folder, num_images=2, batch_size=2, write=True)
        assert len(images) == 2  # though there were three files
        drawn = {path.name: path.read_bytes() for path in (folder / recipe.key).iterdir()}
        return {name: content for name, content in drawn.items() if content != b"junk" and name.endswith("g")}

    first = draw(tmp_path / "a")
    assert sorted(first) == ["00000.png", "00001.png"]
    assert all(content.startswith(b"\x89PNG\r\n") for content in first.values())
    assert draw(tmp_path / "b") == first
    slices = draw(tmp_path / "a", replace(recipe, prompt="a dry slice"))
    assert not set(slices.values()) & set(first.values())


def _command(arguments: dict[str, Any], *more: str) -> list[str]:
    return [
        *("--train_data_dir", str(arguments["train_data_dir"])),
        *("--pretrained_model_name_or_path", arguments["pretrained_model_name_or_path"], *more),
    ]


def _run_script(script: str, argv: list[str]) -> int:
    AcceleratorState._reset_state(True)
    return run_script(import_module(f"finetune.{script}").main, SETTINGS[script], script, argv)


def test_an_epoch_is_over_the_instance_images_and_is_told_at_the_start(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DreamBooth: the longer of instance and class images counts, so ten images make an epoch of 200 steps."""
    prior = ("--with_prior_preservation", "--num_class_images", "9", "--class_data_dir", str(tmp_path / "class"))
    length = ("--num_train_epochs", "1", "--train_batch_size", "2", "--instance_prompt", "a w17h3r texture")
    command = _command(arguments, *prior, *length, "--dry_run")
    assert _run_script("dreambooth", command) == 0
    printed = capsys.readouterr().out
    assert "images      5 with 1 captions, and 9 of the class to preserve" in printed  # one of six is held out
    assert "steps       3 of 2 images" in printed


class _Word(NamedTuple):
    """What one step of Textual Inversion in bf16 left: the rows before and after, and the autocasts that it opened."""

    before: Tensor
    after: Tensor
    autocasts: set[str]
    device: str


@pytest.fixture(scope="module")
def word_in_bf16(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> _Word:
    folder = tmp_path_factory.mktemp("word") / "run"
    opened: list[str] = []
    rows: list[Tensor] = []
    make = torch.autocast.__init__

    def spied(self: torch.autocast, device_type: str, *more: Any, **named: Any) -> None:
        opened.append(device_type)
        make(self, device_type, *more, **named)

    def note(method: Method) -> Method:
        part = method.trainables[0]
        assert isinstance(part, TokenRows)
        rows.append(part.rows.clone())
        return method  # with its sample sheet, its validation and its export

    more = {**WORD, "max_train_steps": 1, "mixed_precision": "bf16", "validation_prompt": ("a dry slice",)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autocast, "__init__", spied)
        _train("textual_inversion", _settings("textual_inversion", arguments, output_dir=folder, **more), note)
    assert (folder / "samples" / "step-000001.png").exists()
    after = load_file(folder / WORD_FILE)["<dry-slice>"]
    return _Word(rows[0], after, set(opened), Accelerator().device.type)


def test_training_validation_and_samples_run_on_the_device_there_is(word_in_bf16: _Word) -> None:
    """DreamBooth and text-to-image: validation opens autocast("cuda") whatever the machine."""
    assert word_in_bf16.autocasts == {word_in_bf16.device}


def test_the_embedding_changes_after_one_step_in_bf16(word_in_bf16: _Word) -> None:
    """Advanced: .to(float32) cuts the embedding off from its parameter under half precision; it gets no gradient."""
    assert word_in_bf16.after.dtype == torch.float32
    assert word_in_bf16.after.shape == (3, 32)
    moved = (word_in_bf16.after - word_in_bf16.before).abs().amax(dim=1)
    assert moved.min() == pytest.approx(1e-2, rel=0.1)  # each row, by Adam's first step: the learning rate


def test_textual_inversion_mirrors_and_squashes_nothing_and_takes_pictures_only(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Textual Inversion: a flip at p = 0.5 without a flag, images squashed to squares, every file taken for one."""
    folder = tmp_path / "ramps"
    (folder / ".thumbnails").mkdir(parents=True)
    for number in range(4):  # brighter by 2 levels from column to column
        ramp = np.broadcast_to(2 * np.arange(96) + number, (32, 96))
        Image.fromarray(ramp.astype(np.uint8)).save(folder / f"{number}.png")
    for junk in (".DS_Store", "Thumbs.db", "notes.md", "._0.png", ".thumbnails/0.png"):
        (folder / junk).write_bytes(b"junk")
    command = _command({**arguments, "train_data_dir": folder}, "--placeholder_token", "<dry-slice>")
    command += ["--initializer_token", "dry", "--resolution", "32"]
    settings = load_settings(options.TextualInversionSettings, "textual_inversion", command, CONFIG_DIR)
    assert not settings.random_flip
    method = _build("textual_inversion", settings)
    assert len(method.dataset) == 4
    first_columns = set()
    for position in range(24):
        sample = method.dataset.sample(position)
        assert sample.pixels.shape == (3, 32, 32)
        np.testing.assert_allclose(np.diff(sample.pixels, axis=2), 4 / 255, atol=1e-6)  # neither 12 / 255 nor -4 / 255
        first_columns.add(float(sample.pixels[0, 0, 0]))
    assert len(first_columns) > 12  # cut at places of its own


def test_textual_inversion_has_the_loss_options_of_all_methods(arguments: dict[str, Any]) -> None:
    """Textual Inversion: no clipping, no offset noise, no min-SNR."""
    command = _command(arguments, "--max_grad_norm", "0.5", "--noise_offset", "0.1", "--snr_gamma", "5")
    settings = load_settings(options.TextualInversionSettings, "textual_inversion", command, CONFIG_DIR)
    method = _build("textual_inversion", settings.model_copy(update={"initializer_token": "dry"}))
    assert isinstance(method.objective, NoiseObjective)
    assert (method.objective.noise_offset, method.objective.snr_gamma, settings.max_grad_norm) == (0.1, 5.0, 0.5)


def _colour_word(pixels: np.ndarray) -> str:
    """Return the name of the colour nearest to the mean of an image (3, H, W) in [-1, 1]."""
    mean = (pixels.mean(axis=(1, 2)) + 1) * 127.5
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


def test_cached_latents_are_those_of_their_image_through_shuffled_epochs(
    arguments: dict[str, Any], tiny_base_dir: Path
) -> None:
    """Advanced: the latent cache is indexed by step under a shuffled loader, so captions get another image's."""
    method = _build("lora", _settings("lora", arguments, random_flip=True, proportion_empty_prompts=0.0))
    assert isinstance(method.objective, NoiseObjective)
    base = load_components(str(tiny_base_dir))
    space, conditioner = LatentSpace(base.vae), TextConditioner(base.tokenizer, base.text_encoder)
    order = []
    for start in range(0, 3 * len(method.dataset), 3):  # batches that straddle the epochs
        batch = Batch.collate([[(k, method.dataset.sample(k))] for k in range(start, start + 3)])
        order += [source.partition(" @ ")[0] for source in batch.sources]
        assert batch.captions == tuple(f"a {_colour_word(pixels.numpy())} texture" for pixels in batch.pixels)
        with torch.no_grad():
            for _ in range(2):  # the second time from the cache
                for cached, direct in zip(
                    method.objective.space.moments(batch.pixels), space.moments(batch.pixels), strict=True
                ):
                    torch.testing.assert_close(cached, direct, rtol=1e-4, atol=1e-5)
            words = conditioner.encode(batch.captions)
            torch.testing.assert_close(method.objective.conditioner.encode(batch.captions), words)
    epochs = [order[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1]  # shuffled


@pytest.fixture(scope="module")
def pivotal(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a run of pivotal tuning with a checkpoint at each of its four steps."""
    more = {
        **arguments,
        **WORD,
        "max_train_steps": 4,
        "pivot": 0.5,
        "lr_scheduler": "cosine",
        "checkpointing_steps": 1,
        "rank": 2,
        "output_dir": tmp_path_factory.mktemp("pivotal").absolute() / "a" / "new" / "nested" / "run",
    }
    _train("pivotal_tuning", _settings("pivotal_tuning", more), _unseen)
    return more


def test_the_embedding_is_bit_equal_after_the_pivot(pivotal: dict[str, Any]) -> None:
    """Advanced: the rate of the embedding is zeroed once, and LambdaLR gives it back at the next step."""
    folder: Path = pivotal["output_dir"]
    rows = [load_file(folder / f"checkpoint-{step}" / "token_rows.safetensors")["rows"] for step in (1, 2, 3, 4)]
    adapters = [load_file(folder / f"checkpoint-{step}" / "unet_lora.safetensors") for step in (1, 2, 3, 4)]
    assert not torch.equal(rows[0], rows[1])  # still learnt before
    assert torch.equal(rows[1], rows[2])
    assert torch.equal(rows[1], rows[3])
    assert torch.equal(load_file(folder / WORD_FILE)["<dry-slice>"], rows[1])
    changed = [[bool((a[key] != b[key]).any()) for key in a] for a, b in pairwise(adapters)]
    assert [any(changes) for changes in changed] == [False, True, True]


def test_an_absolute_nested_output_folder_is_taken_as_it_is(pivotal: dict[str, Any]) -> None:
    """Advanced: the output path is glued to itself, and a nested folder fails after the training."""
    folder: Path = pivotal["output_dir"]
    assert folder.is_absolute()
    assert {LORA_FILE, WORD_FILE, "README.md", "final.png"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_a_resumed_pivotal_run_has_its_embedding_and_each_adapter_once(pivotal: dict[str, Any], tmp_path: Path) -> None:
    """Advanced: loading adds the adapters twice, forgets the embedding, and saving writes one file over another."""
    straight: Path = pivotal["output_dir"]
    resumed = tmp_path / "run"
    shutil.copytree(straight, resumed)
    for name in ("checkpoint-2", "checkpoint-3", "checkpoint-4"):  # go on from within the embedding's share
        shutil.rmtree(resumed / name)
    for name in (LORA_FILE, WORD_FILE):
        (resumed / name).unlink()
    more = {**pivotal, "output_dir": resumed, "resume_from_checkpoint": "latest"}
    _train("pivotal_tuning", _settings("pivotal_tuning", more), _unseen)
    for name in (LORA_FILE, WORD_FILE, "metrics.jsonl", "checkpoint-4/optimizer.safetensors"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name


def _read_ids(text_encoder: torch.nn.Module, call: Callable[[], Any]) -> Tensor:
    """Return the ids that a text encoder is given in a call."""
    seen: list[Tensor] = []

    def note(_: torch.nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(inputs[0] if inputs else named["input_ids"])

    hook = text_encoder.register_forward_pre_hook(note, with_kwargs=True)
    call()
    hook.remove()
    (ids,) = seen
    return ids


def test_token_ids_of_training_are_those_of_sampling(
    arguments: dict[str, Any], tiny_base_dir: Path, tmp_path: Path
) -> None:
    """Advanced: prompts are trained without their start and end tokens, and sampled with them."""
    method = _build("textual_inversion", _settings("textual_inversion", arguments, **WORD))
    rows = method.trainables[0]
    assert isinstance(rows, TokenRows)
    captions = ("a <dry-slice> texture", "", "<dry-slice>", "a dry texture, <dry-slice>, " * 20)
    batch = Batch.collate([[(k, method.dataset.sample(k))] for k in range(len(captions))])
    batch = replace(batch, captions=captions)
    with torch.no_grad():
        trained = _read_ids(rows.module, lambda: method.objective.losses(batch))

    export_embeddings(tmp_path, "<dry-slice>", rows.rows, {})
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    pipe.load_textual_inversion(str(tmp_path), weight_name=WORD_FILE)
    sampled = _read_ids(pipe.text_encoder, lambda: pipe.encode_prompt([*captions], "cpu", 1, False))
    assert torch.equal(trained, sampled)

    tokenizer = pipe.tokenizer
    assert trained.shape == (4, tokenizer.model_max_length)
    assert set(trained[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert set(trained[:, -1].tolist()) == {tokenizer.eos_token_id}  # padding is the end token again, as in SD 1.x
    vectors = tokenizer.convert_tokens_to_ids(["<dry-slice>", "<dry-slice>_1", "<dry-slice>_2"])
    assert trained[2, 1:5].tolist() == [*vectors, tokenizer.eos_token_id]


FLAGS = (("--validation_prompt", "a dry slice"), ("--report_to", "tensorboard"), ("--train_text_encoder", "--use_dora"))


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        *(("lora", sum(flags, ())) for flags in product(*[((), flag) for flag in FLAGS])),
        ("full_unet", ("--use_ema", "--train_text_encoder")),
        ("textual_inversion", ("--initializer_token", "dry")),
        ("dreambooth", ("--train_text_encoder", "--text_encoder_lr", "1e-6")),
        ("lora_dreambooth", ("--target", "all", "--conv_rank", "2")),
        ("pivotal_tuning", ("--initializer_token", "dry", "--prediction_type", "v_prediction", "--zero_terminal_snr")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "plain",
)
def test_every_combination_of_flags_can_be_planned(
    script: str,
    flags: tuple[str, ...],
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Text-to-image LoRA: pushing without a validation prompt ends in an undefined name, after the training."""
    monkeypatch.chdir(tmp_path)
    cache = Path(os.environ["FILROUGE_CACHE"])
    before = sorted(cache.rglob("*"))
    assert _run_script(script, _command(arguments, *flags, "--dry_run")) == 0
    assert f"method      {script} -> {tmp_path / 'runs'}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert sorted(cache.rglob("*")) == before


def test_identifiers_are_examined_on_request_and_never_in_a_dry_run(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.core.assembly.examine_all", lambda *_, **__: pytest.fail("examined"))
    for asked, told in (((), False), (("--identifier_report",), True)):
        assert _run_script("lora", _command(arguments, *asked, "--dry_run")) == 0
        assert ("identifiers not examined in a dry run" in capsys.readouterr().out) == told
    _build("lora", _settings("lora", arguments))
    assert "identifiers" not in capsys.readouterr().out


@pytest.mark.parametrize(("point", "left"), [("save_tensors:6", [1, 2]), ("remove_tree:1", [2, 3])])
def test_a_crash_while_saving_keeps_the_checkpoints_there_were(
    point: str, left: list[int], arguments: dict[str, Any], tmp_path: Path
) -> None:
    """All: the old checkpoint is deleted before the new one is written.

    Two are kept. The first crash is in the middle of the third checkpoint, the second one at the removal of the first.
    """
    folder = tmp_path / "run"
    more = {"output_dir": folder, "checkpointing_steps": 1, "checkpoints_total_limit": 2, "max_train_steps": 4}
    settings = _settings("lora", arguments, rank=2, **more)

    def killed() -> None:
        os.environ["FILROUGE_CRASH_AT"] = point
        _train("lora", settings, _bare)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    with RunLock(folder):
        store = CheckpointStore(folder, json.loads((folder / "manifest.json").read_text())["run_id"])
        assert sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")) == left
        for step in left:
            assert store.resolve(f"checkpoint-{step}").step == step  # compared with its hashes
        latest = store.find_latest()
    assert latest is not None
    assert latest.step == left[-1]


@pytest.fixture(scope="module")
def adapter_run(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a run of lora.py on a folder of its own, which has two checkpoints."""
    folder = tmp_path_factory.mktemp("adapter")
    shutil.copytree(arguments["train_data_dir"], folder / "pictures")
    more = {**arguments, "train_data_dir": folder / "pictures", "output_dir": folder / "run", "checkpointing_steps": 1}
    _train("lora", _settings("lora", more, rank=2), _bare)
    return {**more, "rank": 2}


def test_a_run_says_its_settings_data_base_and_versions_and_hashes_its_checkpoints(
    adapter_run: dict[str, Any], tiny_base_dir: Path
) -> None:
    """All: checkpoints have neither hash nor settings, and there is no settings file."""
    folder: Path = adapter_run["output_dir"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["method"], manifest["settings"]["rank"], manifest["seed"]) == ("lora", 2, 0)
    assert manifest["base_fingerprint"] == load_components(str(tiny_base_dir)).fingerprint
    assert manifest["versions"]["torch"] == torch.__version__
    images = manifest["data"]["training"] + manifest["data"]["held_out"]
    assert {image["caption"] for image in images} == {f"a {name} texture" for name in COLOURS}
    assert all(len(image["sha256"]) == 64 for image in images)
    settings = ["--config", str(folder / "settings.yaml")]
    assert load_settings(options.LoraSettings, "lora", settings, CONFIG_DIR) == _settings("lora", adapter_run)
    checkpoint = read_manifest(folder / "checkpoint-2")
    held = {path.name for path in checkpoint.folder.iterdir()} - set(checkpoint.files)
    assert {"unet_lora.safetensors", "optimizer.safetensors", "state.json"} <= set(checkpoint.files)
    assert len(held) == 1  # the manifest itself


def _another_base(run: dict[str, Any], make_tiny_base: Callable[..., Path]) -> dict[str, Any]:
    folder: Path = make_tiny_base(run["output_dir"].parent / "other", seed=1)
    return {"pretrained_model_name_or_path": str(folder)}


def _half(part: str, name: str) -> Callable[..., dict[str, Any]]:
    """Return a change of the run's base: all weights of one part are halved."""

    def change(run: dict[str, Any], _: Callable[..., Path]) -> dict[str, Any]:
        folder = run["output_dir"].parent / f"half-{part}"
        shutil.copytree(run["pretrained_model_name_or_path"], folder)
        weights = {key: tensor / 2 for key, tensor in load_file(folder / part / name).items()}
        save_file(weights, folder / part / name, metadata={"format": "pt"})
        return {"pretrained_model_name_or_path": str(folder)}

    return change


def _another_picture(run: dict[str, Any], _: Callable[..., Path]) -> dict[str, Any]:
    folder = shutil.copytree(run["train_data_dir"], run["output_dir"].parent / "redrawn" / "pictures")
    picture = np.asarray(Image.open(folder / "0.png")).copy()
    picture[0, 0] += 1
    Image.fromarray(picture).save(folder / "0.png")
    return {"train_data_dir": folder}


def _another_caption(run: dict[str, Any], _: Callable[..., Path]) -> dict[str, Any]:
    folder = shutil.copytree(run["train_data_dir"], run["output_dir"].parent / "reworded" / "pictures")
    (folder / "0.txt").write_text("a crimson texture")
    return {"train_data_dir": folder}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda *_: {"learning_rate": 5e-3}, "--learning_rate"),
        (lambda *_: {"lora_alpha": 4.0}, "--lora_alpha"),
        (_another_picture, "data is not what the checkpoint was made with"),
        (_another_caption, "data is not what the checkpoint was made with"),
        (_another_base, "base_fingerprint is not what the checkpoint was made with"),
        (_half("vae", "diffusion_pytorch_model.safetensors"), r"the base differs in vae\."),
        (_half("text_encoder", "model.safetensors"), r"the base differs in text_encoder\."),
    ],
    ids=["rate", "alpha", "picture", "caption", "base", "autoencoder", "text encoder"],
)
def test_a_checkpoint_is_not_continued_with_other_data_base_or_settings(
    change: Callable[..., dict[str, Any]], word: str, adapter_run: dict[str, Any], make_tiny_base: Callable[..., Path]
) -> None:
    """All: nothing is compared on resume."""
    folder: Path = adapter_run["output_dir"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}
    more = {**adapter_run, **change(adapter_run, make_tiny_base), "resume_from_checkpoint": "latest"}
    with pytest.raises(OutputError, match=word):
        _train("lora", _settings("lora", more), _bare)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "manifest.json: is missing"), (b"", "manifest.json: is not JSON"), (b"\xff{}", "byte 0 is not UTF-8")],
    ids=["missing", "empty", "not UTF-8"],
)
def test_a_run_whose_manifest_cannot_be_read_is_not_taken_for_another_one(
    content: bytes | None, said: str, adapter_run: dict[str, Any]
) -> None:
    """All: there is no manifest."""
    manifest: Path = adapter_run["output_dir"] / "manifest.json"
    before = manifest.read_bytes()
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    try:
        with pytest.raises(OutputError, match=said):
            _train("lora", _settings("lora", {**adapter_run, "resume_from_checkpoint": "latest"}), _bare)
    finally:
        manifest.write_bytes(before)


def test_the_loss_falls(arguments: dict[str, Any], tmp_path: Path) -> None:
    """All: their tests ask whether files and keys exist. (That captions match images is tested with the cache.)"""
    more = {"max_train_steps": 30, "train_batch_size": 4, "learning_rate": 2e-3, "output_dir": tmp_path / "run"}
    _train("full_unet", _settings("full_unet", arguments, **more), _bare)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
