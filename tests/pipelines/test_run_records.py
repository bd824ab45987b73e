"""Files of a run's folder that are missing, damaged or something else: said in words, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.errors import DataError, FilrougeError, OutputError
from data.json_files import parsed, read_table
from finetune.core.class_images import PROVENANCE, ClassRecipe, class_images
from finetune.core.curves import draw_curves
from finetune.core.loop import _restore
from finetune.core.run import _run_id
from finetune.core.tracking import Tracker
from pipelines.compare import _refuse_without_base
from pipelines.diffusion.cells import Cell, Cells
from pipelines.diffusion.pictures import open_pictures
from pipelines.evaluation.states import AskedRun, checkpoint_records
from pipelines.run_records import read_manifest, read_metrics
from pipelines.studies.study import Run
from pipelines.studies.training import RECORD, _refuse_other_options, _train

BAD: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "not UTF-8": b'{"run_id": "\xff"}',
    "cut": b'{"run_id": ',
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "without its keys": b"{}",
    "deep": b"[" * 100_000,
    "a folder": b"/",
}
SAID = {
    "missing": "is missing; expected",
    "empty": "is not JSON",
    "not UTF-8": "byte 12 is not UTF-8",
    "cut": "is not JSON",
    "a list": "holds a list in place of an object",
    "null": "holds null in place of an object",
    "a number": "holds a number in place of an object",
    "without its keys": "lacks run_id",
    "deep": "brackets stand too deep",
    "a folder": "cannot be read",
}


def _spoil(file: Path, content: bytes | None) -> None:
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    if content == b"/":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_cannot_be_read_is_told_in_words(kind: str, tmp_path: Path) -> None:
    _spoil(tmp_path / "file.json", BAD[kind])
    with pytest.raises(DataError, match=SAID[kind]) as caught:
        read_table(tmp_path / "file.json", "something else. Restore it", needs=("run_id",), error=DataError)
    assert str(caught.value).endswith("expected something else. Restore it.")
    assert caught.value.where == str(tmp_path / "file.json")


def test_json_is_read_as_json_reads_it() -> None:
    assert parsed(b'{"a": [1, 2.5, "\xc3\xa9", null]}') == {"a": [1, 2.5, "é", None]}
    assert parsed('"é"') == "é"


def _study_run() -> Run:
    return Run("lora", "dry", 0, "lora", {})


def _resumed(folder: Path) -> object:
    (folder / "checkpoint-1").mkdir(exist_ok=True)
    accelerator: Any = SimpleNamespace(is_main_process=True)
    return _run_id(folder, resume=True, accelerator=accelerator)


def _restored(folder: Path) -> object:
    checkpoint: Any = SimpleNamespace(folder=folder)
    method: Any = SimpleNamespace(trainables=())
    nothing: Any = None
    return _restore(checkpoint, method, nothing, {}, nothing)


def _class_of(folder: Path) -> object:
    recipe = ClassRecipe("a texture", "0", "epsilon", 8, 0, 1, 1.0)
    (folder / recipe.key).mkdir(exist_ok=True)
    _copy(folder / PROVENANCE, folder / recipe.key / PROVENANCE)
    nothing: Any = None
    return class_images(nothing, recipe, folder, num_images=1, batch_size=1, write=True)


def _copy(file: Path, target: Path) -> None:
    if file.is_dir():
        target.mkdir()
    elif file.exists():
        target.write_bytes(file.read_bytes())


# who reads a file of a run, and which
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "resume": ("manifest.json", _resumed),
    "compare": ("manifest.json", _refuse_without_base),
    "pictures of a pixel model": ("manifest.json", open_pictures),
    "manifest": ("manifest.json", read_manifest),
    "evaluation": ("manifest.json", lambda folder: AskedRun.read(folder, "run")),
    "last step": ("status.json", lambda folder: AskedRun(folder, "run", {}).last_step),
    "best step": ("choice.json", lambda folder: AskedRun(folder, "run", {}).state("best")),
    "files of a checkpoint": ("manifest.json", checkpoint_records),
    "optimizer of a checkpoint": ("optimizer.json", _restored),
    "options of a study": (RECORD, lambda folder: _refuse_other_options(_study_run(), folder)),
    "cost of a study": (RECORD, lambda folder: _train(_study_run(), folder, 1)),
    "settings of cells": ("settings.json", lambda folder: Cells(folder, {"a": 1})),
    "class images": (PROVENANCE, _class_of),
}
# for whom a file that is not there says nothing
OPTIONAL = {"evaluation", "last step", "options of a study", "cost of a study", "settings of cells", "class images"}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in ("missing", "without its keys", "a folder")])
def test_every_reader_of_a_run_tells_of_a_damaged_file(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    _spoil(tmp_path / name, BAD[kind])
    with pytest.raises(FilrougeError, match=SAID[kind]) as caught:
        read(tmp_path)
    assert name in caught.value.where


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader not in OPTIONAL])
def test_a_missing_file_is_called_missing(reader: str, tmp_path: Path) -> None:
    """A run without its manifest was said to have another run's checkpoints."""
    name, read = READERS[reader]
    with pytest.raises(FilrougeError, match=r"is missing|holds no choice\.json") as caught:
        read(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("key", ["settings", "data", "source", "base_prompts"])
def test_an_entry_of_another_kind_is_told(key: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({key: [1]}))
    with pytest.raises(OutputError, match=f"holds no object as {key}"):
        read_manifest(tmp_path)


def _metrics(folder: Path, content: bytes) -> Path:
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    return path


LINES = b'{"step": 1, "loss": 0.5}\n{"step": 2, "validation_loss": 0.25}\n'


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "lo', b'{"step": 3, "l\xc3', b"\xff"])
def test_a_torn_last_line_of_the_metrics_is_left_out(torn: bytes, tmp_path: Path) -> None:
    path = _metrics(tmp_path, LINES + torn)
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "validation_loss": 0.25}]
    assert AskedRun(tmp_path, "run", {}).held_out_losses == {2: 0.25}


DAMAGED = [b"\xff", b"{}", b"[]", b"5", b'{"loss": 1}', b'{"step": "one"}', b'{"step": 1, "a": []}', b"[" * 100_000]


@pytest.mark.parametrize("line", DAMAGED)
def test_any_other_line_of_the_metrics_that_is_no_record_is_told_by_its_number(line: bytes, tmp_path: Path) -> None:
    path = _metrics(tmp_path, LINES + line + b"\n" + LINES)
    for read in (read_metrics, lambda path: draw_curves(path, tmp_path / "curves.png")):
        with pytest.raises(OutputError, match="line 3: found"):
            read(path)
    with pytest.raises(OutputError, match="line 3: found"):
        print(AskedRun(tmp_path, "run", {}).held_out_losses)


@pytest.mark.parametrize("line", DAMAGED)
def test_a_run_goes_on_after_a_damaged_line_and_loses_nothing(line: bytes, tmp_path: Path) -> None:
    before = LINES + line + b"\n" + b'{"step": 5, "loss": 1}\n'
    path = _metrics(tmp_path, before)
    with pytest.warns(UserWarning, match=r"left out what is no record, line 3; damaged-metrics\.jsonl has it"):
        Tracker(tmp_path, first_step=4, last_step=9, images_per_step=1).close()
    assert path.read_bytes() == LINES
    assert (tmp_path / "damaged-metrics.jsonl").read_bytes() == before


def test_cells_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    cells = Cells(tmp_path, {})
    made = Cell({"a": 1}, {"b": np.zeros(3)})
    cells.cell("one", lambda: made)
    (tmp_path / "cells" / "one.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(OutputError, match=r"Remove one\.json, and the cell is made again"):
        cells.cell("one", lambda: made)
    (tmp_path / "cells" / "one.json").write_bytes(b"\xff")
    with pytest.raises(OutputError, match="is not JSON"):
        cells.cell("one", lambda: made)


def test_class_images_that_are_no_pictures_are_told(tmp_path: Path) -> None:
    recipe = ClassRecipe("a texture", "0", "epsilon", 8, 0, 1, 1.0)
    nothing: Any = None
    for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n cut"):
        _spoil(tmp_path / recipe.key / "00000.png", content)
        images = class_images(nothing, replace(recipe), tmp_path, num_images=1, batch_size=1, write=False)
        with pytest.raises(DataError, match=r"00000\.png: cannot be read"):
            images.sample(0)
