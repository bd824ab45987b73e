"""Every command that draws or measures refuses an output folder that cannot be written before it does so."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from data.exits import exit_code

STUDY = Path(__file__).resolve().parents[2] / "configs" / "studies" / "methods.yaml"


class Command(NamedTuple):
    """A script with what it needs beside its output. option: the one that names the output."""

    module: str
    arguments: tuple[str, ...]
    option: str = "--output_dir"


COMMANDS = [
    Command("data.check", ("--train_data_dir", "RUN")),
    Command("finetune.points", ()),
    Command("pipelines.compare", ("--adapter", "RUN")),
    Command("pipelines.compare_methods", ("--study", str(STUDY))),
    Command("pipelines.convert_adapter", ("--adapter", "RUN", "--to", "kohya"), "--output"),
    Command("pipelines.diffusion_figures", ("schedules",)),
    Command("pipelines.evaluate_prompts", ("--adapter", "RUN", "--prompts", "PROMPTS")),
    Command("pipelines.generate", ("--adapter", "RUN", "--prompts", "PROMPTS")),
    Command("pipelines.generate_pixels", ("--model", "RUN")),
    Command("pipelines.inpaint", ("--model", "RUN")),
    Command("pipelines.judge_pixels", ("--model", "RUN")),
    Command("pipelines.merge_adapters", ("--adapter", "RUN")),
    Command("pipelines.points_in_plane", ("--model", "RUN")),
    Command("pipelines.train_noisy_classifier", ("--model", "RUN")),
    Command("pipelines.vae_ceiling", ("--train_data_dir", "RUN")),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder in which nothing can be read."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"base": "nowhere"}))
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (tmp_path / "prompts.txt").write_text("dry\n")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.module)
def test_an_output_below_a_file_is_refused_before_anything_else(
    command: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    values = {"RUN": str(run), "PROMPTS": str(tmp_path / "prompts.txt")}
    arguments = [values.get(each, each) for each in command.arguments]
    arguments += [command.option, str(tmp_path / "file" / "below" / "out")]
    main: Callable[[Sequence[str]], None] = import_module(command.module).main
    assert exit_code(lambda: main(arguments), command.module) == 4
    assert f"expected a folder. Choose another {command.option}.\n" in capsys.readouterr().err


def test_a_result_in_a_folder_that_is_read_only_can_be_drawn_with_elsewhere(
    tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images go beside the adapter unless they are sent somewhere else."""
    from pipelines import generate

    shared, mkdir = tmp_path / "shared", Path.mkdir

    def refusing(path: Path, *arguments: object, **named: object) -> None:
        if path.is_relative_to(shared):
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *arguments, **named)  # type: ignore[arg-type]

    def never(*_: object, **__: object) -> NoReturn:
        raise AssertionError("drawn for nothing")

    shared.symlink_to(tiny_base_dir)
    (tmp_path / "prompts.txt").write_text("dry\n")
    command = ["--adapter", str(shared), "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "0"]
    command += ["--num_inference_steps", "1"]
    monkeypatch.setattr(Path, "mkdir", refusing)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.runs.open_tuned", never)
        assert exit_code(lambda: generate.main(command), "generate") == 4
        told = capsys.readouterr().err
        assert f"{shared / 'generated-0'}: cannot be written (Permission denied). Choose another --output_dir." in told
    elsewhere = [*command, "--output_dir", str(tmp_path / "mine")]
    assert exit_code(lambda: generate.main(elsewhere), "generate") == 0
    assert (tmp_path / "mine" / "000-dry-seed0.png").exists()
