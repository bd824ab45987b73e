"""What a run begins from on each family of bases, and what gives way to what a user types."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import SettingsError
from finetune.core.cli import CONFIG_DIR, load_settings
from finetune.core.option_groups import Settings
from finetune.core.setting_changes import changed_settings, to_yaml
from finetune.core.settings import (
    DdpmSettings,
    DreamboothSettings,
    FullUnetSettings,
    LoraDreamboothSettings,
    LoraSettings,
    PivotalTuningSettings,
    TextualInversionSettings,
)

ROOT = Path(__file__).resolve().parents[2]
METHODS: dict[str, type[Settings]] = {
    "full_unet": FullUnetSettings,
    "textual_inversion": TextualInversionSettings,
    "dreambooth": DreamboothSettings,
    "lora": LoraSettings,
    "lora_dreambooth": LoraDreamboothSettings,
    "pivotal_tuning": PivotalTuningSettings,
    "ddpm": DdpmSettings,
}


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FILROUGE_DATA", raising=False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the base of each family, as --pretrained_model_name_or_path says it: folders with configurations only."""
    folder = tmp_path_factory.mktemp("bases")
    for name, width in (("stable_diffusion_1", 768), ("stable_diffusion_2", 1024), ("unknown", 32)):
        for part, config in (
            ("unet", {"cross_attention_dim": width, "sample_size": 64}),
            ("vae", {"block_out_channels": [128, 256, 512, 512]}),
        ):
            (folder / name / part).mkdir(parents=True)
            (folder / name / part / "config.json").write_text(json.dumps(config))
    return {"swatch": "swatch", **{path.name: str(path) for path in folder.iterdir()}}


def load(method: str, base: str | None, *argv: str) -> Any:
    of_base = [] if base is None else ["--pretrained_model_name_or_path", base]
    return load_settings(METHODS[method], method, ["--concept", "sf_dry", *of_base, *argv], CONFIG_DIR)


# learning rate, images at once, precision, steps
RECIPES: dict[tuple[str, str], tuple[float, int, str | None, int]] = {
    ("swatch", "lora"): (2e-3, 8, None, 1000),
    ("swatch", "lora_dreambooth"): (2e-3, 8, None, 800),
    ("swatch", "dreambooth"): (5e-4, 8, None, 800),
    ("swatch", "full_unet"): (5e-4, 8, None, 1000),
    ("swatch", "textual_inversion"): (1e-2, 8, None, 600),
    ("swatch", "pivotal_tuning"): (3e-3, 8, None, 1000),
    ("stable_diffusion_1", "lora"): (1e-4, 4, "bf16", 4000),
    ("stable_diffusion_1", "lora_dreambooth"): (1e-4, 1, "bf16", 500),
    ("stable_diffusion_1", "dreambooth"): (5e-6, 1, "bf16", 800),
    ("stable_diffusion_1", "full_unet"): (1e-5, 4, "bf16", 6000),
    ("stable_diffusion_1", "textual_inversion"): (2e-3, 4, "bf16", 3000),
    ("stable_diffusion_1", "pivotal_tuning"): (1e-4, 4, "bf16", 1000),
    ("stable_diffusion_2", "lora"): (1e-4, 4, "bf16", 4000),
    ("stable_diffusion_2", "lora_dreambooth"): (1e-4, 1, "bf16", 500),
    ("stable_diffusion_2", "dreambooth"): (2e-6, 1, "bf16", 800),
    ("stable_diffusion_2", "full_unet"): (1e-5, 4, "bf16", 6000),
    ("stable_diffusion_2", "textual_inversion"): (2e-3, 4, "bf16", 3000),
    ("stable_diffusion_2", "pivotal_tuning"): (1e-4, 4, "bf16", 1000),
}


@pytest.mark.parametrize(("family", "method"), RECIPES)
def test_the_same_command_is_right_on_every_base(family: str, method: str, bases: dict[str, str]) -> None:
    found = load(method, bases[family])
    told = (found.learning_rate, found.train_batch_size, found.mixed_precision, found.max_train_steps)
    assert told == RECIPES[family, method]
    assert found.origin.warnings == ()
    (line,) = found.origin.plan  # nothing of a recipe gives way to nothing
    assert line.startswith(f"recipe      configs/bases/{family}.yaml, {method}: ")
    assert "unet/config.json" in line


def test_every_recipe_has_its_methods_and_no_others() -> None:
    files = sorted((CONFIG_DIR / "bases").glob("*.yaml"))
    assert {path.stem for path in files} == {family for family, _ in RECIPES}
    for path in files:
        assert yaml.safe_load(path.read_text()).keys() == {"all", *METHODS} - {"ddpm"}
        for method in METHODS.keys() - {"ddpm"}:
            assert {(family, name) for family, name in RECIPES if family == path.stem} >= {(path.stem, method)}


def test_the_base_is_swatch_where_none_is_named_and_may_stand_in_a_file(bases: dict[str, str], tmp_path: Path) -> None:
    assert load("lora", None).learning_rate == 2e-3
    file = tmp_path / "mine.yaml"
    file.write_text(f"pretrained_model_name_or_path: {bases['stable_diffusion_2']}\n")
    assert load("dreambooth", None, "--config", str(file)).learning_rate == 2e-6
    assert load("dreambooth", bases["stable_diffusion_1"], "--config", str(file)).learning_rate == 5e-6


def test_a_base_of_an_unknown_shape_gets_the_careful_values_and_the_plan_says_so(bases: dict[str, str]) -> None:
    found = load("lora", bases["unknown"])
    assert found.learning_rate == 1e-4
    assert "the shape of the base is not known (cross_attention_dim 32 in unet/config.json)" in found.origin.plan[0]


def test_help_shows_the_recipe_of_the_base_that_is_named(
    bases: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for base, rate in ((None, "0.002|2e-3"), (bases["stable_diffusion_1"], "1e-4")):
        with pytest.raises(SystemExit):
            load("lora", base, "--help")
        assert re.search(rf"learning rate after warm-up \(default: ({rate})\)", capsys.readouterr().out)


# what a user types wins: method, family, command line, what the settings are then, how often something gives way

GIVES_WAY: dict[str, tuple[str, str, list[str], dict[str, Any], int]] = {
    "a run shorter than the warm-up": ("ddpm", "", ["--max_train_steps", "20"], {"lr_warmup_steps": 2}, 1),
    "a schedule beside schedule-free": (
        "lora",
        "swatch",
        ["--optimizer", "schedule_free"],
        {"lr_scheduler": "constant"},
        1,
    ),
    "a warm-up beside schedule-free stays": (
        "lora",
        "stable_diffusion_1",
        ["--optimizer", "schedule_free"],
        {"lr_scheduler": "constant", "lr_warmup_steps": 100},
        1,
    ),
    "the rate that Prodigy finds": ("lora", "swatch", ["--optimizer", "prodigy"], {"learning_rate": 1.0}, 1),
    "the rate that Prodigy finds, of a base without a recipe": (
        "lora",
        "unknown",
        ["--optimizer", "prodigy"],
        {"learning_rate": 1.0, "text_encoder_lr": None},
        1,
    ),
    "one rate for all parts": (
        "pivotal_tuning",
        "stable_diffusion_1",
        ["--optimizer", "prodigy"],
        {"learning_rate": 1.0, "embedding_lr": None},
        2,
    ),
    "a warm-up beside a constant rate": (
        "lora",
        "stable_diffusion_1",
        ["--lr_scheduler", "constant"],
        {"lr_scheduler": "constant", "lr_warmup_steps": 0},
        1,
    ),
    "a constant rate beside a warm-up": (
        "full_unet",
        "stable_diffusion_1",
        ["--lr_warmup_steps", "50"],
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 50},
        1,
    ),
    "a schedule without restarts": (
        "lora",
        "swatch",
        ["--lr_num_cycles", "3"],
        {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 3},
        1,
    ),
    "a schedule without an exponent": ("lora", "swatch", ["--lr_power", "2"], {"lr_scheduler": "polynomial"}, 1),
    "layers without convolutions": (
        "lora",
        "stable_diffusion_1",
        ["--conv_rank", "2"],
        {"target": "attention+conv", "conv_rank": 2},
        1,
    ),
    "a rate of a frozen text encoder, in no use": ("lora", "stable_diffusion_1", [], {"text_encoder_lr": None}, 0),
    "a rate of a trained text encoder": (
        "dreambooth",
        "stable_diffusion_1",
        ["--train_text_encoder"],
        {"text_encoder_lr": 2e-6},
        0,
    ),
    "images of the class, in no use": ("dreambooth", "stable_diffusion_2", [], {"num_class_images": 100}, 0),
    "images of the class": (
        "dreambooth",
        "stable_diffusion_2",
        ["--with_prior_preservation"],
        {"num_class_images": 200, "sample_batch_size": 4},
        0,
    ),
    "the average of weights": ("ddpm", "", ["--no-use_ema"], {"use_ema": False, "ema_decay": 0.999}, 0),
    "a mirrored digit": (
        "ddpm",
        "",
        ["--concept", "none", "--data_format", "mnist", "--train_data_dir", "x"],
        {"random_flip": False},
        1,
    ),
    "a variance that nothing trains": ("ddpm", "", ["--learned_variance"], {"loss": "hybrid"}, 1),
}


@pytest.mark.parametrize("case", GIVES_WAY)
def test_what_a_user_types_wins_over_what_a_recipe_says(case: str, bases: dict[str, str]) -> None:
    method, family, argv, expected, num_told = GIVES_WAY[case]
    found = load(method, bases[family] if family else None, *argv)
    assert found.model_dump(include=set(expected)) == expected
    told = [line for line in found.origin.plan if line.startswith("gives way")]
    assert len(told) == num_told, told
    typed = [word for word in argv if word.startswith("--")]
    assert all(any(word in line for word in typed) for line in told)


def test_a_file_gives_way_to_the_command_line_and_an_earlier_file_to_a_later_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train_text_encoder: true\ntext_encoder_lr: 1e-5\nadam_beta1: 0.5\num_per_px: 40\n")
    second.write_text("optimizer: adafactor\npx_per_voxel: 2\n")
    found = load("lora", None, "--config", str(first), str(second), "--no-train_text_encoder")
    assert (found.text_encoder_lr, found.adam_beta1, found.um_per_px) == (None, 0.9, None)
    told = "\n".join(found.origin.plan)
    assert f"--text_encoder_lr 1e-5 ({first}) is none here, as --train_text_encoder false is asked for" in told
    assert f"--adam_beta1 0.5 ({first}) is 0.9 here, as --optimizer adafactor is asked for" in told
    assert f"--um_per_px 40 ({first}) is none here, as --px_per_voxel 2 is asked for" in told


def test_the_prior_of_a_study_is_left_out_with_all_that_belongs_to_it() -> None:
    study = str(CONFIG_DIR / "studies" / "dreambooth_zigzagged.yaml")
    argv = ["--config", study, "--no-with_prior_preservation"]
    found = load_settings(DreamboothSettings, "dreambooth", argv, CONFIG_DIR)
    assert (found.with_prior_preservation, found.class_prompt) == (False, None)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--lr_scheduler", "constant", "--lr_warmup_steps", "10"], "--lr_warmup_steps: found 10"),
        (["--optimizer", "prodigy", "--learning_rate", "1e-4"], "--learning_rate: found 0.0001"),
        (["--optimizer", "schedule_free", "--lr_scheduler", "cosine"], "--lr_scheduler: found cosine"),
        (["--text_encoder_lr", "1e-5"], "--text_encoder_lr: the text encoder is not trained"),
        (["--max_train_steps", "20", "--lr_warmup_steps", "20"], "--lr_warmup_steps: found 20"),
        (["--train_data_dir", "x"], "--concept, --train_data_dir: expected only one"),
        # no length can be guessed from a warm-up
        (["--lr_warmup_steps", "5000"], "--lr_warmup_steps: found 5000"),
    ],
)
def test_what_two_typed_values_contradict_stays_an_error(argv: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load("lora", None, *argv)
    (problem,) = caught.value.problems
    assert problem.startswith(said)


# unusual rates


@pytest.mark.parametrize(
    ("method", "family", "argv", "said"),
    [
        (
            "lora",
            "stable_diffusion_1",
            ["--learning_rate", "2e-3"],
            "--learning_rate: 0.002 is 20 times the 0.0001 that",
        ),
        ("lora", "stable_diffusion_1", ["--learning_rate", "1e-3"], "is 10 times the 0.0001"),
        ("lora", "stable_diffusion_1", ["--learning_rate", "9e-4"], None),
        ("lora", "swatch", ["--learning_rate", "1e-4"], "--learning_rate: 0.0001 is 1/20 of the 0.002 that"),
        ("lora", "unknown", ["--learning_rate", "2e-3"], "that configs/bases/stable_diffusion_1.yaml has"),
        (
            "dreambooth",
            "stable_diffusion_2",
            ["--scale_lr", "--train_batch_size", "16"],
            "times 16 images (--scale_lr)",
        ),
        ("textual_inversion", "stable_diffusion_1", ["--scale_lr", "--learning_rate", "5e-4"], None),
        ("lora", "stable_diffusion_1", ["--optimizer", "prodigy", "--learning_rate", "1"], None),
        (
            "lora",
            "stable_diffusion_1",
            ["--train_text_encoder", "--text_encoder_lr", "1e-4"],
            "--text_encoder_lr: 0.0001 is 20 times the 5e-06",
        ),
        ("pivotal_tuning", "stable_diffusion_1", ["--embedding_lr", "1e-4"], "--embedding_lr: 0.0001 is 1/20 of"),
        ("ddpm", "", ["--learning_rate", "1e-4"], None),
    ],
)
def test_a_rate_far_from_the_familys_is_a_warning(
    method: str, family: str, argv: list[str], said: str | None, bases: dict[str, str]
) -> None:
    origin = load(method, bases[family] if family else None, *argv).origin
    assert len(origin.warnings) == (said is not None), origin.warnings
    if said is not None:
        assert said in origin.warnings[0]
        assert f"warning     {origin.warnings[0]}" in origin.plan


def test_every_study_and_preset_is_of_usual_rates() -> None:
    for path in (CONFIG_DIR / "studies").glob("*.yaml"):
        if method := re.search(r"finetune/(\w+)\.py", path.read_text().splitlines()[0]):
            found = load_settings(METHODS[method[1]], method[1], ["--config", str(path)], CONFIG_DIR)
            assert found.origin.warnings == (), path


# sizes


@pytest.mark.parametrize(
    ("method", "family", "argv", "said"),
    [
        ("lora", "swatch", ["--resolution", "37"], "found 37, expected a multiple of 8: 32 or 40."),
        (
            "full_unet",
            "stable_diffusion_1",
            ["--resolution", "500"],
            "found 500, expected a multiple of 8: 496 or 504.",
        ),
        ("lora", "nobody/nothing", ["--resolution", "500"], "found 500, expected a multiple of 8: 496 or 504."),
        (
            "lora",
            "swatch",
            ["--resolution", "97", "--aspect_buckets"],
            "found 97, expected a multiple of 8: 96 or 104.",
        ),
        (
            "ddpm",
            "",
            ["--resolution", "37"],
            "found 37, expected a multiple of 2, as 2 levels halve it 1 times: 36 or 38.",
        ),
        (
            "ddpm",
            "",
            ["--resolution", "36", "--block_out_channels", "32", "32", "64", "64"],
            "found 36, expected a multiple of 8, as 4 levels halve it 3 times: 32 or 40.",
        ),
    ],
)
def test_a_size_that_the_model_cannot_take_is_refused_beside_all_other_problems(
    method: str, family: str, argv: list[str], said: str, bases: dict[str, str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(method, bases.get(family, family) or None, *argv, "--seed", "-1")
    assert sorted(caught.value.problems)[0] == f"--resolution: {said}"
    assert len(caught.value.problems) == 2


# a run that goes on


@pytest.mark.parametrize("argv", [["--optimizer", "schedule_free"], ["--max_train_steps", "20"], ["--lr_power", "2"]])
def test_a_repeated_command_and_its_written_settings_are_the_same_run(
    argv: list[str], bases: dict[str, str], tmp_path: Path
) -> None:
    base = bases["stable_diffusion_1"]
    then = load("lora", base, *argv)
    written = tmp_path / "settings.yaml"
    written.write_text(to_yaml(then))
    again = load("lora", base, *argv, "--resume_from_checkpoint", "latest")
    assert changed_settings(yaml.safe_load(written.read_text()), again).refused == {}
    assert load_settings(LoraSettings, "lora", ["--config", str(written)], CONFIG_DIR) == then


# start-up


def test_a_size_is_refused_before_anything_heavy_is_imported(bases: dict[str, str]) -> None:
    command = [sys.executable, "-X", "importtime", "finetune/lora.py", "--concept", "sf_dry", "--resolution", "37"]
    command += ["--pretrained_model_name_or_path", bases["stable_diffusion_1"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--resolution: found 37, expected a multiple of 8: 32 or 40.")
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "numpy", "diffusers", "transformers", "accelerate", "huggingface_hub"}
