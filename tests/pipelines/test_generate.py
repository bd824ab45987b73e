"""pipelines/generate.py in this process: where it draws, and which stacks it writes of what a model says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from diffusers import StableDiffusionPipeline

from data.exits import exit_code
from finetune.core.exports import whole
from pipelines import generate
from pipelines.adapters import FACTS_KEY
from pipelines.components import load_components
from tests.tiny_adapters import tiny_adapter

GREY = {"window": [1000.0, 3000.0], "dtype": "uint16"}


def run(*arguments: object) -> int:
    short = ("--num_inference_steps", "1", "--seeds", "0-1")
    return exit_code(lambda: generate.main([str(argument) for argument in (*arguments, *short)]), "generate")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("dry\nred\n")
    return path


def facts_of(base: Path, um_per_px: float | None, *captions: str) -> dict[str, Any]:
    return {"base": str(base), "um_per_px": um_per_px, "grey_values": dict.fromkeys(captions, GREY)}


def spacing_um(path: Path) -> float | None:
    with tifffile.TiffFile(path) as tif:
        return (tif.imagej_metadata or {}).get("spacing")


@pytest.mark.parametrize("kind", ["base", "adapter", "whole model"])
def test_everything_is_drawn_on_the_device_of_this_machine(
    kind: str, tiny_base_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[str] = set()

    def drawn(pipeline: StableDiffusionPipeline, texts: list[str], *_: object, **__: object) -> np.ndarray:
        modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
        found.update(tensor.device.type for module in modules for tensor in module.state_dict().values())
        return np.zeros((len(texts), 8, 8, 3), np.float32)

    monkeypatch.setattr("pipelines.devices.drawing_device", lambda: torch.device("meta"))
    monkeypatch.setattr("pipelines.sampling.sample", drawn)
    models: dict[str, tuple[object, ...]] = {
        "base": ("--pretrained_model_name_or_path", tiny_base_dir),
        "adapter": ("--adapter", tiny_adapter(tiny_base_dir, tmp_path / "a", facts_of(tiny_base_dir, None))),
        "whole model": ("--adapter", tiny_base_dir),
    }
    assert run(*models[kind], "--prompts", prompts, "--output_dir", tmp_path / "out") == 0
    assert found == {"meta"}


def test_a_whole_model_gets_stacks_in_grey_values(
    tiny_base_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "whole"
    components = load_components(str(tiny_base_dir))
    whole(components).write(folder, {FACTS_KEY: json.dumps(facts_of(tiny_base_dir, 25.0, "dry"))})
    assert run("--adapter", folder, "--prompts", prompts, "--output_dir", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").glob("*.tif")] == ["000-dry.tif"]
    stack = tifffile.imread(tmp_path / "out" / "000-dry.tif")
    assert stack.shape == (2, 32, 32)
    assert 1000 <= stack.min() < stack.max() <= 3000
    assert spacing_um(tmp_path / "out" / "000-dry.tif") == 25.0
    assert "001-red: no tif" in capsys.readouterr().out


def test_a_model_that_says_nothing_of_grey_values_is_told(
    tiny_base_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--adapter", tiny_base_dir, "--prompts", prompts, "--output_dir", tmp_path / "out") == 0
    assert f"{tiny_base_dir}: says nothing of grey values, so no tif stack" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.tif"))


def test_each_stack_has_the_voxel_size_of_the_run_of_its_caption(
    tiny_base_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    adapters = [
        tiny_adapter(tiny_base_dir, tmp_path / name, facts_of(tiny_base_dir, um_per_px, *captions), seed=number)
        for number, (name, um_per_px, captions) in enumerate(
            [("dtd", None, ()), ("fine", 40.0, ("red",)), ("coarse", 80.0, ("dry",))]
        )
    ]
    assert run("--adapter", *adapters, "--prompts", prompts, "--output_dir", tmp_path / "out") == 0
    sizes = {path.name: spacing_um(path) for path in (tmp_path / "out").glob("*.tif")}
    assert sizes == {"000-dry.tif": 80.0, "001-red.tif": 40.0}
