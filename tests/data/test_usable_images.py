"""What cannot be used is told at once, alike by check and training, on whichever side of the split it falls."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.checks.images import examine_images
from data.errors import DataError
from data.image_dataset import NO_CAPTIONS, ImageDataset
from data.sources import ImageSource

TOKENIZER = Path(__file__).resolve().parents[2] / "pipelines" / "swatch" / "tokenizer"


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten captioned pictures."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        (tmp_path / f"{number}.txt").write_text(f"surface {number}")
    return tmp_path


def source(folder: Path, **changes: object) -> ImageSource:
    return replace(ImageSource(train_data_dir=folder, resolution=16), **changes)  # type: ignore[arg-type]


def told(source: ImageSource) -> list[str]:
    """What training says of data that it refuses."""
    with pytest.raises(DataError) as caught:
        source.open()
    return list(caught.value.problems)


def checked(source: ImageSource) -> list[str]:
    """What a check says of it."""
    report = examine_images(source, "data", tokenizer=TOKENIZER, num_workers=1)
    return [f"{fault.where}: {fault.reason}" for fault in report.faults]


DAMAGE: dict[str, Callable[[Path, int], object]] = {
    "no caption": lambda folder, number: (folder / f"{number}.txt").unlink(),
    "an empty caption": lambda folder, number: (folder / f"{number}.txt").write_text("\u00a0\n"),
    "a caption in Latin-1": lambda folder, number: (folder / f"{number}.txt").write_bytes(b"tiss\xe9"),
    "a cut picture": lambda folder, number: (folder / f"{number}.png").write_bytes(picture(number)[:200]),
    "a picture whose name has two texts": lambda folder, number: (folder / f"{number}.caption").write_text("b"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_verdict_on_an_image_does_not_depend_on_the_side_it_would_be_on(folder: Path, kind: str) -> None:
    """Each of the ten in turn: two of them would be held out."""
    whole = source(folder).open()
    assert isinstance(whole, ImageDataset)
    assert len(whole.held_out) == 2
    words = set()
    for number in range(10):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        DAMAGE[kind](folder, number)
        refused = told(source(folder))
        assert checked(source(folder)) == refused
        (problem,) = refused
        assert problem.startswith(f"{number}.")
        words.add(problem.removeprefix(f"{number}.").replace(f" {number}.", " N."))
        for path in folder.iterdir():
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
    assert len(words) == 1, words


def damaged(folder: Path) -> Path:
    for number, damage in enumerate(DAMAGE.values()):
        damage(folder, number)
    (folder / "film.gif").write_bytes(picture(99))
    return folder


def test_everything_that_is_wrong_is_told_at_once(folder: Path) -> None:
    refused = told(source(damaged(folder)))
    assert sorted(problem.split(": ")[0] for problem in refused) == [
        "0.png", "1.txt", "2.txt", "3.png", "4.png", "film.gif",
    ]  # fmt: skip
    assert sorted(checked(source(folder))) == sorted(refused)
    with pytest.raises(DataError, match="5 of 10 images cannot be used: 6 problems"):
        source(folder).open()


def test_bad_images_are_skipped_where_that_is_asked_for_and_listed(folder: Path) -> None:
    asked = source(damaged(folder), skip_bad=True)
    dataset = asked.open()
    assert isinstance(dataset, ImageDataset)
    names = {image.name for image in (*dataset.training, *dataset.held_out)}
    assert names == {f"{number}.png" for number in range(5, 10)}
    manifest = dataset.manifest()
    skipped = manifest["skipped"]
    assert isinstance(skipped, list)
    assert [f"{each['where']}: {each['reason']}" for each in skipped] == told(source(folder))
    (note,) = [note for note in dataset.notes if note.startswith("skipped")]
    assert "6 that cannot be used, as --skip_bad asks: " in note
    assert "film.gif" in note
    report = examine_images(asked, "data", tokenizer=TOKENIZER, num_workers=1)
    assert report.verdict == "Training would go on with this data, without 6 that cannot be used."
    assert [fault.where for fault in report.skipped] == [each["where"] for each in skipped]
    assert not report.faults


def test_a_layout_in_doubt_and_a_folder_without_a_good_image_are_refused_all_the_same(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\n")
    (problem,) = told(source(folder, skip_bad=True))
    assert problem.startswith("metadata.csv: captions of this format are not read")
    (folder / "metadata.csv").unlink()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(b"cut")
    assert len(told(source(folder, skip_bad=True))) == 10


def test_a_default_caption_fills_in_what_is_missing_and_nothing_else(folder: Path) -> None:
    (folder / "3.txt").unlink()
    (folder / "4.txt").write_text(" ")
    dataset = source(folder, default_caption="a surface").open()
    assert isinstance(dataset, ImageDataset)
    captions = {image.name: image.caption for image in (*dataset.training, *dataset.held_out)}
    assert captions == {f"{n}.png": "a surface" if n in (3, 4) else f"surface {n}" for n in range(10)}
    assert "captions    2 of 10 images have none of their own, and take --default_caption 'a surface'" in dataset.notes
    assert not checked(source(folder, default_caption="a surface"))
    for path in folder.glob("*.txt"):
        path.unlink()
    assert set(source(folder, default_caption="a surface").open().captions) == {"a surface"}


def test_words_that_a_run_replaces_may_be_missing(folder: Path) -> None:
    (folder / "3.txt").unlink()
    assert len(source(folder, needs_captions=False).open()) == 8
    assert not checked(source(folder, needs_captions=False))


def test_that_no_image_has_a_caption_is_told_beside_other_problems(folder: Path) -> None:
    for path in folder.glob("*.txt"):
        path.unlink()
    assert set(source(folder).open().captions) == {""}  # a run may still say one prompt for all
    (folder / "3.png").write_bytes(b"cut")
    assert told(source(folder))[1:] == [NO_CAPTIONS]


def test_images_without_a_group_beside_others_with_one_are_told(folder: Path) -> None:
    rows = [{"file_name": f"{n}.png", "text": "a", **({"group": "one"} if n < 3 else {})} for n in range(10)]
    for path in folder.glob("*.txt"):
        path.unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = source(folder).open()
    assert isinstance(dataset, ImageDataset)
    assert "groups      7 of 10 images name no group, and each of them is a group by itself" in dataset.notes
