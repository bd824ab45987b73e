"""pipelines/generate.py and pipelines/compare.py on a run of finetune/lora.py, through their real command lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.tif.writer import write_stack

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    field = gaussian_filter(np.random.default_rng(5).standard_normal((40, 44, 130)), (1.0, 2.0, 3.0))
    grey = (20000 + 40000 * (field - field.min()) / np.ptp(field)).clip(0, 65535).astype(np.uint16)
    write_stack(root / "dry.tif", grey, (40.0, 40.0, 40.0))
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = _run(
        *("finetune/lora.py", "--concept", "sf_dry", "--data_root", str(root), "--output_dir", str(folder)),
        *("--pretrained_model_name_or_path", str(tiny_base_dir), "--max_train_steps", "2", "--train_batch_size", "2"),
        *("--held_out_fraction", "0.4"),
        *("--lr_warmup_steps", "0", "--num_validation_images", "1", "--learning_rate", "0.01"),
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("sf_dry sf_warp\na red circle\n")
    return path


def test_generate_writes_images_grid_and_grey_values(run: Path, prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = _run(
        *("pipelines/generate.py", "--adapter", str(run), "--prompts", str(prompts), "--seeds", "0-1,7"),
        *("--num_inference_steps", "2", "--output_dir", str(folder)),
    )
    assert result.returncode == 0, result.stderr
    names = {path.name for path in folder.iterdir()}
    stems = ("000-sf_dry_sf_warp", "001-a_red_circle")
    assert names == {f"{stem}-seed{seed}.png" for stem in stems for seed in (0, 1, 7)} | {
        "000-sf_dry_sf_warp.tif",
        "grid.png",
        "images.json",
    }
    assert "001-a_red_circle: no tif" in result.stdout
    stack = tifffile.imread(folder / "000-sf_dry_sf_warp.tif")
    assert stack.shape == (3, 32, 32)
    assert stack.dtype == np.uint16
    low, high = json.loads((run / "manifest.json").read_text())["data"]["volumes"]["dry"]["window"]
    assert low - 1 <= stack.min() < stack.max() <= high + 1
    for place, seed in enumerate((0, 1, 7)):
        pixels = np.asarray(Image.open(folder / f"{stems[0]}-seed{seed}.png"), float).mean(-1) / 255
        native = low + pixels * (high - low)
        assert np.abs(stack[place] - native).max() <= 0.51 * (high - low) / 255 + 1
    with tifffile.TiffFile(folder / "000-sf_dry_sf_warp.tif") as tif:
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["spacing"] == 40.0
    assert Image.open(folder / "grid.png").width > 3 * 32


def test_an_image_does_not_depend_on_the_batch_it_was_drawn_in(run: Path, prompts: Path, tmp_path: Path) -> None:
    for size in ("1", "6"):
        result = _run(
            *("pipelines/generate.py", "--adapter", str(run), "--prompts", str(prompts), "--seeds", "0-2"),
            *("--num_inference_steps", "2", "--batch_size", size, "--output_dir", str(tmp_path / size)),
        )
        assert result.returncode == 0, result.stderr
    for path in (tmp_path / "1").glob("*-seed*.png"):
        a, b = (np.asarray(Image.open(folder / path.name), int) for folder in (tmp_path / "1", tmp_path / "6"))
        assert np.abs(a - b).max() <= 1


def test_a_second_call_writes_beside_the_first(run: Path, prompts: Path) -> None:
    arguments = ("pipelines/generate.py", "--adapter", str(run), "--prompts", str(prompts), "--seeds", "0")
    for _ in range(2):
        assert _run(*arguments, "--num_inference_steps", "1").returncode == 0
    assert {path.name for path in run.glob("generated-*")} == {"generated-0", "generated-1"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--adapter", "nowhere"], 2, ("nowhere", "does not exist")),
        (["--prompts", "missing.txt"], 2, ("missing.txt",)),
        (["--seeds", "7-3"], 2, ("--seeds", "7-3")),
        (["--num_inference_steps", "0"], 2, ("--num_inference_steps", "1 or more")),
        (["--nonsense", "1"], 2, ("--nonsense",)),
    ],
)
def test_generate_refuses_what_it_cannot_do(
    arguments: list[str], code: int, words: tuple[str, ...], prompts: Path
) -> None:
    result = _run("pipelines/generate.py", "--prompts", str(prompts), *arguments)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_generate_writes_nothing_over(run: Path, prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "grid.png").write_text("mine")
    result = _run(
        "pipelines/generate.py", "--adapter", str(run), "--prompts", str(prompts), "--output_dir", str(folder)
    )
    assert result.returncode == 4
    assert (folder / "grid.png").read_text() == "mine"


def test_an_adapter_for_another_base_is_refused(
    run: Path, prompts: Path, tmp_path: Path, make_tiny_base: object
) -> None:
    other = make_tiny_base(tmp_path / "other", cross_attention_dim=48)  # type: ignore[operator]
    result = _run(
        *("pipelines/generate.py", "--adapter", str(run), "--prompts", str(prompts)),
        *("--pretrained_model_name_or_path", str(other)),
    )
    assert result.returncode == 2, result.stderr
    assert "cross_attention_dim" in result.stderr


def test_compare_draws_the_picture_and_says_the_numbers(run: Path) -> None:
    result = _run("pipelines/compare.py", "--adapter", str(run), "--num_images", "10", "--num_inference_steps", "2")
    assert result.returncode == 0, result.stderr
    picture = run / "compare" / "compare.png"
    assert f"Look at {picture}" in result.stdout
    assert Image.open(picture).height > 9 * 32
    scores = json.loads((run / "compare" / "scores.json").read_text())
    recorded = json.loads((run / "manifest.json").read_text())
    assert recorded["source"]["held_out_fraction"] == 0.4  # another share would judge on slices of the training block
    assert set(scores["prompts"]) == {"sf_dry sf_thickness", "sf_dry sf_warp", "sf_dry sf_weft"}
    assert 0 <= scores["right_caption"]["value"] <= 1
    assert scores["verdict"]["rung"] in (0, 1)
    assert scores["data_hash"] == recorded["data_hash"]


def test_compare_refuses_a_volume_that_has_changed(run: Path) -> None:
    path = Path(json.loads((run / "manifest.json").read_text())["source"]["data_root"]) / "dry.tif"
    kept = path.read_bytes()
    try:
        voxels = tifffile.imread(path)
        voxels[0, 0, 0] += 1
        path.unlink()
        write_stack(path, voxels, (40.0, 40.0, 40.0))
        result = _run("pipelines/compare.py", "--adapter", str(run), "--num_images", "10")
        assert result.returncode == 3
        assert "content has changed" in result.stderr
    finally:
        path.write_bytes(kept)
