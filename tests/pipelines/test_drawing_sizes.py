"""At which size results are drawn, from what their files say; nothing of torch is loaded for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import SettingsError
from pipelines import compare_methods
from pipelines.drawing_sizes import FACTS_KEY, FACTS_NAME, drawing_size


def run_folder(folder: Path, facts: dict[str, Any] | None, name: str = "pytorch_lora_weights.safetensors") -> Path:
    """Write a run's folder whose file says facts of itself; None is a file made elsewhere."""
    folder.mkdir(parents=True)
    metadata = {"format": "pt"} | ({} if facts is None else {FACTS_KEY: json.dumps(facts)})
    header = json.dumps({"__metadata__": metadata}).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def test_a_result_is_drawn_at_the_size_of_its_training_unless_another_is_asked_for(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", {"resolution_px": 96, "base": "swatch"})
    word = run_folder(tmp_path / "word", {"resolution_px": 96}, "learned_embeds.safetensors")
    others = run_folder(tmp_path / "others", None)
    assert drawing_size([run], None) == 96
    assert drawing_size([run / "pytorch_lora_weights.safetensors"], None) == 96
    assert drawing_size([run, word, others], None) == 96
    assert drawing_size([run], 128) == 128
    assert drawing_size([others], None) is None
    assert drawing_size([], None) is None


def test_a_whole_model_says_its_size_in_a_file(tmp_path: Path) -> None:
    (tmp_path / FACTS_NAME).write_text(json.dumps({"resolution_px": 48, "base": "somewhere/else"}))
    assert drawing_size([tmp_path], None) == 48


def test_runs_of_several_sizes_are_drawn_at_the_one_that_is_asked_for(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / str(side), {"resolution_px": side}) for side in (64, 96)]
    with pytest.raises(SettingsError, match=r"--resolution: missing, .*64 px \(.*64\), 96 px \(.*96\)\. Give one"):
        drawing_size(runs, None)
    assert drawing_size(runs, 96) == 96


@pytest.mark.parametrize("base", [None, "swatch", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_a_size_that_the_base_cannot_draw_is_refused(base: str | None, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", {"resolution_px": 64})
    with pytest.raises(SettingsError, match="--resolution: found 37, expected a multiple of 8: 32 or 40"):
        drawing_size([run], 37, base)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"null"])
def test_a_file_that_cannot_be_read_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(content)
    assert drawing_size([tmp_path], None) is None
    assert drawing_size([tmp_path / "nowhere"], None) is None


def test_a_study_of_several_sizes_is_refused_before_it_trains(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "prompts: configs/prompts/methods.yaml\ndata: {dry: {concept: sf_dry}}\n"
        "methods: {lora: {script: lora}, large: {script: lora, resolution: 96}}\n"
    )
    with pytest.raises(SettingsError, match=r"dry: the methods have several sizes, lora 64, large 96\."):
        compare_methods.main(["--study", str(study)])
