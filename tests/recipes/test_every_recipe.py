"""Every recipe in `configs/`, from the first step to the export, on a small base of its family, at a small size.

The steps are cut to one, and so are those of the pictures that a run draws; everything else is as the recipe says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from scipy.ndimage import gaussian_filter

from data.stand_ins import generated_data
from data.tif.writer import write_stack
from finetune.core.cli import run_script
from tests.finetune.test_settings import METHODS

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = {"stable_diffusion_1": 768, "stable_diffusion_2": 1024}
FAMILIES = ("swatch", *WIDTHS)
SWATCH_PX, TINY_PX = 64, 32
NEW_WORD = ["--placeholder_token", "<new>"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of smooth noise of the three states, and the generated textures."""
    folder = tmp_path_factory.mktemp("data")
    for number, state in enumerate(("dry", "dry_compacted", "injected")):
        field = gaussian_filter(np.random.default_rng(number).standard_normal((72, 76, 260)), (1.0, 2.0, 3.0))
        grey = (20000 + 40000 * (field - field.min()) / np.ptp(field)).clip(0, 65535).astype(np.uint16)
        write_stack(folder / f"{state}.tif", grey, (40.0, 40.0, 40.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FILROUGE_CACHE", str(tmp_path_factory.mktemp("textures")))
        textures, _ = generated_data("dtd")
    (textures / "dtd" if (textures / "dtd").is_dir() else textures).rename(folder / "dtd")
    return folder


@pytest.fixture(scope="module")
def bases(make_tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """By family: a small base, and the side of its images."""
    folder = tmp_path_factory.mktemp("bases")
    small = {family: (str(make_tiny_base(folder / family, width)), TINY_PX) for family, width in WIDTHS.items()}
    return {"swatch": ("swatch", SWATCH_PX), **small}


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    for name in ("assembly.SAMPLING_STEPS", "exports.SAMPLING_STEPS", "concept_images.CLASS_SAMPLING_STEPS"):
        monkeypatch.setattr(f"finetune.core.{name}", 2)
    monkeypatch.setattr("pipelines.precision.NUM_STEPS", 1)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def _runs(script: str, arguments: list[str], output_dir: Path) -> None:
    command = [*arguments, "--output_dir", str(output_dir), "--max_train_steps", "1", "--num_threads", "1"]
    method = import_module(f"finetune.{script}")
    assert run_script(method.main, METHODS[script], script, command) == 0
    assert json.loads((output_dir / "status.json").read_text())["status"] == "done"
    assert (output_dir / "final.png").exists()


STUDIES = [path for path in sorted((ROOT / "configs" / "studies").glob("*.yaml")) if path.name != "methods.yaml"]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_a_study_comes_to_its_end(
    study: Path, data_root: Path, bases: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    script = re.search(r"finetune/(\w+)\.py", study.read_text())
    assert script
    named = yaml.safe_load(study.read_text()).get("pretrained_model_name_or_path", "swatch")
    family = {"swatch": "swatch"}.get(named, "stable_diffusion_2" if "2-1" in named else "stable_diffusion_1")
    base, size_px = bases[family]
    arguments = ["--config", str(study), "--pretrained_model_name_or_path", base, "--data_root", str(data_root)]
    _runs(script[1], [*arguments, "--resolution", str(size_px)], tmp_path / "run")


@pytest.mark.parametrize("script", [script for script in METHODS if script not in ("ddpm",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_of_a_family_comes_to_its_end(
    family: str, script: str, data_root: Path, bases: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    section = yaml.safe_load((ROOT / "configs" / "bases" / f"{family}.yaml").read_text())[script]
    prior = ["--with_prior_preservation"] if "num_class_images" in section else []
    word = NEW_WORD if script in ("textual_inversion", "pivotal_tuning") else []
    base, size_px = bases[family]
    arguments = ["--concept", "sf_dry", "--data_root", str(data_root), "--resolution", str(size_px), *prior, *word]
    _runs(script, ["--pretrained_model_name_or_path", base, *arguments], tmp_path / "run")


@pytest.mark.parametrize("card", sorted((ROOT / "configs" / "memory").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_of_a_card_comes_to_its_end(
    card: Path, data_root: Path, bases: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    base, size_px = bases["stable_diffusion_1"]
    arguments = ["--config", str(card), "--pretrained_model_name_or_path", base, "--concept", "sf_dry"]
    _runs("lora", [*arguments, "--data_root", str(data_root), "--resolution", str(size_px)], tmp_path / "run")


def test_every_configuration_stands_in_one_of_these_tables() -> None:
    folders = {path.parent.name for path in (ROOT / "configs").rglob("*.yaml")}
    assert folders == {"bases", "concepts", "ddpm", "memory", "methods", "prompts", "studies", "swatch"}
    assert {path.stem for path in (ROOT / "configs" / "bases").iterdir()} == set(FAMILIES)
