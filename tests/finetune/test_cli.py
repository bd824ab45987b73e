from __future__ import annotations

import contextlib
import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from data.errors import DataError, NonFiniteError, SettingsError, Stopped
from finetune.core.cli import CONFIG_DIR, load_settings, run_script
from finetune.core.option_groups import AdapterSettings, Settings
from finetune.core.settings import DdpmSettings, LoopSettings, LoraSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FILROUGE_DATA", raising=False)


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    (tmp_path / "methods").mkdir()
    (tmp_path / "bases").mkdir()
    return tmp_path


def write_recipe(config_dir: Path, text: str, section: str = "lora", family: str = "swatch") -> Path:
    """Write a recipe of a family with one section, a line below its name, and return its file."""
    file = config_dir / "bases" / f"{family}.yaml"
    file.write_text(f"{section}:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    return file


def load(config_dir: Path, *argv: str) -> LoraSettings:
    return load_settings(LoraSettings, "lora", argv, config_dir)


def problems(config_dir: Path, *argv: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(config_dir, *argv)
    assert caught.value.exit_code == 2
    return caught.value.problems


class PlainSettings(AdapterSettings, LoopSettings):
    """A method without a base: its recipe is a whole file."""


class WidthSettings(Settings):
    """A model with a list of numbers."""

    block_out_channels: list[int] = Field(default=[32, 64], min_length=1, description="channels of each block")


# sources


def test_later_sources_win(config_dir: Path) -> None:
    write_recipe(config_dir, "rank: 2\nseed: 2\ntrain_batch_size: 2")
    first, second = config_dir / "first.yaml", config_dir / "second.yaml"
    first.write_text("concept: sf_dry\nrank: 3\nseed: 3\nresolution: 96\n")
    second.write_text("rank: 5\nresolution: 128\n")
    found = load(config_dir, "--config", str(first), str(second), "--rank", "4")
    assert (found.rank, found.seed, found.train_batch_size, found.logging_steps) == (4, 3, 2, 10)
    assert found.resolution == 128
    assert load(config_dir, "--config", str(second), "--config", str(first)).resolution == 96


def test_the_environment_stands_between_file_and_command_line(
    config_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = config_dir / "mine.yaml"
    mine.write_text("concept: sf_dry\ndata_root: from_file\n")
    assert load(config_dir, "--config", str(mine)).data_root == Path("from_file")
    monkeypatch.setenv("FILROUGE_DATA", "from_variable")
    assert load(config_dir, "--config", str(mine)).data_root == Path("from_variable")
    assert load(config_dir, "--config", str(mine), "--data_root", "from_flag").data_root == Path("from_flag")
    monkeypatch.setenv("FILROUGE_DATA", "")
    assert load(config_dir, "--config", str(mine)).data_root == Path("from_file")


def test_a_variable_that_always_stands_is_no_option_that_somebody_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits lie in --train_data_dir; a --data_root that no image is read from is refused nowhere."""
    monkeypatch.setenv("FILROUGE_DATA", "from_variable")
    for recipe in ("mnist", "cifar10"):
        config = CONFIG_DIR / "methods" / "ddpm" / f"{recipe}.yaml"
        found = load_settings(DdpmSettings, "ddpm", ["--config", str(config), "--train_data_dir", "x"], CONFIG_DIR)
        assert (found.data_format, found.train_data_dir) == (recipe, Path("x"))


def test_a_length_replaces_an_earlier_one_of_the_other_kind(config_dir: Path) -> None:
    write_recipe(config_dir, "max_train_steps: 50")
    mine = config_dir / "mine.yaml"
    mine.write_text("concept: sf_dry\nnum_train_epochs: 3\n")
    by_epochs = load(config_dir, "--config", str(mine))
    assert (by_epochs.num_train_epochs, by_epochs.max_train_steps) == (3, 1000)
    by_steps = load(config_dir, "--config", str(mine), "--max_train_steps", "70")
    assert (by_steps.num_train_epochs, by_steps.max_train_steps) == (None, 70)


def test_yaml_words_are_read_as_they_stand(config_dir: Path) -> None:
    mine = config_dir / "mine.yaml"
    mine.write_bytes(
        "\ufeffconcept: 2024-01-01\nmixed_precision: no\nlearning_rate: 1e-4\nseed: 010\nlora_alpha: ~\n"
        "variant: null\nrevision: 'null'\nvalidation_prompt: eine Masche, grün\ncenter_crop: on\n".encode()
    )
    found = load(config_dir, "--config", str(mine))
    assert (found.concept, found.mixed_precision, found.learning_rate, found.seed) == ("2024-01-01", "no", 1e-4, 10)
    assert (found.lora_alpha, found.variant, found.revision) == (None, None, "null")
    assert (found.validation_prompt, found.center_crop) == (("eine Masche, grün",), True)


def test_an_empty_file_sets_nothing(config_dir: Path) -> None:
    (config_dir / "bases" / "swatch.yaml").write_text("# nothing yet\n")
    assert load(config_dir, "--concept", "sf_dry") == LoraSettings(concept="sf_dry")


# flags


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--rank=3"], "rank", 3),
        (["--rank", "3"], "rank", 3),
        (["--rank", "3", "--rank", "5"], "rank", 5),
        (["--center_crop"], "center_crop", True),
        (["--center_crop", "--no-center_crop"], "center_crop", False),
        (["--center_crop=false"], "center_crop", False),
        (["--lora_alpha", "2", "--lora_alpha", "none"], "lora_alpha", None),
        (["--report_to", "none"], "report_to", ()),
        (["--logger", "tensorboard", "wandb"], "report_to", ("tensorboard", "wandb")),
        (["--offset_noise"], "noise_offset", 0.1),
        (["--num_epochs", "3"], "num_train_epochs", 3),
        (["--validation_prompt", "a b"], "validation_prompt", ("a b",)),
        (["--validation_prompt", "a b", "--validation_prompt", "c"], "validation_prompt", ("a b", "c")),
        (["--validation_prompts", "a b", "c"], "validation_prompt", ("a b", "c")),
        (["--validation_prompt=-5 % porosity"], "validation_prompt", ("-5 % porosity",)),
        (["--validation_prompt", "- 5"], "validation_prompt", ("- 5",)),
        (["--output_dir", "a=b"], "output_dir", Path("a=b")),
        (["--output_dir=a=b"], "output_dir", Path("a=b")),
        (["--learning_rate", "1e-6"], "learning_rate", 1e-6),
    ],
)
def test_flags(config_dir: Path, argv: list[str], name: str, value: object) -> None:
    found = load(config_dir, "--concept", "sf_dry", *argv)
    assert found == LoraSettings.model_validate({"concept": "sf_dry", name: value})
    assert found.model_dump()[name] == value


def test_none_empties_a_list_that_a_file_gave(config_dir: Path) -> None:
    write_recipe(config_dir, "concept: sf_dry\nvalidation_prompt: [a, b]")
    assert load(config_dir).validation_prompt == ("a", "b")
    assert load(config_dir, "--validation_prompt", "none").validation_prompt == ()
    assert load(config_dir, "--validation_prompt", "c").validation_prompt == ("c",)


@pytest.mark.parametrize(
    ("argv", "yaml_text"), [(["--block_out_channels", "8", "16"], ""), ([], "block_out_channels: [8, 16]\n")]
)
def test_a_list_of_numbers(config_dir: Path, argv: list[str], yaml_text: str) -> None:
    (config_dir / "methods" / "width.yaml").write_text(yaml_text)
    assert load_settings(WidthSettings, "width", argv, config_dir).block_out_channels == [8, 16]


def test_a_wrong_item_of_a_list_is_named(config_dir: Path) -> None:
    with pytest.raises(SettingsError, match=r"--block_out_channels: found 'x', expected a valid integer"):
        load_settings(WidthSettings, "width", ["--block_out_channels", "8", "x"], config_dir)


# wrong input


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--rnak", "3"], r"--rnak: unknown option\. Did you mean .*rank"),
        (["--rnak=3"], r"--rnak: unknown option\. Did you mean .*rank"),
        (["-rank", "3"], r"-rank: unknown option\. Did you mean .*rank"),
        (["--learning_rat", "1"], r"--learning_rat: unknown option\. Did you mean learning_rate"),
        (["--max-train-steps", "1"], r"--max-train-steps: unknown option\. Did you mean max_train_steps"),
        (["--no-rank"], r"--no-rank: unknown option"),
        (["--rank", "0"], r"--rank: found '0', expected greater than or equal to 1\."),
        (["--rank", "many"], r"--rank: found 'many', expected a valid integer\."),
        (["--rank", "2.5"], r"--rank: found '2\.5', expected a valid integer\."),
        (["--rank", "none"], r"--rank: found 'none', expected a valid integer\."),
        (["--learning_rate", "-0.1"], r"--learning_rate: found '-0\.1', expected greater than 0\."),
        (["--learning_rate", "-1e-4"], r"--learning_rate: found '-1e-4', expected greater than 0\."),
        (["--learning_rate=-1e-4"], r"--learning_rate: found '-1e-4', expected greater than 0\."),
        (["--learning_rate", "nan"], r"--learning_rate: found 'nan', expected a finite number\."),
        (["--lr_scheduler", "step"], r"--lr_scheduler: found 'step', expected 'linear', 'cosine', .*"),
        (["--center_crop", "perhaps"], r"--center_crop: found 'perhaps', expected a valid boolean\."),
        (["--no-center_crop=true"], r"--no-center_crop: found 'true', expected no value\."),
        (["--offset_noise", "0.2"], r"--offset_noise: found '0\.2', expected no value\."),
        (["--rank"], r"--rank: a value is missing.*"),
        (["--rank", "--seed", "1"], r"--rank: a value is missing.*"),
        (["--validation_prompt"], r"--validation_prompt: a value is missing.*"),
        (["--validation_prompt", "a", "--validation_prompt"], r"--validation_prompt: a value is missing.*"),
        (["--rank", "1", "2"], r"--rank: found 2 values: '1 2'.*"),
        (["--config"], r"--config: a value is missing.*"),
        (["--config", "absent.yaml"], r"absent\.yaml: No such file or directory\..*"),
        (["--config", "."], r"\.: found a folder, expected a YAML file\..*"),
        (
            ["--resume_from_checkpoint", "newest"],
            r"--resume_from_checkpoint: found 'newest', expected latest, auto, or .*",
        ),
        (["--concept", "../x"], r"--concept: found '\.\./x', expected up to 64 letters.*"),
        (
            ["--lr_power", "2", "--lr_scheduler", "linear"],
            r"--lr_power: found 2\.0, but --lr_scheduler linear has no exponent\..*",
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_one_problem(config_dir: Path, argv: list[str], expected: str) -> None:
    (problem,) = problems(config_dir, "--concept", "sf_dry", *argv)
    assert re.match(expected, problem), problem


def test_a_missing_concept_is_told(config_dir: Path) -> None:
    (problem,) = problems(config_dir)
    assert problem.startswith("--concept: missing (")


def test_a_word_without_an_option_is_told(config_dir: Path) -> None:
    (problem,) = problems(config_dir, "sf_warp", "--concept", "sf_dry")
    assert problem.startswith("'sf_warp': a value without an option")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"rnak: 3\n", r"{file}:1 rnak: unknown key\. Did you mean rank"),
        (b"seed: 1\n\nseed: 2\n", r"{file}:3 seed: stands there twice, first in line 1.*"),
        (b"rank: 0\n", r"{file}:1 rank: found '0', expected greater than or equal to 1\."),
        (b"rank:\n", r"{file}:1 rank: found None, expected a valid integer\."),
        (b"rank: [1, 2]\n", r"{file}:1 rank: found \['1', '2'\], expected a valid integer\."),
        (b"learning_rate: yes\n", r"{file}:1 learning_rate: found 'yes', expected a valid number\."),
        (b"rank: {a: 1}\n", r"{file}:1 rank: found a nested structure.*"),
        (b"validation_prompt: [[a]]\n", r"{file}:1 validation_prompt: found a nested structure.*"),
        (b"[a, b]: 1\n", r"{file}:1 found a list or a mapping as a key.*"),
        (b"- rank\n", r"{file}: found a list, expected lines of the form.*"),
        (b"rank\n", r"{file}: found a single value, expected lines of the form.*"),
        (b"revision: gr\xfcn\n", r"{file}:1 byte 12 is not UTF-8.*"),
        (b"rank: [1\n", r"{file}:2 not readable as YAML: .*"),
        (b"rank: 1\n---\nrank: 2\n", r"{file}:2 a second document begins there.*"),
        (b"rank: \x00\n", r"{file}:1 holds the character U\+0000.*"),
        (b"rank: !!python/object/apply:os.getcwd []\n", r"{file}:1 has the tag .*; tags are not read.*"),
    ],
)
@pytest.mark.parametrize("place", ["method", "config"])
def test_a_wrong_file_is_told_by_file_and_line(config_dir: Path, content: bytes, expected: str, place: str) -> None:
    file = config_dir / "methods" / "toy.yaml" if place == "method" else config_dir / "mine.yaml"
    file.write_bytes(content)
    config = [] if place == "method" else ["--config", str(file)]
    with pytest.raises(SettingsError) as caught:
        load_settings(PlainSettings, "toy", ["--learning_rate", "1e-3", *config], config_dir)
    (problem,) = caught.value.problems
    assert re.match(expected.replace("{file}", re.escape(str(file))), problem), problem


def test_the_problems_of_all_sources_are_told_at_once(config_dir: Path) -> None:
    mine = config_dir / "mine.yaml"
    recipe = write_recipe(config_dir, "seed: -1")
    mine.write_text("sede: 1\nrank: 0\n")
    found = problems(config_dir, "--config", str(mine), "--rank", "8", "--lr_schedule", "cosine", "--logging_steps")
    assert sorted(problem.partition(":" if problem.startswith("--") else " ")[0] for problem in found) == sorted(
        [f"{recipe}:2", f"{mine}:1", f"{mine}:2", "--lr_schedule", "--logging_steps", "--concept"]
    )


def test_a_wrong_value_is_told_even_where_a_later_source_replaces_it(config_dir: Path) -> None:
    write_recipe(config_dir, "rank: 0")
    (problem,) = problems(config_dir, "--concept", "sf_dry", "--rank", "4")
    assert "swatch.yaml:2 rank: found '0'" in problem


WORDS = ["--concept", "sf_dry", "--rank", "--rank=3", "--no-center_crop=1", "--", "-", "--=", "-x", "-5", "-1e-4", ""]
WORDS += ["--validation_prompt", "--config", "--offset_noise", "--no-", "--ran", "a b", "-a b", "\udcff", "\x00"]


@settings(
    derandomize=True, max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    argv=st.lists(
        st.sampled_from(WORDS) | st.text(max_size=6).filter(lambda word: word not in ("-h", "--help")), max_size=6
    )
)
def test_no_command_line_gives_anything_but_settings_or_a_settings_error(config_dir: Path, argv: list[str]) -> None:
    with contextlib.suppress(SettingsError):
        assert isinstance(load(config_dir, *argv), LoraSettings)


# help


def test_help_shows_every_option_with_its_default_in_groups(
    config_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_recipe(config_dir, "rank: 32")
    with pytest.raises(SystemExit) as caught:
        load(config_dir, "--rnak", "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Fine-tune low-rank updates" in text
    titles = ["Base model:", "Images:", "Captions:", "Loss:", "Optimisation:", "Output, checkpoints and samples:"]
    positions = [text.index(title) for title in [*titles, "Adapter:"]]
    assert positions == sorted(positions)
    for name in LoraSettings.model_fields:
        assert len(re.findall(rf"^  --{name}\b", text, re.MULTILINE)) == 1, name
    assert re.search(r"--rank N +rank of each update \(default: 32\)", text)
    assert re.search(r"--concept TEXT .*\(default: none\)", text)
    assert re.search(r"--center_crop, --no-center_crop\s.*\(default: false\)", text)
    assert re.search(r"--validation_prompt TEXT \.\.\.\s.*\(default: none\)", text)
    assert re.search(r"--report_to TEXT \.\.\.\s", text)


# running a script


def torch_out_of_memory() -> NoReturn:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def torch_cpu_out_of_memory() -> None:
    import torch

    torch.empty(10**15)


def safetensors_disk_full() -> NoReturn:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def raising(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("action", "code", "text"),
    [
        (lambda: None, 0, ""),
        (lambda: raising(DataError("a.tif", "found 0 pages.", "found nothing.")), 3, "filrouge: a.tif: 2 problems"),
        (lambda: raising(NonFiniteError("step 3", "loss is nan.")), 5, "filrouge: step 3: loss is nan."),
        (lambda: raising(Stopped("runs/x", "stopped.", exit_code=143)), 143, "filrouge: runs/x: stopped."),
        (torch_out_of_memory, 6, "--train_batch_size 4 --gradient_accumulation_steps 2 (found 8 and 1)"),
        (torch_cpu_out_of_memory, 6, "--gradient_checkpointing"),
        (lambda: raising(MemoryError()), 6, "Write a smaller --resolution (found none)"),
        (lambda: raising(OSError(errno.ENOMEM, "Cannot allocate memory")), 6, "Cannot allocate memory"),
        (lambda: raising(OSError(errno.ENOSPC, "No space left on device", "x.bin")), 7, "No space left on device"),
        (lambda: raising(OSError(errno.EDQUOT, "Disk quota exceeded")), 7, "Disk quota exceeded"),
        (lambda: raising(OSError(errno.EFBIG, "File too large")), 7, "File too large"),
        (safetensors_disk_full, 7, "os error 28"),
        (lambda: raising(KeyboardInterrupt()), 130, "filrouge: interrupted"),
    ],
)
def test_what_a_user_can_mend_ends_with_a_message_and_its_code(
    action: object, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(action)
    assert run_script(lambda _: action(), LoraSettings, "toy", ["--concept", "sf_dry"]) == code
    message = capsys.readouterr().err
    assert text in message
    assert "Traceback" not in message
    assert bool(message) == bool(code)


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a defect"),
        RuntimeError("shapes differ"),
        OSError(errno.EACCES, "Permission denied"),
        AssertionError("an invariant"),
    ],
)
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        run_script(lambda _: raising(error), LoraSettings, "toy", ["--concept", "sf_dry"])
    assert caught.value is error


def test_another_error_of_safetensors_is_not_a_disk_error() -> None:
    from safetensors import SafetensorError

    with pytest.raises(SafetensorError):
        run_script(lambda _: raising(SafetensorError("header too large")), LoraSettings, "toy", ["--concept", "sf_dry"])


def test_wrong_settings_end_with_2_before_main(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(lambda _: raising(AssertionError("main ran")), LoraSettings, "toy", ["--rank", "0"]) == 2
    assert "filrouge: settings of toy: 2 problems" in capsys.readouterr().err


SCRIPT = """
import sys

from finetune.core.cli import run_script
from finetune.core.setting_changes import to_yaml
from finetune.core.settings import LoraSettings


def main(settings: LoraSettings) -> None:
    print(to_yaml(settings), end="")


code = run_script(main, LoraSettings, "toy")
heavy = {"torch", "diffusers", "transformers", "accelerate", "numpy"} & sys.modules.keys()
assert not heavy, heavy
sys.exit(code)
"""


def test_a_script_runs_without_loading_torch(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)

    def script(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "script.py"), *argv]
        return subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)

    done = script("--concept", "sf_dry", "--rank=8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nrank: 8\n" in done.stdout
    failed = script("--concept", "sf_dry", "--rank=0")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "filrouge: settings of toy: --rank: found '0', expected greater than or equal to 1.\n"
    helped = script("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: script.py [--config FILE ...]" in helped.stdout
