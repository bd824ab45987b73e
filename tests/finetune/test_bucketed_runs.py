"""Runs on images of several proportions: whole, resumed, over several processes, and unlike those on squares."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.crops import Crops
from data.image_dataset import ImageDataset, build_image_dataset
from data.splits import manifest_hash
from finetune.core.encodings import EncodedSpace, EncodingStore
from finetune.core.loader import Loader
from finetune.core.method import Batch
from finetune.core.run import run
from finetune.core.settings import LoopSettings, LoraSettings
from pipelines.components import load_components
from pipelines.spaces import LatentSpace

LORA = "pytorch_lora_weights.safetensors"
SHAPES = [(32, 70)] * 5 + [(50, 36)] * 3 + [(40, 40)] * 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of three proportions with captions beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for number, shape in enumerate(SHAPES):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("dry warp slice" if number % 2 else "injected weft")
    return folder


@pytest.fixture
def arguments(pictures: Path, tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for module in ("assembly", "exports"):  # a few steps show as much as thirty
        monkeypatch.setattr(f"finetune.core.{module}.SAMPLING_STEPS", 2, raising=False)
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    return {
        "train_data_dir": pictures,
        "pretrained_model_name_or_path": str(tiny_base_dir),
        "output_dir": tmp_path / "run",
        "aspect_buckets": True,
        "random_flip": True,
        "max_train_steps": 4,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "checkpointing_steps": 2,
        "logging_steps": 1,
        "num_validation_images": 1,
        "learning_rate": 1e-2,
        "rank": 2,
    }


def _train(arguments: dict[str, Any], **more: Any) -> Path:
    settings = LoraSettings.model_validate({**arguments, **more})
    run(settings, import_module("finetune.lora").build, default_dir="unused")
    assert settings.output_dir is not None
    return settings.output_dir


def test_a_bucketed_run_resumes_bit_for_bit_and_is_not_one_on_squares(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = _train(arguments, output_dir=tmp_path / "straight")
    printed = capsys.readouterr().out
    resumed = arguments["output_dir"]
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    (resumed / LORA).unlink()
    _train(arguments, resume_from_checkpoint="latest")
    for file in (LORA, "final.png", "metrics.jsonl"):
        assert (resumed / file).read_bytes() == (straight / file).read_bytes(), file
    manifest = json.loads((straight / "manifest.json").read_text())
    buckets = manifest["data"]["aspect_buckets"]
    assert buckets["micro_batch"] == 2
    assert len(buckets["buckets"]) == 3
    assert buckets["num_repeats"] > 0
    assert f"{buckets['num_repeats']} of them repeats" in printed
    assert manifest["data_hash"] == manifest_hash(manifest["data"])
    squares = _train(arguments, output_dir=tmp_path / "squares", aspect_buckets=False)
    assert (squares / LORA).read_bytes() != (straight / LORA).read_bytes()
    assert json.loads((squares / "manifest.json").read_text())["data_hash"] != manifest["data_hash"]


def _seen_by(dataset: ImageDataset, rank: int, num_processes: int, steps: range, **options: int) -> list[Batch]:
    settings = LoopSettings.model_validate(options)
    accelerator: Any = SimpleNamespace(process_index=rank, num_processes=num_processes)
    method: Any = SimpleNamespace(dataset=dataset, prior=None)
    return list(Loader(method, settings, accelerator, steps))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_all_processes_see_one_bucket_in_each_micro_step_and_together_every_image(
    pictures: Path, num_processes: int, accumulation: int
) -> None:
    crops = Crops(32, 0, bucket_batch=2 * num_processes)
    dataset = build_image_dataset(pictures, crops, held_out_fraction=0.0)
    num_steps = -(-len(dataset) // (2 * num_processes * accumulation))
    options = {"train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    seen = [_seen_by(dataset, rank, num_processes, range(num_steps), **options) for rank in range(num_processes)]
    assert [len(batches) for batches in seen] == [num_steps * accumulation] * num_processes
    for micro_step in zip(*seen, strict=True):
        assert len({tuple(batch.pixels.shape[2:]) for batch in micro_step}) == 1
    positions = sorted(position for batches in seen for batch in batches for position in batch.positions)
    assert positions == list(range(num_steps * 2 * num_processes * accumulation))
    images = {source.split(" @ ")[0] for batches in seen for batch in batches for source in batch.sources}
    assert images == {f"{number}.png" for number in range(len(SHAPES))}


def test_a_later_start_sees_what_the_whole_run_sees_there(pictures: Path) -> None:
    dataset = build_image_dataset(pictures, Crops(32, 0, bucket_batch=2), held_out_fraction=0.0)
    whole = _seen_by(dataset, 0, 1, range(12), train_batch_size=2)
    late = _seen_by(dataset, 0, 1, range(7, 12), train_batch_size=2)
    assert [batch.sources for batch in late] == [batch.sources for batch in whole[7:]]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(late, whole[7:], strict=True))


def test_the_latent_cache_keeps_images_of_several_sizes_apart(tiny_base_dir: Path) -> None:
    space = LatentSpace(load_components(str(tiny_base_dir)).vae)
    cached = EncodedSpace(space, EncodingStore(None, limit_bytes=0))
    flat = torch.zeros(2, 3, 16, 64)  # the same bytes as the upright ones
    for pixels in (flat, flat.reshape(2, 3, 64, 16), flat):
        with torch.no_grad():
            for kept, fresh in zip(cached.moments(pixels), space.moments(pixels), strict=True):
                torch.testing.assert_close(kept, fresh, rtol=1e-4, atol=2e-5)
    assert cached.store.num_made == 2
