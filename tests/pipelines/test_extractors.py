"""Extractors: one interface, names that say what may be compared, and a sentence where one cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
)

from data.errors import DataError, SettingsError
from pipelines.metrics.extractors import Extractor, TextureStatistics, VisionNetwork, open_extractor
from pipelines.metrics.texstat import TexStat
from tests.planted import textures, with_defect


def saved(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a tiny random network as the hub has them, with its preprocessor."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = (
            CLIPVisionModelWithProjection(CLIPVisionConfig(intermediate_size=32, projection_dim=8, **sizes))
            if kind == "clip"
            else Dinov2Model(Dinov2Config(**sizes))
        )
    model.save_pretrained(folder)
    preparation = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def test_the_embedded_one_gives_what_the_texture_statistics_are() -> None:
    pictures = textures("bubbly", 3)
    extractor = open_extractor("texstat", 64)
    assert extractor.extractor_id == "texstat-v1-j4-64px"
    expected = TexStat(64).features(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()).numpy()
    found = extractor.extract(pictures)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_tint_is_seen() -> None:
    grey = with_defect("colour loss", textures("bubbly", 3))
    extractor = open_extractor("texstat", 64)
    tinted = (grey * np.array([1.0, 0.95, 0.8])).astype(np.float32)
    darker = (grey * 0.92).astype(np.float32)  # as much less light, and no tint
    before = extractor.extract(grey)
    distances = [np.linalg.norm(extractor.extract(each) - before, axis=1) for each in (tinted, darker)]
    assert (distances[0] > 1.5 * distances[1]).all()


@pytest.mark.parametrize(("kind", "width"), [("clip", 8), ("dinov2", 16)])
def test_a_network_gives_what_transformers_computes_of_the_same_input(tmp_path: Path, kind: str, width: int) -> None:
    folder = saved(tmp_path, kind)
    extractor = open_extractor(str(folder), 64)
    pictures = textures("bubbly", 18)
    found = extractor.extract(pictures)
    assert found.shape == (18, width)
    assert extractor.extractor_id.startswith(f"{kind}-")
    assert extractor.extractor_id.endswith("-28px")
    pixels = torch.from_numpy(pictures[:2]).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    small = (small[..., 2:30, 2:30] - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.5])[
        :, None, None
    ]
    network = (CLIPVisionModelWithProjection if kind == "clip" else Dinov2Model).from_pretrained(folder).eval()
    with torch.no_grad():
        output = network(pixel_values=small)
    expected = output.image_embeds if kind == "clip" else output.last_hidden_state[:, 0]
    np.testing.assert_allclose(found[:2], expected, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    extractor = VisionNetwork(saved(tmp_path, "dinov2"))
    pictures = textures("bubbly", 17)
    np.testing.assert_allclose(extractor.extract(pictures)[16:], extractor.extract(pictures[16:]), atol=1e-5)


def test_other_weights_have_another_name(tmp_path: Path) -> None:
    names = {VisionNetwork(saved(tmp_path / str(seed), "clip", seed)).extractor_id for seed in (0, 1)}
    assert len(names) == 2
    assert VisionNetwork(saved(tmp_path / "again", "clip", 0)).extractor_id in names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inception", "pt_inception-2015-12-05"),
        ("clip", "hf download openai/clip-vit-large-patch14"),
        ("dinov2", "facebook/dinov2-base"),
        ("nobody/nothing", "no copy of nobody/nothing"),
    ],
)
def test_what_cannot_be_had_says_why(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_extractor(name, 64)


def test_folders_that_hold_no_vision_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read as a vision network"):
        open_extractor(str(tmp_path), 64)
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "preprocessor_config.json").write_text(
        '{"size": 8, "crop_size": 8, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
    )
    with pytest.raises(SettingsError, match="is a bert, expected one of clip, dinov2"):
        open_extractor(str(tmp_path / "bert"), 64)
    folder = saved(tmp_path / "clip", "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        open_extractor(str(folder), 64)


@pytest.mark.parametrize(
    "pictures",
    [
        np.empty((0, 64, 64, 3), np.float32),
        np.full((1, 64, 64, 3), np.nan, np.float32),
        np.zeros((1, 3, 64, 64), np.float32),
        np.full((1, 64, 64, 3), -1, np.float32),
    ],
)
def test_what_is_not_a_picture_is_refused_by_every_extractor(tmp_path: Path, pictures: np.ndarray) -> None:
    extractors: list[Extractor] = [TextureStatistics.fitting(64), VisionNetwork(saved(tmp_path, "clip"))]
    for extractor in extractors:
        with pytest.raises(DataError):
            extractor.extract(pictures)


def test_pictures_below_the_smallest_size_are_refused() -> None:
    with pytest.raises(DataError, match="short side of 16 px"):
        open_extractor("texstat", 16)
