"""A dry run says what memory the run will take, and reads no weights for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from finetune.core import settings as options
from finetune.core.memory import AVERAGE, FROZEN, GRADIENTS, LIBRARIES, OPTIMIZER, TRAINED, WORKING, Forecast, forecast
from finetune.core.run import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("dry slice")
    return folder


@pytest.fixture(scope="module")
def base_without_weights(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's JSON files alone."""
    folder = tmp_path_factory.mktemp("configs")
    for path in tiny_base_dir.rglob("*.json"):
        copy = folder / path.relative_to(tiny_base_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def _settings(method: str, images: Path, base: Path | str, **more: Any) -> Any:
    settings_class = getattr(options, "".join(word.capitalize() for word in method.split("_")) + "Settings")
    values = {
        "train_data_dir": images,
        "pretrained_model_name_or_path": str(base),
        "dry_run": True,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "resolution": 32,
        **more,
    }
    return settings_class.model_validate({k: v for k, v in values.items() if k in settings_class.model_fields})


def _forecast(method: str, images: Path, base: Path | str, **more: Any) -> Forecast:
    settings = _settings(method, images, base, **more)
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    return forecast(import_module(f"finetune.{method}").build, settings, accelerator)[1]


WORD_FLAGS = ["--placeholder_token", "<dry>", "--initializer_token", "slice"]
WORD = {"placeholder_token": "<dry>", "initializer_token": "dry"}
KNOWN = {
    "full_unet": {"use_ema": True},
    "dreambooth": {"with_prior_preservation": True, "train_text_encoder": True},
    "lora": {"target": "all", "use_dora": True, "train_text_encoder": True},
    "lora_dreambooth": {"with_prior_preservation": True},
    "textual_inversion": WORD,
    "pivotal_tuning": WORD,
    "ddpm": {"block_out_channels": (8, 16)},
}


@pytest.mark.parametrize("method", KNOWN)
def test_every_method_is_forecast_from_configurations_alone(
    method: str, images: Path, base_without_weights: Path
) -> None:
    found = _forecast(method, images, base_without_weights, **KNOWN[method])
    assert found.peak_bytes == sum(found.parts.values())
    assert all(found.parts[part] > 0 for part in (TRAINED, OPTIMIZER, LIBRARIES))
    assert (found.parts[AVERAGE] > 0) == (method in ("full_unet", "ddpm"))


def test_the_parts_are_those_of_the_weights(images: Path, tiny_base_dir: Path) -> None:
    from pipelines.components import load_components

    base = load_components(str(tiny_base_dir))
    size = {part: sum(p.nbytes for p in getattr(base, part).parameters()) for part in ("unet", "vae", "text_encoder")}
    found = _forecast("full_unet", images, tiny_base_dir, train_batch_size=1, use_ema=True)
    assert found.parts[TRAINED] == size["unet"]
    assert found.parts[AVERAGE] == size["unet"]
    assert found.parts[OPTIMIZER] == pytest.approx(2 * size["unet"], rel=0.01)
    assert found.parts[FROZEN] < size["vae"] + size["text_encoder"] + 2**20
    frozen = {
        name: _forecast("lora", images, tiny_base_dir, train_batch_size=1, **more).parts[FROZEN]
        for name, more in {"float32": {}, "bf16": {"mixed_precision": "bf16"}, "nf4": {"load_in_4bit": True}}.items()
    }
    assert frozen["bf16"] < 0.6 * frozen["float32"]
    assert frozen["nf4"] < frozen["float32"]


CHANGES = {
    "more images": ({"train_batch_size": 16}, WORKING, 1.7),
    "larger images": ({"resolution": 96}, WORKING, 1.9),
    "checkpointed gradients": ({"gradient_checkpointing": True}, WORKING, 0.9),
    "8-bit AdamW": ({"optimizer": "adamw_8bit"}, OPTIMIZER, 0.4),
    "schedule-free AdamW": ({"optimizer": "schedule_free"}, OPTIMIZER, 1.0),
    "Adafactor": ({"optimizer": "adafactor"}, OPTIMIZER, 0.3),
    "Prodigy": ({"optimizer": "prodigy", "learning_rate": 1.0}, OPTIMIZER, 2.0),
    "accumulated gradients": ({"gradient_accumulation_steps": 4}, GRADIENTS, None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_setting_does_to_its_part(name: str, images: Path, tiny_base_dir: Path) -> None:
    change, part, factor = CHANGES[name]
    common = {"train_batch_size": 8, "resolution": 64}
    before = _forecast("full_unet", images, tiny_base_dir, **common).parts
    after = _forecast("full_unet", images, tiny_base_dir, **{**common, **change}).parts
    if factor is None:
        assert after[part] > before[part]
    elif factor > 1:
        assert after[part] >= 0.98 * factor * before[part]
    else:
        assert after[part] <= factor * before[part] * 1.01


def test_a_run_that_does_not_fit_is_told_with_what_to_do() -> None:
    parts = dict.fromkeys((FROZEN, TRAINED, AVERAGE, GRADIENTS, OPTIMIZER, WORKING, LIBRARIES), 2**30)
    assert "fits: cpu has 8.00 GiB free" in "\n".join(Forecast(parts, "step", "cpu", 8 * 2**30).lines())
    told = "\n".join(Forecast(parts, "step", "cpu", 6 * 2**30).lines())
    assert "DOES NOT FIT: cpu has 6.00 GiB free" in told
    assert "configs/memory/" in told


def test_a_dry_run_reads_no_weights_and_leaves_no_trace(
    images: Path, base_without_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads, own = torch.get_num_threads(), torch.nn.Module._apply
    settings = _settings("lora", images, base_without_weights, output_dir=tmp_path / "run")
    run(settings, import_module("finetune.lora").build, default_dir="unused")
    told = capsys.readouterr().out
    assert "GiB at the peak, " in told
    assert ": frozen weights" in told
    assert "fits: cpu has" in told
    assert not (tmp_path / "run").exists()
    assert torch.nn.Module._apply is own
    assert torch.get_num_threads() == threads
    assert type(torch.ones(1)) is torch.Tensor


MEASURED = {"lora": ["--target", "all"], "full_unet": [], "textual_inversion": WORD_FLAGS, "ddpm": []}


@pytest.mark.parametrize("method", MEASURED)
def test_the_forecast_is_within_15_percent_of_the_measured_peak(method: str, images: Path, tmp_path: Path) -> None:
    """On swatch, where most of the peak is libraries; benchmarks/memory.py measures larger bases."""
    command = [sys.executable, "benchmarks/memory.py", "--measure", method, "--", "--train_data_dir", str(images)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FILROUGE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [*command, "--resolution", "64", *MEASURED[method]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ratio"] == pytest.approx(1, abs=0.15), found
