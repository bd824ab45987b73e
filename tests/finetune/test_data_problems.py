"""A run that is refused for its folder says what is wrong with its data too; a run that may skip images lists them."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from data.errors import OutputError
from finetune.core.checkpoint import RunLock
from finetune.core.concept_images import captioned, open_images, open_source
from finetune.core.method import Method
from finetune.core.run import run
from finetune.core.settings import DdpmSettings, LoraSettings, TextualInversionSettings
from pipelines.components import load_components
from tests.finetune.test_loop import Denoising


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six captioned pictures, of which the first is cut and the second has no caption."""
    place = tmp_path / "images"
    place.mkdir()
    for number in range(6):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
        (place / f"{number}.png").write_bytes(buffer.getvalue()[: 300 if number == 0 else None])
        if number != 1:
            (place / f"{number}.txt").write_text("woven " * (80 if number in (2, 3) else 2))
    return place


def _settings(folder: Path, **options: Any) -> LoraSettings:
    values = {"train_data_dir": folder, "resolution": 32, "num_threads": 1, "max_train_steps": 1, **options}
    return LoraSettings.model_validate(values)


def _never(*_: object) -> Method:
    pytest.fail("a run that is refused builds nothing")


@pytest.mark.parametrize("reason", ["content", "lock"])
def test_a_folder_in_use_hides_nothing_that_is_wrong_with_the_data(folder: Path, tmp_path: Path, reason: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    if reason == "content":
        (out / "metrics.jsonl").write_text("{}")
    with RunLock(out) if reason == "lock" else nullcontext(), pytest.raises(OutputError) as caught:
        run(_settings(folder, output_dir=out), _never, default_dir="unused")
    first, *others = caught.value.problems
    assert "has content already" in first or "in use" in first
    assert len(others) == 2
    assert "0.png: cannot be decoded" in others[0]
    assert "1.png: has no caption" in others[1]
    if reason == "content":
        with pytest.raises(OutputError) as caught:
            run(_settings(folder, output_dir=out, skip_bad=True), _never, default_dir="unused")
        assert len(caught.value.problems) == 1


def test_captions_that_are_too_long_are_named_whichever_side_they_are_on(
    folder: Path, tiny_base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _settings(folder, skip_bad=True, pretrained_model_name_or_path=str(tiny_base_dir), dry_run=True)
    components = load_components(str(tiny_base_dir), weights=False)
    open_images(settings, components, Accelerator(cpu=True))
    said = capsys.readouterr().out
    assert "warning     2 captions are over 77 tokens, and the words after that are not read: " in said
    assert "2.png (" in said
    assert "3.png (" in said
    prompted = settings.model_copy(update={"instance_prompt": ("woven " * 80,)})
    open_images(prompted, components, Accelerator(cpu=True))
    assert "1 caption is over 77 tokens, and the words after that are not read: --instance_prompt (" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        (LoraSettings(concept="sf_dry"), True),
        (LoraSettings(concept="sf_dry", instance_prompt=("a w17h3r slice",)), False),
        (LoraSettings(concept="sf_dry", instance_prompt=("one", "two")), True),
        (TextualInversionSettings(concept="sf_dry"), False),
    ],
)
def test_captions_are_needed_where_the_run_says_them(settings: Any, needed: bool) -> None:
    from finetune.core.concept_images import needs_captions

    assert needs_captions(settings) is needed


def test_what_was_skipped_stands_in_the_run_folder(folder: Path, tmp_path: Path) -> None:
    import torch
    from torch import nn

    from finetune.core.trainables import WholeModule

    settings = _settings(folder, skip_bad=True, output_dir=tmp_path / "run")

    def build(settings: LoraSettings, accelerator: Accelerator) -> Method:
        images = open_source(settings, 32, 0.0, accelerator, needs_captions=True)
        torch.manual_seed(0)
        module = nn.Linear(4, 4)
        return Method(
            name="toy",
            dataset=_AsPoints(captioned(images, settings)),
            objective=Denoising(module),
            trainables=(WholeModule("toy", module),),
            export=lambda _: [],
            manifest={},
        )

    run(settings, build, default_dir="unused")  # type: ignore[arg-type]
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["0.png", "1.png"]


class _AsPoints:
    """The manifest of images over samples of the toy."""

    def __init__(self, images: Any) -> None:
        from tests.finetune.test_loop import Points

        self._images, self._points = images, Points()

    def __len__(self) -> int:
        return len(self._points)

    captions = ("a",)

    def sample(self, position: int) -> Any:
        return self._points.sample(position)

    def manifest(self) -> dict[str, object]:
        return dict(self._images.manifest())


def test_a_model_of_pixels_without_classes_needs_no_captions(folder: Path) -> None:
    (folder / "0.png").unlink()
    (folder / "0.txt").unlink()
    settings = DdpmSettings(train_data_dir=folder, resolution=32)
    assert len(open_source(settings, 32, 0.0, Accelerator(cpu=True), needs_captions=False).dataset.captions) > 1
