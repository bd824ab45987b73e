"""A live pickle on every way by which files of others come in: it is refused, in words, and never run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import FilrougeError
from finetune.core import files, scratch
from pipelines.adapters import load_adapter, read_adapter_facts
from pipelines.components import Components, build_pipeline, load_components
from pipelines.diffusion.cells import Cell, Cells
from pipelines.diffusion.noisy_classifier import load_classifier
from pipelines.diffusion.point_models import load_point_model
from pipelines.embeddings import load_embeddings
from pipelines.kohya import from_kohya
from pipelines.metrics.extractors import VisionNetwork
from pipelines.pixel_model import load_pixel_model
from pipelines.runs import open_tuned

ENDINGS = (".bin", ".pt", ".ckpt", ".pth", ".safetensors")


class _Trap:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, fired: Path) -> None:
        self._fired = fired

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._fired),)


@pytest.fixture
def fired(tmp_path: Path) -> Path:
    """What exists once the trap was sprung."""
    return tmp_path / "fired"


@pytest.fixture(params=["pickle", "torch", "torch before 1.6"])
def trap(request: pytest.FixtureRequest, fired: Path, tmp_path: Path) -> bytes:
    """A pickle of each kind that torch.load takes."""
    content = {"weight": _Trap(fired)}
    if request.param == "pickle":
        return pickle.dumps(content)
    torch.save(content, tmp_path / "trap", _use_new_zipfile_serialization=request.param == "torch")
    return (tmp_path / "trap").read_bytes()


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


def test_the_trap_is_a_live_one(trap: bytes, fired: Path, tmp_path: Path) -> None:
    (tmp_path / "live").write_bytes(trap)
    with (tmp_path / "live").open("rb") as file:
        pickle.load(file) if trap[:2] == b"\x80\x04" else torch.load(file, weights_only=False)
    assert fired.is_dir()


def _refused(read: Callable[[], object], fired: Path) -> str:
    with pytest.raises(FilrougeError) as caught:
        read()
    assert not fired.exists()
    return str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_adapters_and_embeddings(ending: str, trap: bytes, fired: Path, tmp_path: Path, base: Components) -> None:
    run = tmp_path / "run"
    run.mkdir()
    pipeline = build_pipeline(base)
    for name in ("pytorch_lora_weights", "learned_embeds"):
        file = (run / name).with_suffix(ending)
        file.write_bytes(trap)
        for read in (
            lambda file=file: load_adapter(pipeline, file),
            lambda: load_adapter(pipeline, run),
            lambda file=file: read_adapter_facts(file),
            lambda file=file: load_embeddings(pipeline, file),
            lambda: load_embeddings(pipeline, run),
            lambda file=file: open_tuned([file]),
            lambda: open_tuned([run]),
            lambda file=file: from_kohya(file, tmp_path / "ours.safetensors", base),
        ):
            _refused(read, fired)
        file.unlink()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_bases(ending: str, part: str, trap: bytes, fired: Path, tmp_path: Path, tiny_base_dir: Path) -> None:
    folder = shutil.copytree(tiny_base_dir, tmp_path / "base")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    names = [weights.with_suffix(ending).name]
    if ending == ".bin":
        names += ["pytorch_model.bin"]
    for name in names:
        (folder / part / name).write_bytes(trap)
    told = _refused(lambda: load_components(str(folder)), fired)
    if ending != ".safetensors":
        assert "Pickled weights are refused, as reading them can run code" in told
    if part == "vae":
        _refused(lambda: scratch.latent_space(folder / "vae", torch.device("cpu")), fired)
    if part == "text_encoder":
        _refused(lambda: scratch.diffusion_components(tiny_base_dir / "vae", folder, (16, 32), 0, None), fired)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_base_in_one_file(ending: str, trap: bytes, fired: Path, tmp_path: Path) -> None:
    file = (tmp_path / "model").with_suffix(ending)
    file.write_bytes(trap)
    _refused(lambda: load_components(str(file)), fired)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pixel_model(ending: str, trap: bytes, fired: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [8, 8], "norm_num_groups": 4}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | blocks))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    (tmp_path / "unet" / f"diffusion_pytorch_model{ending}").write_bytes(trap)
    _refused(lambda: load_pixel_model(tmp_path), fired)


@pytest.mark.parametrize("ending", ENDINGS)
def test_networks_that_measure(ending: str, trap: bytes, fired: Path, tmp_path: Path) -> None:
    facts = {"channels": 1, "labels": ["a", "b"], "width": 8, "num_train_timesteps": 10, "schedule": "linear"}
    (tmp_path / "noisy_classifier.json").write_text(json.dumps(facts | {"normalized": True}))
    (tmp_path / f"noisy_classifier{ending}").write_bytes(trap)
    nothing: Any = None
    _refused(lambda: load_classifier(tmp_path, nothing), fired)
    law = {"law": "spiral", "schedule": "linear", "num_train_timesteps": 10}
    (tmp_path / "point_model.json").write_text(json.dumps(law))
    (tmp_path / f"point_model{ending}").write_bytes(trap)
    _refused(lambda: load_point_model(tmp_path), fired)
    vision = {"model_type": "clip_vision_model", "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(vision | {"intermediate_size": 8, "projection_dim": 4}))
    prepared = {"size": 224, "crop_size": 224, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
    (tmp_path / ("pytorch_model.bin" if ending == ".bin" else f"model{ending}")).write_bytes(trap)
    _refused(lambda: VisionNetwork(tmp_path), fired)


def test_checkpoints_and_tables(trap: bytes, fired: Path, tmp_path: Path) -> None:
    (tmp_path / "unet_lora.safetensors").write_bytes(trap)
    _refused(lambda: files.load_tensors(tmp_path / "unet_lora.safetensors"), fired)
    cells = Cells(tmp_path, {})
    cells.cell("one", lambda: Cell({}, {}))
    (tmp_path / "cells" / "one.npz").write_bytes(trap)
    with suppress(FilrougeError):  # an archive of other things is an empty one
        cells.cell("one", lambda: Cell({}, {}))
    assert not fired.exists()


@pytest.mark.parametrize("ending", [*ENDINGS, ".pkl", ".pickle", ".npy"])
def test_datasets(ending: str, trap: bytes, fired: Path, tmp_path: Path) -> None:
    from data.hub_images import survey_rows

    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / f"train{ending}").write_bytes(trap)
    _refused(lambda: survey_rows(str(folder), None, "train", "image", "text", None), fired)


def test_code_beside_a_model_is_not_run(fired: Path, tmp_path: Path, tiny_base_dir: Path) -> None:
    """A model may name classes of its own in its configurations, and bring their code."""
    folder = shutil.copytree(tiny_base_dir, tmp_path / "base")
    code = f"import os\nos.mkdir({str(fired)!r})\n"
    for name in ("modeling.py", "pipeline.py", "unet/modeling.py", "text_encoder/modeling.py", "tokenizer/modeling.py"):
        (folder / name).write_text(code)
    for name in ("unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = dict.fromkeys(("AutoModel", "AutoConfig", "AutoTokenizer"), "modeling.Trap")
        (folder / name).write_text(json.dumps(content))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": ["pipeline", "Trap"], "unet": ["modeling", "Trap"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    load_components(str(folder))
    assert not fired.exists()
