"""Defects of the script that people know for pixel-space DDPM (train_unconditional.py), one test for each.

A test is named after the promise, its docstring says the defect. What all scripts have in common (old checkpoints
deleted first, no hashes, no settings in a run) is tested in `test_ecosystem_defects.py`, and resume in the contract.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from data.labelled.cifar import HELD_OUT, TRAINING
from data.tif.writer import write_stack
from finetune.core import hub
from finetune.core.cli import CONFIG_DIR, load_settings, run_script
from finetune.core.method import Batch, Method, Objective
from finetune.core.objective import NoiseObjective
from finetune.core.run import run
from finetune.core.settings import DdpmSettings
from pipelines.pixel_model import load_pixel_model
from tests.data.test_labelled_pictures import idx

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALL = ("--resolution", "16", "--block_out_channels", "8", "16", "--num_train_timesteps", "20")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Few sampling steps and held-out pictures show as much as many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.core.pixel_assembly.SAMPLING_STEPS", 2)
        patch.setattr("finetune.core.pixel_assembly.VALIDATION_IMAGES", 1)
        patch.setattr("finetune.core.pixel_exports.FINAL_STEPS", 2)
        patch.delenv("FILROUGE_DATA", raising=False)
        yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one volume whose grey values rise along every axis, by 41, 30 and 20 from voxel to voxel."""
    folder = tmp_path_factory.mktemp("scans")
    z, y, x = np.meshgrid(np.arange(40), np.arange(40), np.arange(90), indexing="ij")
    write_stack(folder / "dry.tif", (20000 + 41 * z + 30 * y + 20 * x).astype(np.uint16), (40.0, 40.0, 40.0))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve coloured pictures of 20 x 28 px in two classes, one folder each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for number in range(12):
        name, colour = ("red", (200, 40, 40)) if number % 2 else ("blue", (40, 40, 200))
        (folder / name).mkdir(exist_ok=True)
        pixels = np.array(colour) + rng.integers(-30, 30, (20, 28, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def _command(source: Path, output_dir: Path, *more: str) -> list[str]:
    where = ("--concept", "sf_dry_weft", "--data_root") if (source / "dry.tif").exists() else ("--train_data_dir",)
    length = (
        "--max_train_steps",
        "2",
        "--train_batch_size",
        "2",
        "--lr_scheduler",
        "constant",
        "--lr_warmup_steps",
        "0",
    )
    return [*where, str(source), "--output_dir", str(output_dir), *SMALL, *length, "--logging_steps", "1", *more]


def _run(argv: list[str]) -> int:
    AcceleratorState._reset_state(True)
    return run_script(import_module("finetune.ddpm").main, DdpmSettings, "ddpm", argv)


def _settings(argv: list[str]) -> DdpmSettings:
    return load_settings(DdpmSettings, "ddpm", argv, CONFIG_DIR)


def _build(argv: list[str]) -> Method:
    AcceleratorState._reset_state(True)
    method: Method = import_module("finetune.ddpm").build(_settings(argv), Accelerator(cpu=True))
    return method


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def colours_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on coloured pictures with seed 5."""
    folder = tmp_path_factory.mktemp("colours") / "run"
    assert _run(_command(pictures, folder, "--seed", "5", "--learning_rate", "1e-2")) == 0
    return folder


def _bare_run(argv: list[str], change: Callable[[Method], Method] = lambda method: method) -> None:
    """Run steps and checkpoints alone: no sheets, no artefact. change: makes another method of the script's."""
    AcceleratorState._reset_state(True)
    build = import_module("finetune.ddpm").build

    def bare(settings: DdpmSettings, accelerator: Accelerator) -> Method:
        return change(replace(build(settings, accelerator), preview=None, validate=None, export=lambda _: []))

    run(_settings(argv), bare, default_dir="unused")


def test_a_seed_repeats_the_run_and_another_seed_is_another_run(
    colours_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """DDPM: there is no --seed."""
    weights = [(colours_run / "checkpoint-2" / "unet.safetensors").read_bytes()]
    for seed in ("5", "6"):
        _bare_run(_command(pictures, tmp_path / seed, "--seed", seed, "--learning_rate", "1e-2"))
        weights.append((tmp_path / seed / "checkpoint-2" / "unet.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_slices_train_in_one_channel_and_colours_in_three(scans: Path, colours_run: Path, tmp_path: Path) -> None:
    """DDPM: three channels are forced."""
    assert _run(_command(scans, tmp_path / "slices")) == 0
    for folder, channels in ((tmp_path / "slices", 1), (colours_run, 3)):
        unet = UNet2DModel.from_pretrained(folder / "unet")
        assert (unet.config.in_channels, unet.config.out_channels) == (channels, channels)
        pipe = DDIMPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, channels)
    model = load_pixel_model(tmp_path / "slices")
    assert model.um_per_px == 40.0
    (greys,) = model.grey_values.values()
    assert greys["dtype"] == "uint16"
    low, high = greys["window"]
    assert 20000 <= low < high <= 25000


def test_one_channel_can_be_asked_for_of_colours(pictures: Path, tmp_path: Path) -> None:
    """DDPM: three channels are forced."""
    method = _build(_command(pictures, tmp_path / "grey", "--channels", "1"))
    assert method.manifest["pixel_model"]["channels"] == 1
    assert method.objective.losses(Batch.collate([[(0, method.dataset.sample(0))]])).shape == (1,)


def test_sixteen_bits_reach_the_network(scans: Path, tmp_path: Path) -> None:
    """DDPM: pictures become 8-bit, or 16-bit ones are kept without a window, which is nearly black."""
    method = _build(_command(scans, tmp_path / "run", "--no-random_flip"))
    seen: list[torch.Tensor] = []

    def note(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    pixels = torch.from_numpy(method.dataset.sample(0).pixels)[None, :1]
    assert len(pixels.unique()) == 256  # every place has another value, which 8 bits cannot tell apart
    assert len((pixels * 127.5).round().unique()) < 100
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    method.trainables[0].module.register_forward_pre_hook(note)
    method.objective.losses(Batch.collate([[(0, method.dataset.sample(0))]]))
    assert len(seen[0].unique()) == 256


def test_v_is_trained_and_told(pictures: Path, tmp_path: Path) -> None:
    """DDPM: the noise or the picture only, no v."""
    assert _run(_command(pictures, tmp_path / "run", "--prediction_type", "v_prediction")) == 0
    assert DDPMPipeline.from_pretrained(tmp_path / "run").scheduler.config.prediction_type == "v_prediction"
    assert load_pixel_model(tmp_path / "run").prediction_type == "v_prediction"


def test_flips_are_those_that_the_plane_allows_and_none_without_being_asked(scans: Path, tmp_path: Path) -> None:
    """DDPM: a left-right flip is all there is."""
    assert not DdpmSettings(concept="sf_dry").random_flip

    def directions(concept: str, *more: str) -> set[tuple[bool, bool]]:
        command = [concept if word == "sf_dry_weft" else word for word in _command(scans, tmp_path / "run", *more)]
        method = _build(command)
        crops = [method.dataset.sample(position).pixels[0] for position in range(40)]
        return {(bool(c[-1, 0] > c[0, 0]), bool(c[0, -1] > c[0, 0])) for c in crops}

    assert directions("sf_dry_weft", "--no-random_flip") == {(True, True)}
    assert directions("sf_dry_weft", "--random_flip") == {(True, True), (True, False)}
    assert len(directions("sf_dry_thickness", "--random_flip")) == 4


@dataclass(frozen=True)
class _Noting:
    """An objective that notes which pictures it was shown."""

    objective: Objective
    seen: list[str]

    def losses(self, batch: Batch) -> torch.Tensor:
        self.seen.extend(source.partition(" @")[0] for source in batch.sources)
        return self.objective.losses(batch)


def test_a_resumed_run_sees_what_it_had_not_seen(pictures: Path, tmp_path: Path) -> None:
    """DDPM: on resume the order of the pictures is drawn anew, and the epoch's first ones are seen again."""
    command = [*_command(pictures, tmp_path / "run"), "--max_train_steps", "6", "--checkpointing_steps", "2"]
    straight: list[str] = []
    _bare_run(command, lambda method: replace(method, objective=_Noting(method.objective, straight)))
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    resumed: list[str] = []
    command += ["--resume_from_checkpoint", "checkpoint-2"]
    _bare_run(command, lambda method: replace(method, objective=_Noting(method.objective, resumed)))
    assert len(set(straight[:10])) == len(set(straight)) == 10  # an epoch is ten of the twelve pictures
    assert resumed == straight[4:]


def test_the_rate_falls_to_zero_at_the_end_whatever_is_accumulated(pictures: Path, tmp_path: Path) -> None:
    """DDPM: the schedule is stretched by the accumulation, so that only its first part is gone through."""
    courses = []
    for size, accumulated in ((2, 1), (1, 2)):
        folder = tmp_path / f"{accumulated}"
        more = ("--train_batch_size", str(size), "--gradient_accumulation_steps", str(accumulated))
        _bare_run([*_command(pictures, folder), *more, "--max_train_steps", "4", "--lr_scheduler", "cosine"])
        courses.append([line["lr"] for line in _lines(folder)])
    assert courses[0] == courses[1]
    assert courses[0][-1] < 0.2 * courses[0][0]


def test_gradient_checkpointing_gives_the_same_gradients(pictures: Path, tmp_path: Path) -> None:
    """DDPM: there is no gradient checkpointing."""
    gradients = []
    for more in ((), ("--gradient_checkpointing",)):
        method = _build(_command(pictures, tmp_path / "run", *more))
        part = method.trainables[0]
        assert part.module.is_gradient_checkpointing == bool(more)
        part.module.train()
        method.objective.losses(Batch.collate([[(p, method.dataset.sample(p))] for p in range(2)])).sum().backward()
        gradients.append({name: p.grad for name, p in part.named_parameters().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_the_average_is_kept_by_default_and_exported(colours_run: Path) -> None:
    """DDPM: without --use_ema there is no average."""
    kept = load_file(colours_run / "checkpoint-2" / "unet.safetensors")
    exported = load_file(colours_run / WEIGHTS)
    assert all(torch.equal(weight, kept[f"ema/{name}"]) for name, weight in exported.items())
    assert not torch.equal(exported["conv_in.weight"], kept["conv_in.weight"])


def test_what_is_published_draws_and_does_not_say_where_it_was_made(
    colours_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDPM: the card is that of every other model, and holds the folder of the machine that trained it."""
    card = ModelCard.load(colours_run / "README.md")
    tags = {"unconditional-image-generation", "diffusers", "diffusers-training", "ddpm", "filrouge"}
    assert (set(card.data.tags), card.data.library_name) == (tags, "diffusers")
    staged = tmp_path / colours_run.name  # under the name that the card's code has
    hub.stage(colours_run, staged)
    files = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
    assert {"README.md", "model_index.json", "pixel_model.json", "curves.png", "final.png", WEIGHTS} <= files.keys()
    here = [str(place).encode() for place in (colours_run.parent, pictures)]
    assert not [name for name, path in files.items() if any(place in path.read_bytes() for place in here)]
    monkeypatch.chdir(tmp_path)
    code = card.text.partition("```python\n")[2].partition("\n```")[0].replace("pipe()", "pipe(num_inference_steps=2)")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image"].size == (16, 16)


def test_classes_are_told_and_some_labels_left_out(pictures: Path, tmp_path: Path) -> None:
    """DDPM: there are no classes."""
    method = _build(_command(pictures, tmp_path / "run", "--class_conditional", "--proportion_empty_labels", "0.5"))
    assert sorted(method.manifest["pixel_model"]["class_labels"]) == ["blue", "red"]
    dropped = [method.dataset.sample(position).is_dropped for position in range(60)]
    assert 15 < sum(dropped) < 45
    plain = _build(_command(pictures, tmp_path / "run"))
    assert not any(plain.dataset.sample(position).is_dropped for position in range(60))


def test_without_normalisation_the_network_sees_0_to_1_and_diffusers_draws_it_pale(
    pictures: Path, tmp_path: Path
) -> None:
    """The pale pictures of the first run of the source report: what was between 0 and 1 is shown between 0.5 and 1."""
    method = _build(_command(pictures, tmp_path / "run", "--no-normalize"))
    pixels = torch.from_numpy(method.dataset.sample(0).pixels)[None]
    assert isinstance(method.objective, NoiseObjective)
    shown, _ = method.objective.space.moments(pixels)
    torch.testing.assert_close(shown, pixels / 2 + 0.5)
    assert _run(_command(pictures, tmp_path / "run", "--no-normalize")) == 0
    assert not load_pixel_model(tmp_path / "run").normalized
    pipe = DDPMPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.forward = lambda x_t, t: UNet2DOutput(sample=_noise_of(shown, x_t, pipe, t))
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    drawn = pipe(num_inference_steps=20, output_type="pt").images
    torch.testing.assert_close(drawn, shown / 2 + 0.5, atol=1e-3, rtol=0)  # by a perfect predictor


def _noise_of(x0: torch.Tensor, x_t: torch.Tensor, pipe: DDPMPipeline, t: torch.Tensor) -> torch.Tensor:
    alpha_bar = pipe.scheduler.alphas_cumprod[t]
    return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def test_digits_and_small_pictures_train_from_their_own_files(tmp_path: Path) -> None:
    """DDPM: pictures come from a hub, or from a folder of picture files."""
    rng = np.random.default_rng(0)
    for side, number in (("train", 12), ("t10k", 10)):
        digits, labels = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8), np.arange(number, dtype=np.uint8) % 10
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(idx(digits))
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(idx(labels))
    for name in (*TRAINING, *HELD_OUT):
        records = rng.integers(0, 256, (2, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (tmp_path / name).write_bytes(records.tobytes())
    for preset, size_px, channels, num_classes in (("mnist", 32, 1, 10), ("cifar10_hybrid", 32, 3, 0)):
        folder = tmp_path / preset
        command = [
            "--config",
            str(CONFIG_DIR / "methods" / "ddpm" / f"{preset}.yaml"),
            "--train_data_dir",
            str(tmp_path),
        ]
        command += ["--output_dir", str(folder), "--model_size", "small", "--block_out_channels", "8", "16"]
        command += ["--layers_per_block", "1", "--max_train_steps", "2", "--train_batch_size", "2"]
        command += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--num_validation_images", "1"]
        assert _run(command) == 0
        model = load_pixel_model(folder)
        assert (model.size_px, model.channels, len(model.class_labels)) == (size_px, channels, num_classes)
        assert (folder / "samples" / "step-000002.png").exists()
        assert "validation_loss" in _lines(folder)[-1]


def test_a_dry_run_says_what_would_be_trained(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DDPM: nothing is told before the training."""
    more = ("--learned_variance", "--loss", "hybrid", "--class_conditional", "--dry_run")
    assert _run(_command(pictures, tmp_path / "run", *more)) == 0
    told = capsys.readouterr().out
    assert "model       16 px in 3 channels, U-Net of 8-16 channels; predicts v_prediction and its variance" in told
    assert "on the cosine schedule of 20 timesteps, 2 classes" in told
    assert not (tmp_path / "run").exists()


def test_the_flags_of_the_known_script_are_understood(pictures: Path, tmp_path: Path) -> None:
    known = ("--ddpm_num_steps", "30", "--ddpm_beta_schedule", "sigmoid", "--ema_max_decay", "0.9", "--logger", "none")
    settings = _settings(_command(pictures, tmp_path / "run", *known))
    assert (settings.num_train_timesteps, settings.noise_schedule, settings.ema_decay) == (30, "sigmoid", 0.9)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--resolution", "17"], 2, "found 17, expected a multiple of 2"),
        (["--block_out_channels", "12"], 2, "--block_out_channels: found 8 16 12, expected multiples of 8"),
        (["--noise_schedule", "cosin"], 2, "--noise_schedule: found 'cosin'"),
        (["--num_train_timesteps", "1"], 2, "--num_train_timesteps"),
        (["--channels", "2"], 2, "expected 1 (grey) or 3 (colours)"),
        (["--class_conditional", "--validation_prompt", "blu"], 2, "found 'blu'. Did you mean blue?"),
        (["--learned_variance"], 2, "Write --loss hybrid"),
        (["--pretrained_model_name_or_path", "swatch"], 2, "--pretrained_model_name_or_path: unknown option"),
        (["--data_format", "mnist", "--no-random_flip"], 3, "train-images-idx3-ubyte: the file is missing"),
        (["--data_format", "cifar10"], 3, "test_batch.bin: the file is missing"),
    ],
)
def test_wrong_input_is_told_without_a_traceback(
    more: list[str], code: int, words: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(_command(pictures, tmp_path / "run", *more)) == code
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert not (tmp_path / "run" / "unet").exists()


def test_one_class_is_no_class(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_command(scans, tmp_path / "run", "--class_conditional")) == 2
    assert "all pictures have the caption 'sf_dry sf_weft'" in capsys.readouterr().err


def test_presets_are_valid_under_the_commands_in_their_headers() -> None:
    presets = sorted((CONFIG_DIR / "methods" / "ddpm").glob("*.yaml"))
    assert len(presets) >= 5
    for path in presets:
        command = path.read_text(encoding="utf-8").splitlines()[0].split()
        assert command[:4] == ["#", "accelerate", "launch", "finetune/ddpm.py"]
        assert command[4:6] == ["--config", f"configs/methods/ddpm/{path.name}"]
        _settings(["--config", str(path), *command[6:]])
