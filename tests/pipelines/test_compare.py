"""pipelines/compare.py in this process, on a few random pictures: any number of images, where it draws and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from data.errors import DataError
from data.exits import exit_code
from pipelines import compare
from pipelines.evaluation.drawing import LARGEST_DIFFERENCE
from pipelines.evaluation.store import ImageStore
from pipelines.runs import open_tuned
from pipelines.sampling import sample
from tests.tiny_adapters import tiny_adapter

SIZE_PX = 32


def run(*arguments: object) -> int:
    return exit_code(lambda: compare.main([str(argument) for argument in arguments]), "compare")


def _pixels(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {caption: rng.uniform(-1, 1, (count, 3, SIZE_PX, SIZE_PX)).astype(np.float32) for caption in ("dry", "red")}


def _manifest(base: Path) -> dict[str, Any]:
    return {
        "method": "lora",
        "base": str(base),
        "prediction_type": "epsilon",
        "base_prompts": {},
        "source": {},
        "data": {"cells": [{"caption": "dry"}, {"caption": "red"}]},
        "settings": {"revision": None, "variant": None},
    }


@pytest.fixture(scope="module")
def adapter(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_adapter(tiny_base_dir, tmp_path_factory.mktemp("runs") / "run", {"base": str(tiny_base_dir)})
    (folder / "manifest.json").write_text(json.dumps(_manifest(tiny_base_dir)))
    return folder


@pytest.fixture
def reopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run have the same few pictures as its data."""
    dataset = SimpleNamespace(
        um_per_px=None,
        grey_values=None,
        held_out_pixels=lambda count: _pixels(min(count, 24), 1),
        training_pixels=lambda count: _pixels(min(count, 24), 2),
        whole_images=lambda: None,
    )
    monkeypatch.setattr("pipelines.evaluation.real_images.reopened", lambda *_: dataset)


def _drawn(found: list[str]) -> Callable[..., np.ndarray]:
    """Return what takes the place of `sample`: random pictures, and the devices of the modules in `found`."""

    def sample(pipeline: StableDiffusionPipeline, prompts: list[str], *_: object, **__: object) -> np.ndarray:
        modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
        found.extend(sorted({tensor.device.type for module in modules for tensor in module.state_dict().values()}))
        return np.random.default_rng(3).uniform(0, 1, (len(prompts), SIZE_PX, SIZE_PX, 3)).astype(np.float32)

    return sample


@pytest.mark.usefixtures("reopened")
@pytest.mark.parametrize("num_images", [2, 3, 7, 8, 9])
def test_any_number_of_images_makes_a_picture(
    num_images: int, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.evaluation.drawing.sample", _drawn([]))
    folder = tmp_path / "new" / "compare"
    assert run("--adapter", adapter, "--num_images", num_images, "--output_dir", folder) == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["num_images"] == num_images
    assert scores["verdict"]["rung"] is None  # fewer than ten
    assert set(scores["prompts"]) == {"dry", "red"}
    assert scores["forgetting"]["drift"]["value"] > 0
    columns = min(num_images, compare.COLUMNS)
    with Image.open(folder / "compare.png") as picture:
        assert columns * 96 < picture.width < 260 + columns * 110  # one column of 96 px for each image
    assert f"Look at {folder / 'compare.png'}" in capsys.readouterr().out
    assert not (adapter / "compare").exists()


@pytest.mark.usefixtures("reopened")
@pytest.mark.parametrize("kind", ["adapter", "whole model"])
def test_base_and_tuned_model_are_drawn_on_the_device_of_this_machine(
    kind: str,
    adapter: Path,
    tiny_base_dir: Path,
    make_tiny_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[str] = []
    monkeypatch.setattr("pipelines.evaluation.drawing.sample", _drawn(found))
    monkeypatch.setattr("pipelines.devices.drawing_device", lambda: torch.device("meta"))
    run_folder = adapter
    if kind == "whole model":
        run_folder = make_tiny_base(tmp_path / "whole", seed=1)
        (run_folder / "manifest.json").write_text(json.dumps(_manifest(tiny_base_dir)))

    def stopped(*_: object) -> None:
        raise DataError("judging", "is not looked at here: nothing is computed on this device.")

    monkeypatch.setattr("pipelines.evaluation.measuring.Learning.of", stopped)
    assert run("--adapter", run_folder, "--num_images", "2", "--output_dir", tmp_path / "compare") == 3
    assert set(found) == {"meta"}


@pytest.mark.usefixtures("reopened")
def test_what_is_compared_is_what_generate_draws_and_is_drawn_once(
    adapter: Path, tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and adapter, merged here and beside the weights there, for the same captions and seeds."""
    kept: dict[tuple[str, str, int], np.ndarray] = {}
    keep = ImageStore.keep

    def note(store: ImageStore, key: str, image: np.ndarray, facts: dict[str, Any]) -> None:
        keep(store, key, image, facts)
        kept[facts["model"], facts["prompt"], facts["seed"]] = store.read(key).astype(float)

    monkeypatch.setattr(ImageStore, "keep", note)
    arguments = ("--adapter", adapter, "--num_images", "3", "--num_inference_steps", "4", "--output_dir", tmp_path)
    assert run(*arguments) == 0
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "batch_size": 2, "height": SIZE_PX, "width": SIZE_PX}
    captions_alone = {at: image for at, image in kept.items() if at[1] in ("dry", "red")}
    for model, adapters in (("base", []), ("run", [adapter])):
        pipeline = open_tuned(adapters, base=str(tiny_base_dir)).pipeline
        for prompt in ("dry", "red"):
            for seed, alone in enumerate(sample(pipeline, [prompt] * 3, range(3), **options)):
                assert np.abs(kept[model, prompt, seed] - 255 * alone).max() <= LARGEST_DIFFERENCE
    assert len(captions_alone) == 12
    assert len(kept) == 12 + len(compare.RINGS) * len(compare.RING_SEEDS) * 3  # base, other seeds of it, and tuned
    kept.clear()
    scores = (tmp_path / "scores.json").read_text()
    assert run(*arguments) == 0
    assert not kept
    assert (tmp_path / "scores.json").read_text() == scores


@pytest.mark.parametrize("option", ["--num_images", "--num_inference_steps"])
def test_numbers_too_small_to_compare_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    least = {"--num_images": 2, "--num_inference_steps": 1}[option]
    assert run("--adapter", "nowhere", option, least - 1) == 2
    assert f"{option}: found {least - 1}, expected {least} or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (
            {"method": "ddpm", "pixel_model": {}},
            "a run of ddpm, which fine-tunes no base. Judge it so: python pipelines/",
        ),
        ({"method": "autoencoder"}, "a run of autoencoder, which fine-tunes no base.\n"),
    ],
)
def test_a_run_without_a_base_is_told(
    manifest: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert run("--adapter", tmp_path) == 2
    told = capsys.readouterr().err
    assert words in told
    assert (f"judge_pixels.py --model {tmp_path}" in told) == ("pixel_model" in manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
