"""What a user may get wrong: each mistake gets its message and exit code, no traceback, and nothing is written over."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.tif.writer import write_stack
from finetune.core.checkpoint import RunLock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    rng = np.random.default_rng(1)
    grey = rng.integers(1000, 60000, (40, 40, 130)).astype(np.uint16)
    write_stack(folder / "dry.tif", grey, (40.0, 40.0, 40.0))
    return folder


def _cut(root: Path) -> None:
    data = (root / "dry.tif").read_bytes()
    (root / "dry.tif").write_bytes(data[: len(data) * 6 // 10])


def _text(root: Path) -> None:
    (root / "dry.tif").write_text("not a volume")


def _declare(root: Path) -> None:
    (root / "volumes.yaml").write_text("dry: {shape: [359, 702, 970]}\n")


def _nothing(_: Path) -> None:
    return


CASES: dict[str, tuple[Callable[[Path], None], list[str], int, tuple[str, ...]]] = {
    "unknown concept": (_nothing, ["--concept", "sf_dri"], 2, ("sf_dri", "sf_dry")),
    "unknown option": (_nothing, ["--rnak", "4"], 2, ("--rnak", "rank")),
    "rank of 0": (_nothing, ["--rank", "0"], 2, ("--rank", "0", "greater than or equal to 1")),
    "missing volume": (lambda root: (root / "dry.tif").unlink(), [], 3, ("dry.tif",)),
    "other plane sizes than declared": (_declare, [], 3, ("dry.tif", "359", "40")),
    "truncated tif": (_cut, [], 3, ("dry.tif",)),
    "text file called tif": (_text, [], 3, ("dry.tif",)),
    "hub name without network": (
        _nothing,
        ["--pretrained_model_name_or_path", "owner/model"],
        2,
        ("owner/model", "HF_HUB_OFFLINE"),
    ),
    "data root that is not there": (lambda root: shutil.rmtree(root), [], 3, ("scans",)),
    "crop larger than the volume": (_nothing, ["--resolution", "64"], 3, ("64", "--resolution")),
    "resume without a run": (_nothing, ["--resume_from_checkpoint", "latest"], 4, ("run",)),
}


def _train(root: Path, base: Path, run: Path, *more: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    arguments = [
        *("finetune/lora.py", "--concept", "sf_dry", "--data_root", str(root)),
        *("--pretrained_model_name_or_path", str(base), "--output_dir", str(run), "--max_train_steps", "1"),
    ]

    def small_files() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, *arguments, *more],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=small_files,
    )


def _check(result: subprocess.CompletedProcess[str], code: int, words: tuple[str, ...]) -> None:
    assert result.returncode == code, result.stderr
    message = result.stderr[result.stderr.index("filrouge: ") :]
    for word in words:
        assert word in message
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_its_message_and_code(name: str, root: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    damage, arguments, code, words = CASES[name]
    damage(root)
    result = _train(root, tiny_base_dir, tmp_path / "run", *arguments)
    _check(result, code, words)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_base_without_unet_is_refused(root: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    shutil.rmtree(base / "unet")
    _check(_train(root, base, tmp_path / "run"), 2, ("base", "unet/"))


def test_an_output_folder_that_is_not_empty_is_left_as_it_is(root: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("years of work")
    _check(_train(root, tiny_base_dir, run), 4, (str(run), "--overwrite_output_dir"))
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
    assert (run / "thesis.txt").read_text() == "years of work"


def test_an_output_folder_in_use_is_refused(root: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with RunLock(run):
        _check(_train(root, tiny_base_dir, run), 4, (str(run), str(os.getpid())))


def test_a_full_disk_is_named_and_spoils_nothing(root: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    result = _train(root, tiny_base_dir, tmp_path / "run", limit=100_000)
    _check(result, 7, ("run", "File too large"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_two_mistakes_are_told_together(root: Path, tiny_base_dir: Path, tmp_path: Path) -> None:
    result = _train(root, tiny_base_dir, tmp_path / "run", "--rank", "0", "--learning_rate", "-1", "--rnak", "3")
    _check(result, 2, ("--rank", "--learning_rate", "--rnak", "3 problems"))


@pytest.mark.parametrize(
    ("cross_attention_dim", "prediction_type"), [(48, "epsilon"), (64, "v_prediction")], ids=["1.x", "2.x"]
)
def test_any_stable_diffusion_folder_is_a_base(
    cross_attention_dim: int, prediction_type: str, root: Path, make_tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """The two kinds differ in the text width (768, 1024) and in what is predicted; here at a twentieth of the size."""
    base = make_tiny_base(tmp_path / "base", cross_attention_dim=cross_attention_dim, prediction_type=prediction_type)
    result = _train(root, base, tmp_path / "run", "--train_batch_size", "2", "--num_validation_images", "1")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()
