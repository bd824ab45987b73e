"""Images of the class: drawn from seeds by the base, kept with their provenance, never taken for others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from data.errors import OutputError
from finetune.core.class_images import PROVENANCE, ClassImages, ClassRecipe, class_images
from finetune.core.concept_images import prior
from finetune.core.settings import LoraDreamboothSettings
from pipelines.components import Components, load_components


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture
def recipe(base: Components) -> ClassRecipe:
    return ClassRecipe("a texture", base.fingerprint, base.prediction_type, 32, 0, 2, 3.0)


def _draw(base: Components, recipe: ClassRecipe, folder: Path, num_images: int = 3, batch_size: int = 2) -> ClassImages:
    return class_images(base, recipe, folder, num_images=num_images, batch_size=batch_size, write=True)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_images_are_png_with_provenance_and_the_same_from_the_same_seeds(
    base: Components, recipe: ClassRecipe, tmp_path: Path
) -> None:
    images = _draw(base, recipe, tmp_path / "a")
    _draw(base, recipe, tmp_path / "b")
    home = tmp_path / "a" / recipe.key
    assert list(_contents(home)) == ["00000.png", "00001.png", "00002.png"]
    assert _contents(home) == _contents(tmp_path / "b")
    record = json.loads((home / PROVENANCE).read_text())
    assert (record["prompt"], record["base_fingerprint"], record["seed"]) == ("a texture", base.fingerprint, 0)
    assert set(record["sha256"]) == {"00000.png", "00001.png", "00002.png"}
    assert len(set(record["sha256"].values())) == 3
    with Image.open(home / "00001.png") as picture:
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1
    drawn = [images.sample(position) for position in range(3)]
    assert sum(np.array_equal(sample.pixels, pixels) for sample in drawn) == 1  # each once in a round
    assert all(sample.is_prior and sample.caption == "a texture" for sample in drawn)


def test_whole_images_are_kept_and_missing_or_spoilt_ones_drawn_again(
    base: Components, recipe: ClassRecipe, tmp_path: Path
) -> None:
    _draw(base, recipe, tmp_path)
    before = _contents(tmp_path)
    home = tmp_path / recipe.key
    (home / "00000.png").unlink()
    (home / "00001.png").write_bytes(b"spoilt")
    kept = (home / "00002.png").stat().st_mtime_ns
    (home / "holiday.jpg").write_bytes(b"junk is left alone and never taken")
    images = _draw(base, recipe, tmp_path, num_images=4)
    after = _contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert (home / "00002.png").stat().st_mtime_ns == kept
    assert (home / "holiday.jpg").exists()
    assert len(images) == 4


def test_a_folder_that_cannot_be_written_is_told_with_its_option(
    base: Components, recipe: ClassRecipe, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"expected a folder\. Choose another --class_data_dir\."):
        _draw(base, recipe, tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a slice"},
        {"base_fingerprint": "another"},
        {"resolution": 16},
        {"seed": 1},
        {"guidance_scale": 1.0},
        {"precision": "bf16"},
    ],
    ids=["prompt", "base", "size", "seed", "guidance", "precision"],
)
def test_another_recipe_is_drawn_anew_beside_the_first(
    base: Components, recipe: ClassRecipe, change: dict[str, object], tmp_path: Path
) -> None:
    """DreamBooth scripts take whatever files they find, also after the prompt or the model has changed."""
    _draw(base, recipe, tmp_path, num_images=1)
    before = _contents(tmp_path / recipe.key)
    other = replace(recipe, **change)  # type: ignore[arg-type]
    assert other.key != recipe.key
    images = _draw(base, other, tmp_path, num_images=1)
    assert _contents(tmp_path / recipe.key) == before
    assert images.sample(0).pixels.shape == (3, other.resolution, other.resolution)


def test_the_class_is_drawn_as_the_base_predicts_and_not_as_the_run_will(base: Components, tmp_path: Path) -> None:
    """Read as v, the noise that an untrained base predicts is an image of nothing, and the run would preserve it."""
    images = cast(Any, SimpleNamespace(class_prompt="a texture", source=SimpleNamespace(resolution=32)))
    accelerator = Accelerator(cpu=True)

    def drawn(components: Components, folder: Path) -> dict[str, object]:
        options: dict[str, Any] = {"with_prior_preservation": True, "num_class_images": 2, "class_data_dir": folder}
        settings = LoraDreamboothSettings(concept="sf_dry", output_dir=tmp_path / "run", **options)
        found = prior(settings, images, components, accelerator)
        assert found is not None
        return found.manifest()

    own = drawn(base, tmp_path / "own")
    assert own["prediction_type"] == "epsilon"
    assert drawn(base.predicting("v_prediction").ending_in_pure_noise(), tmp_path / "run") == own
    assert _contents(tmp_path / "run") == _contents(tmp_path / "own")
