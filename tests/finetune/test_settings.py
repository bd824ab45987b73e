from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.errors import OutputError
from finetune.core.cli import load_settings
from finetune.core.option_groups import Settings
from finetune.core.setting_changes import changed_settings, refuse_changes, to_yaml
from finetune.core.settings import (
    DdpmSettings,
    DreamboothSettings,
    FullUnetSettings,
    LoraDreamboothSettings,
    LoraSettings,
    PivotalTuningSettings,
    TextualInversionSettings,
)

BASE = LoraSettings(concept="sf_dry")
WRITABLE = st.characters(exclude_categories=["Cs"], exclude_characters="\0")  # no NUL can be typed either
# the options that settings.yaml holds: a token is written nowhere
WRITTEN = [name for name in LoraSettings.model_fields if name != "hub_token"]

# one other valid value for every option
OTHER: dict[str, Any] = {
    "pretrained_model_name_or_path": "some/base",
    "revision": "main",
    "variant": "fp16",
    "concept": "sf_warp",
    "train_data_dir": "images",
    "dataset_name": "owner/textures",
    "dataset_config_name": "full",
    "image_column": "picture",
    "caption_column": "caption",
    "default_caption": "a woven surface",
    "skip_bad": True,
    "instance_prompt": ["a w17h3r slice"],
    "data_root": "scans",
    "resolution": 128,
    "um_per_px": 5.5,
    "px_per_voxel": 2.0,
    "aspect_buckets": True,
    "split_by": "folder",
    "group_column": "specimen",
    "dtd_split": 10,
    "allow_outside_files": True,
    "images_per_class": 3,
    "center_crop": True,
    "random_flip": True,
    "proportion_empty_prompts": 0.5,
    "held_out_fraction": 0.25,
    "seed": 7,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "max_train_steps": 900,
    "num_train_epochs": 4,
    "learning_rate": 2e-5,
    "scale_lr": True,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 10,
    "lr_num_cycles": 2,
    "lr_power": 2.0,
    "adam_beta1": 0.95,
    "adam_beta2": 0.99,
    "adam_weight_decay": 0.0,
    "adam_epsilon": 1e-6,
    "optimizer": "adafactor",
    "max_grad_norm": 0.5,
    "mixed_precision": "no",
    "gradient_checkpointing": True,
    "enable_xformers_memory_efficient_attention": True,
    "allow_tf32": True,
    "dataloader_num_workers": 2,
    "ddp_timeout_minutes": 5.0,
    "num_threads": 1,
    "input_perturbation": 0.1,
    "zero_terminal_snr": True,
    "snr_gamma": 5.0,
    "noise_offset": 0.1,
    "prediction_type": "v_prediction",
    "output_dir": "elsewhere",
    "overwrite_output_dir": True,
    "resume_from_checkpoint": "checkpoint-12",
    "checkpointing_steps": 10,
    "checkpoints_total_limit": 2,
    "on_save_error": "warn",
    "report_to": ["tensorboard"],
    "tracker_project_name": "weave",
    "logging_dir": "curves",
    "logging_steps": 1,
    "validation_steps": 5,
    "num_validation_images": 1,
    "validation_prompt": ["sf_dry sf_warp"],
    "push_to_hub": True,
    "hub_model_id": "ann/weave",
    "hub_private_repo": True,
    "dry_run": True,
    "identifier_report": True,
    "target": "attention+conv",
    "rank": 4,
    "lora_alpha": 8.0,
    "conv_rank": 2,
    "conv_alpha": 1.0,
    "lora_dropout": 0.1,
    "use_dora": True,
    "load_in_4bit": True,
    "train_text_encoder": True,
    "text_encoder_lr": 1e-5,
    "text_encoder_rank": 2,
    "text_encoder_alpha": 1.0,
}
FREE = {
    "identifier_report",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "dry_run",
    "dataloader_num_workers",
    "ddp_timeout_minutes",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "on_save_error",
    "report_to",
    "tracker_project_name",
    "logging_dir",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "logging_steps",
    "validation_steps",
    "num_validation_images",
    "validation_prompt",
}


def plain(model: Settings) -> dict[str, Any]:
    return yaml.safe_load(to_yaml(model))


def test_every_default_keeps_to_its_own_bounds() -> None:
    assert LoraSettings.model_validate(BASE.model_dump()) == BASE


def test_every_option_says_what_it_is() -> None:
    assert [name for name, option in LoraSettings.model_fields.items() if not option.description] == []


def test_no_option_is_required_but_one_source_of_images() -> None:
    assert [name for name, option in LoraSettings.model_fields.items() if option.is_required()] == []


def test_settings_cannot_be_changed_or_extended() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BASE.rank = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        LoraSettings(concept="sf_dry", rnak=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"held_out_fraction": 0.5}, True),
        ({"held_out_fraction": 0.51}, False),
        ({"held_out_fraction": 0.0}, False),
        ({"proportion_empty_prompts": 1.0}, True),
        ({"proportion_empty_prompts": 1.01}, False),
        ({"lora_dropout": 0.0}, True),
        ({"lora_dropout": 1.0}, False),
        ({"lora_alpha": 0.0}, False),
        ({"um_per_px": 0.0}, False),
        ({"px_per_voxel": 0.0}, False),
        ({"dtd_split": 0}, False),
        ({"dtd_split": 10}, True),
        ({"dtd_split": 11}, False),
        ({"checkpoints_total_limit": 1}, False),
        ({"checkpoints_total_limit": 2}, True),
        ({"learning_rate": float("nan")}, False),
        ({"learning_rate": float("inf")}, False),
        ({"resume_from_checkpoint": "latest"}, True),
        ({"resume_from_checkpoint": "checkpoint-0"}, True),
        ({"resume_from_checkpoint": "runs/x/checkpoint-5"}, False),
        ({"concept": "../runs"}, False),
        ({"concept": "dtd_zigzagged"}, True),
        ({"concept": ""}, False),
    ],
)
def test_bounds(values: dict[str, Any], allowed: bool) -> None:
    if allowed:
        LoraSettings.model_validate({"concept": "sf_dry", **values})
    else:
        with pytest.raises(ValidationError, match=next(iter(values))):
            LoraSettings.model_validate({"concept": "sf_dry", **values})


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 100, "max_train_steps": 100}, "--lr_warmup_steps"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 1}, "--lr_warmup_steps"),
        ({"lr_scheduler": "cosine", "lr_num_cycles": 2}, "--lr_num_cycles"),
        ({"lr_scheduler": "linear", "lr_power": 2.0}, "--lr_power"),
        ({"max_train_steps": 10, "num_train_epochs": 2}, "--max_train_steps"),
        ({"overwrite_output_dir": True, "resume_from_checkpoint": "latest"}, "--overwrite_output_dir"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_flag(values: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValidationError, match=flag):
        LoraSettings.model_validate({"concept": "sf_dry", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"lr_scheduler": "cosine", "lr_warmup_steps": 99, "max_train_steps": 100},
        {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2},
        {"lr_scheduler": "polynomial", "lr_power": 2.0},
        {"num_train_epochs": 2},
        {"num_train_epochs": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 5000},
    ],
)
def test_the_same_options_pass_where_they_agree(values: dict[str, Any]) -> None:
    LoraSettings.model_validate({"concept": "sf_dry", **values})


def test_several_contradictions_are_all_reported() -> None:
    with pytest.raises(ValidationError) as caught:
        LoraSettings(concept="sf_dry", lr_power=2.0, overwrite_output_dir=True, resume_from_checkpoint="latest")
    assert "--lr_power" in str(caught.value)
    assert "--overwrite_output_dir" in str(caught.value)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {
            "concept": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
            "learning_rate": st.floats(min_value=1e-300, max_value=1e300),
            "adam_epsilon": st.floats(min_value=1e-30, max_value=1.0),
            "rank": st.integers(1, 10**12),
            "revision": st.none() | st.text(WRITABLE),
            "validation_prompt": st.lists(st.text(WRITABLE, max_size=200), max_size=3),
            "mixed_precision": st.sampled_from([None, "no", "fp16", "bf16"]),
            "data_root": st.none() | st.sampled_from(["/scans", "null", "yes", "a: b", "~", "#1"]).map(Path),
            "center_crop": st.booleans(),
        },
        optional={"num_train_epochs": st.integers(1, 100)},
    )
)
def test_reading_written_yaml_gives_equal_settings(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    written = LoraSettings.model_validate(values)
    folder = tmp_path_factory.getbasetemp()
    (folder / "round.yaml").write_bytes(to_yaml(written).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FILROUGE_DATA", raising=False)
        read = load_settings(LoraSettings, "lora", ["--config", str(folder / "round.yaml")], folder)
    assert read == written


def test_yaml_follows_the_order_of_the_help() -> None:
    names = list(plain(BASE))
    assert names[0] == "pretrained_model_name_or_path"
    assert names[-1] == "text_encoder_alpha"
    assert names == WRITTEN


@pytest.mark.parametrize("settings_class", [TextualInversionSettings, PivotalTuningSettings])
def test_no_report_is_offered_on_a_word_that_is_new(settings_class: type[Settings]) -> None:
    assert "identifier_report" not in settings_class.model_fields


METHODS = {
    "full_unet": FullUnetSettings,
    "textual_inversion": TextualInversionSettings,
    "dreambooth": DreamboothSettings,
    "lora": LoraSettings,
    "lora_dreambooth": LoraDreamboothSettings,
    "pivotal_tuning": PivotalTuningSettings,
    "ddpm": DdpmSettings,
}


def test_every_recipe_is_valid_for_the_script_that_its_header_names() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs"
    recipes = [path for path in sorted((folder / "studies").glob("*.yaml")) if path.name != "methods.yaml"]
    assert len(recipes) >= 11
    for path in recipes:
        command = path.read_text().splitlines()[0]
        method = re.search(r"finetune/(\w+)\.py", command)
        assert method, path
        assert f"configs/studies/{path.name}" in command
        load_settings(METHODS[method[1]], method[1], ["--config", str(path)], folder)
    assert "finetune/ddpm.py" in (folder / "methods" / "ddpm.yaml").read_text().splitlines()[0]


MISUSED = {
    "no images": (LoraSettings, {}, "--concept: missing"),
    "two sources": (LoraSettings, {"concept": "a", "train_data_dir": "b"}, "--concept, --train_data_dir"),
    "a column without a dataset": (LoraSettings, {"concept": "a", "image_column": "x"}, "--image_column"),
    "groups without a dataset": (LoraSettings, {"concept": "a", "group_column": "x"}, "--group_column"),
    "groups beside labels": (
        LoraSettings,
        {"dataset_name": "a/b", "group_column": "x", "split_by": "label"},
        "--group_column: --split_by label",
    ),
    "two scales": (LoraSettings, {"concept": "a", "um_per_px": 2.0, "px_per_voxel": 2.0}, "--um_per_px, --px_per"),
    "buckets beside images of the class": (
        DreamboothSettings,
        {"concept": "a", "aspect_buckets": True, "with_prior_preservation": True},
        "--aspect_buckets",
    ),
    "convolutions that are not adapted": (LoraSettings, {"concept": "a", "conv_rank": 4}, "--conv_rank"),
    "a rate of a frozen text encoder": (LoraSettings, {"concept": "a", "text_encoder_lr": 1e-4}, "--text_encoder_lr"),
    "a rank of a frozen text encoder": (LoraSettings, {"concept": "a", "text_encoder_rank": 4}, "--text_encoder_rank"),
    "a decay of no average": (FullUnetSettings, {"concept": "a", "ema_decay": 0.5}, "--ema_decay"),
    "a prior that is not kept": (DreamboothSettings, {"concept": "a", "class_prompt": "b"}, "--class_prompt"),
    "epsilon of pure noise": (
        FullUnetSettings,
        {"concept": "a", "zero_terminal_snr": True, "prediction_type": "epsilon"},
        "--zero_terminal_snr",
    ),
    "a prompt beside templates": (TextualInversionSettings, {"concept": "a", "instance_prompt": ["b"]}, "--instance"),
    "labels that are not told": (
        DdpmSettings,
        {"concept": "a", "proportion_empty_labels": 0.2},
        "--proportion_empty_l",
    ),
    "rows of a sheet without labels": (
        DdpmSettings,
        {"concept": "a", "validation_prompt": ["b"]},
        "--validation_prompt",
    ),
    "a variance that nothing trains": (DdpmSettings, {"concept": "a", "learned_variance": True}, "--learned_variance"),
    "a hybrid without a variance": (DdpmSettings, {"concept": "a", "loss": "hybrid"}, "--loss: hybrid"),
    "two weights on one loss": (DdpmSettings, {"concept": "a", "loss": "vlb", "snr_gamma": 5.0}, "--snr_gamma"),
    "one level": (DdpmSettings, {"concept": "a", "block_out_channels": [32]}, "--block_out_channels"),
    "pixels of several proportions": (DdpmSettings, {"concept": "a", "aspect_buckets": True}, "--aspect_buckets"),
    "a format without a folder": (DdpmSettings, {"concept": "a", "data_format": "mnist"}, "expected --train_data_dir"),
    "a crop of a whole digit": (
        DdpmSettings,
        {"train_data_dir": "a", "data_format": "cifar10", "center_crop": True},
        "--center_crop",
    ),
    "a mirrored digit": (
        DdpmSettings,
        {"train_data_dir": "a", "data_format": "mnist", "random_flip": True},
        "--random_flip",
    ),
    "a repository of nothing": (
        LoraSettings,
        {"concept": "a", "hub_model_id": "b"},
        "--hub_model_id: nothing is",
    ),
    "a token of nothing": (LoraSettings, {"concept": "a", "hub_token": "b"}, "--hub_token: nothing is uploaded"),
    "a token that trackers would keep": (
        LoraSettings,
        {"concept": "a", "push_to_hub": True, "hub_token": "b", "report_to": ["wandb"]},
        "--hub_token: trackers keep the command line",
    ),
    "a small rate for Prodigy": (LoraSettings, {"concept": "a", "optimizer": "prodigy"}, "--learning_rate"),
    "a schedule beside a schedule-free optimiser": (
        LoraSettings,
        {"concept": "a", "optimizer": "schedule_free", "lr_scheduler": "cosine"},
        "--lr_scheduler",
    ),
}


def test_a_mirrored_picture_is_allowed_and_an_average_of_pixels_is_kept_by_default() -> None:
    settings = DdpmSettings.model_validate({"train_data_dir": "a", "data_format": "cifar10", "random_flip": True})
    assert settings.use_ema
    assert DdpmSettings.model_validate({"concept": "a", "ema_decay": 0.5}).ema_decay == 0.5


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_pictures_have_one_or_three_channels(channels: int) -> None:
    with pytest.raises(ValidationError, match=r"expected 1 \(grey\) or 3 \(colours\)"):
        DdpmSettings.model_validate({"concept": "a", "channels": channels})


@pytest.mark.parametrize("name", MISUSED)
def test_options_that_would_do_nothing_are_refused(name: str) -> None:
    settings_class, values, words = MISUSED[name]
    with pytest.raises(ValidationError, match=words):
        settings_class.model_validate(values)


def test_the_table_of_other_values_covers_every_option() -> None:
    assert OTHER.keys() == set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_option_is_either_free_on_resume_or_refused(name: str) -> None:
    old = plain(BASE) | {name: OTHER[name]}
    free, refused = changed_settings(old, BASE)
    difference = {name: (OTHER[name], plain(BASE)[name])}
    if name in FREE or name == "max_train_steps":  # 900 steps grow to the default 1000
        assert (free, refused) == (difference, {})
    else:
        assert (free, refused) == ({}, difference)


@pytest.mark.parametrize(
    ("scheduler", "then", "now", "is_free"),
    [
        ("constant", 10, 20, True),
        ("constant_with_warmup", 10, 20, True),
        ("constant", 20, 10, False),
        ("linear", 10, 20, False),
        ("cosine", 10, 20, False),
        ("cosine_with_restarts", 10, 20, False),
        ("polynomial", 10, 20, False),
    ],
)
@pytest.mark.parametrize("length", ["max_train_steps", "num_train_epochs"])
def test_a_run_may_grow_only_under_a_constant_rate(
    length: str, scheduler: str, then: int, now: int, is_free: bool
) -> None:
    def run(steps: int) -> LoraSettings:
        return LoraSettings.model_validate({"concept": "sf_dry", "lr_scheduler": scheduler, length: steps})

    changes = changed_settings(plain(run(then)), run(now))
    assert (changes.free if is_free else changes.refused) == {length: (then, now)}
    assert not (changes.refused if is_free else changes.free)


@pytest.mark.parametrize("length", ["max_train_steps", "num_train_epochs"])
def test_a_run_with_a_pivot_may_not_grow(length: str, tmp_path: Path) -> None:
    """The pivot is a share of the length: in a longer run, steps that trained the adapter belong to the word."""

    def run(steps: int) -> PivotalTuningSettings:
        return PivotalTuningSettings.model_validate({"concept": "sf_dry", "lr_scheduler": "constant", length: steps})

    assert changed_settings(plain(run(10)), run(20)) == ({}, {length: (10, 20)})
    (tmp_path / "settings.yaml").write_text(to_yaml(run(10)))
    with pytest.raises(OutputError, match=rf"--{length}: found 20.*--pivot is a share of it"):
        refuse_changes(tmp_path / "settings.yaml", run(20))


# processes, and images at once: then and now


@pytest.mark.parametrize(
    ("batch", "processes"), [((8, 4), (1, 2)), ((4, 8), (2, 1)), ((8, 2), (3, 12)), ((8, 8), (2, 2))]
)
def test_other_processes_go_on_where_they_take_as_many_images_at_once(
    batch: tuple[int, int], processes: tuple[int, int], tmp_path: Path
) -> None:
    then, now = (LoraSettings(concept="sf_dry", train_batch_size=size) for size in batch)
    (tmp_path / "settings.yaml").write_text(to_yaml(then))
    refuse_changes(tmp_path / "settings.yaml", now, processes)


@pytest.mark.parametrize(
    ("batch", "processes", "words"),
    [
        ((8, 8), (1, 2), ["found 8, so 16 images at once with 2", "so 8 with 1. Write --train_batch_size 4, or"]),
        ((8, 16), (1, 2), ["found 16, so 32 images at once with 2", "Write --train_batch_size 4, or start 1."]),
        ((4, 4), (2, 1), ["found 4, so 4 images at once with 1", "Write --train_batch_size 8, or start 2."]),
        ((1, 1), (1, 2), ["found 1, so 2 images at once with 2", "with 1, so 1 with 1. Start 1."]),
        ((8, 4), (2, 2), ["--train_batch_size: found 4, the run was started with 8."]),
    ],
)
def test_other_processes_are_refused_where_a_step_would_take_other_images(
    batch: tuple[int, int], processes: tuple[int, int], words: list[str], tmp_path: Path
) -> None:
    then, now = (LoraSettings(concept="sf_dry", train_batch_size=size) for size in batch)
    (tmp_path / "settings.yaml").write_text(to_yaml(then))
    with pytest.raises(OutputError) as caught:
        refuse_changes(tmp_path / "settings.yaml", now, processes)
    assert all(word in str(caught.value) for word in words), caught.value
    assert str(caught.value).count("--train_batch_size: found") == 1


def test_steps_cannot_become_epochs_on_resume() -> None:
    assert (
        "num_train_epochs" in changed_settings(plain(BASE), LoraSettings(concept="sf_dry", num_train_epochs=9)).refused
    )


def test_equal_settings_resume(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(to_yaml(BASE))
    refuse_changes(tmp_path / "settings.yaml", BASE)
    assert changed_settings(plain(BASE), BASE) == ({}, {})


def test_an_option_that_the_run_did_not_know_counts_as_its_default() -> None:
    old = plain(BASE)
    del old["snr_gamma"]
    assert changed_settings(old, BASE) == ({}, {})
    assert changed_settings(old, BASE.model_copy(update={"snr_gamma": 5.0})).refused == {"snr_gamma": (None, 5.0)}


def test_a_refused_resume_names_every_difference_with_both_values(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(plain(BASE) | {"rank": 4, "seed": 3, "logging_steps": 1, "gone": 5}))
    with pytest.raises(OutputError) as caught:
        refuse_changes(file, BASE)
    text = str(caught.value)
    assert "--rank: found 16, the run was started with 4." in text
    assert "--seed: found 0, the run was started with 3." in text
    assert "--gone: found None, the run was started with 5." in text
    assert "logging_steps" not in text
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"- a list", b"a: [", b""])
def test_a_run_whose_settings_cannot_be_read_is_not_resumed(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "settings.yaml").write_bytes(content)
    with pytest.raises(OutputError, match="settings of the run"):
        refuse_changes(tmp_path / "settings.yaml", BASE)
