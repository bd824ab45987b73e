"""Decoding in several processes with a cache: the same outcomes, no content twice, and no run lost to a bad file."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.checks.decode as decode
from data.checks.decode import Refused, decode_images
from data.checks.facts import LIKENESS_PX, ImageFacts, image_facts
from data.checks.facts_cache import FILE_NAME, FactsCache, FileState
from data.checks.processes import parallel_map, usable_processes
from data.errors import DataError
from data.image_dataset import check_images
from data.image_files import ImageFile
from data.images import decode_image

ROOT = Path(__file__).resolve().parents[2]


def content(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def files(folder: Path, number: int) -> list[ImageFile]:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(content(index))
    return [ImageFile(folder / f"{index}.png", "", "", folder) for index in range(number)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Make every number of pictures a large one, keep the cache here, and list what is decoded in this process."""
    seen: list[str] = []

    def counting(content: bytes, where: str) -> np.ndarray:
        seen.append(where)
        return decode_image(content, where)

    monkeypatch.setattr(decode, "SMALL_WORK_IMAGES", 0)
    monkeypatch.setattr(decode, "SMALL_WORK_BYTES", 0)
    monkeypatch.setattr(decode, "decode_image", counting)
    monkeypatch.setattr(decode, "usable_processes", lambda: 1)  # others could not be counted
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    return seen  # type: ignore[return-value]


def stored(outcome: decode.Outcome) -> object:
    return outcome.problems if isinstance(outcome, Refused) else outcome.stored()


# One function over many items


def _square(number: int) -> int:
    if number == 13:
        os._exit(1)  # as a decoder does that runs into its own defect
    return number * number


def test_where_no_process_can_be_started_the_work_is_done_in_this_one() -> None:
    script = (
        "from data.checks.processes import parallel_map\n"
        "print(sorted(parallel_map(abs, range(-40, 0), num_processes=2)) == [(n, 40 - n) for n in range(40)])"
    )
    # a main module that lies on standard input cannot be imported by another process
    command = [sys.executable, "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    assert done.stdout == "True\n"


def _refuse(number: int) -> int:
    raise ValueError(str(number))


def test_an_item_that_ends_its_process_costs_only_itself() -> None:
    done = dict(parallel_map(_square, range(70), num_processes=2))
    assert done == {number: None if number == 13 else number * number for number in range(70)}


def test_a_defect_of_ours_is_raised_from_another_process() -> None:
    with pytest.raises(ValueError, match="0"):
        list(parallel_map(_refuse, range(3), num_processes=2))


def test_cores_are_shared_with_the_other_processes_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert usable_processes() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usable_processes() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert usable_processes() == 1


# Outcomes


@pytest.mark.usefixtures("decoded")
def test_processes_find_what_one_finds_in_the_order_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = files(tmp_path / "images", 40)
    sources[7].path.write_bytes(content(7)[:60])
    sources[21].path.unlink()
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "one"))
    alone = decode_images(sources, num_workers=1)
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "two"))
    together = decode_images(sources, num_workers=2)
    assert [stored(outcome) for outcome in together] == [stored(outcome) for outcome in alone]
    assert [place for place, outcome in enumerate(alone) if isinstance(outcome, Refused)] == [7, 21]
    assert isinstance(alone[21], Refused)
    assert alone[21].problems == ("the file is missing.",)


def test_a_small_number_of_pictures_starts_no_process_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    outcomes = decode_images(files(tmp_path / "images", 5), num_workers=2)
    assert all(isinstance(outcome, ImageFacts) for outcome in outcomes)
    assert not (tmp_path / "cache").exists()


def test_what_was_decoded_is_not_decoded_again_by_training(decoded: list[str], tmp_path: Path) -> None:
    sources = files(tmp_path / "images", 6)
    first = decode_images(sources, num_workers=1)
    assert len(decoded) == 6
    checked = check_images(sources)
    assert len(decoded) == 6
    assert [(image.sha256, image.shape_px) for image in checked] == [
        (facts.sha256, facts.shape_px) for facts in first if isinstance(facts, ImageFacts)
    ]
    again = decode_images(sources, num_workers=1)
    assert [stored(outcome) for outcome in again] == [stored(outcome) for outcome in first]


def test_a_file_that_was_written_since_is_decoded_anew(decoded: list[str], tmp_path: Path) -> None:
    sources = files(tmp_path / "images", 3)
    decode_images(sources, num_workers=1)
    before = sources[1].path.stat()
    damaged = bytearray(content(1))
    damaged[45:60] = bytes(15)
    time.sleep(0.02)  # the clock of the file system has steps
    sources[1].path.write_bytes(damaged)
    os.utime(sources[1].path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some copying programs do
    assert sources[1].path.stat().st_size == before.st_size
    outcomes = decode_images(sources, num_workers=1)
    assert len(decoded) == 4
    assert [isinstance(outcome, Refused) for outcome in outcomes] == [False, True, False]
    with pytest.raises(DataError, match="1 of 3 images cannot be used"):
        check_images(sources)


def test_a_refused_picture_is_looked_at_again(decoded: list[str], tmp_path: Path) -> None:
    sources = files(tmp_path / "images", 2)
    sources[0].path.write_bytes(b"no picture")
    assert isinstance(decode_images(sources, num_workers=1)[0], Refused)
    sources[0].path.write_bytes(content(9))
    assert isinstance(decode_images(sources, num_workers=1)[0], ImageFacts)
    assert len(decoded) == 3


@dataclass(frozen=True)
class Row:
    """A picture that is no file."""

    name: str
    body: bytes
    caption: str = ""
    label: str = ""

    def content(self) -> bytes:
        if not self.body:
            raise DataError(self.name, "has no image.")
        return self.body


def test_pictures_that_are_no_files_are_known_by_their_content(decoded: list[str]) -> None:
    rows = [Row("0", content(0)), Row("1", b""), Row("2", content(2))]
    first = decode_images(rows, num_workers=1)
    assert isinstance(first[1], Refused)
    assert first[1].problems == ("has no image.",)
    assert len(decoded) == 2
    again = decode_images([rows[2], Row("renamed", content(0))], num_workers=1)
    assert len(decoded) == 2
    assert [stored(outcome) for outcome in again] == [stored(first[2]), stored(first[0])]


@pytest.mark.parametrize("damage", ["text", "older facts", "read-only folder", "a file in its place"])
def test_a_cache_that_is_of_no_use_costs_time_only(decoded: list[str], tmp_path: Path, damage: str) -> None:
    sources, place = files(tmp_path / "images", 3), tmp_path / "cache"
    if damage == "a file in its place":
        place.write_text("mine")
    else:
        decode_images(sources, num_workers=1)
        decoded.clear()
    if damage == "text":
        (place / FILE_NAME).write_text("no database " * 1000)
    if damage == "older facts":
        with sqlite3.connect(place / FILE_NAME) as connection:
            connection.execute("UPDATE facts SET line = '{}'")
    if damage == "read-only folder":
        (place / FILE_NAME).unlink()
        (place / FILE_NAME).mkdir()
    outcomes = decode_images(sources, num_workers=1)
    assert all(isinstance(outcome, ImageFacts) for outcome in outcomes)
    assert len(decoded) == 3
    if damage == "a file in its place":
        assert place.read_text() == "mine"
    decode_images(sources, num_workers=1)
    assert len(decoded) == (3 if damage in ("text", "older facts") else 6)


def test_facts_of_another_decoder_are_not_believed(
    decoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = files(tmp_path / "images", 2)
    decode_images(sources, num_workers=1)
    monkeypatch.setattr("data.checks.facts_cache.VERSION", "another")
    decode_images(sources, num_workers=1)
    assert len(decoded) == 4


def test_an_interrupted_check_keeps_what_it_has(
    decoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = files(tmp_path / "images", 6)
    whole = decode._outcome

    def interrupted(task: decode.Task) -> decode.Outcome:
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return whole(task)

    monkeypatch.setattr(decode, "_outcome", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_images(sources, num_workers=1)
    monkeypatch.setattr(decode, "_outcome", whole)
    decode_images(sources, num_workers=1)
    assert len(decoded) == 6


# Facts


def test_facts_survive_being_stored() -> None:
    pixels = np.random.default_rng(1).random((30, 20, 3)).astype(np.float32)
    facts = image_facts(b"content", pixels)
    again = ImageFacts.from_stored(*facts.stored())
    assert again.stored() == facts.stored()
    assert again.likeness.dtype == np.int8


def test_facts_say_brightness_saturation_clipping_and_contrast() -> None:
    pixels = np.zeros((10, 10, 3), np.float32)
    pixels[:5] = (1, 1, 1)
    pixels[0, 0] = (1, 0, 0)
    facts = image_facts(b"", pixels)
    assert facts.shape_px == (10, 10)
    assert facts.clipped_share == 0.99
    assert (facts.brightness[0], facts.brightness[-1], sum(facts.brightness)) == (50, 49, 100)
    assert (facts.saturation[0], facts.saturation[-1]) == (99, 1)
    assert facts.contrast == pytest.approx(np.std([0] * 50 + [1] * 49 + [0.299]), abs=1e-6)
    assert facts.mean_saturation == pytest.approx(0.01)
    assert not image_facts(b"", np.full((8, 8, 3), 0.4, np.float32)).likeness.any()


def test_a_likeness_is_the_picture_squashed_about_its_mean() -> None:
    left = np.zeros((2 * LIKENESS_PX, LIKENESS_PX, 3), np.float32)
    left[:, : LIKENESS_PX // 4] = 0.8
    likeness = image_facts(b"", left).likeness
    assert (likeness[:, : LIKENESS_PX // 4] == 127).all()
    assert (likeness[:, LIKENESS_PX // 4 :] == -42).all()  # a quarter of the picture is bright: -127 / 3


def test_the_state_of_a_file_changes_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert FileState.of(path) is None
    path.write_text("one")
    first = FileState.of(path)
    assert FileState.of(path) == first
    time.sleep(0.02)
    path.write_text("two")
    assert FileState.of(path) != first
    (tmp_path / "link").symlink_to(path)
    assert FileState.of(tmp_path / "link") == FileState.of(path)


def test_names_that_are_no_text_are_decoded_once_too(tmp_path: Path, decoded: list[str]) -> None:
    """As an old archive leaves them: bytes that are not UTF-8."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for image in files(folder, 3):
        image.path.rename(folder / os.fsdecode(b"\xe9" + image.path.name.encode()))
    images = [ImageFile(path, "", "", folder) for path in sorted(folder.iterdir())]
    first = decode_images(images)
    assert all(isinstance(outcome, ImageFacts) for outcome in first)
    assert len({FileState.of(image.path) for image in images}) == len(decoded) == 3
    assert [outcome.sha256 for outcome in decode_images(images)] == [outcome.sha256 for outcome in first]  # type: ignore[union-attr]
    assert len(decoded) == 3


def test_a_closed_cache_knows_nothing(tmp_path: Path) -> None:
    cache = FactsCache(tmp_path)
    facts = image_facts(b"x", np.zeros((4, 4, 3), np.float32))
    cache.keep([(None, facts)])
    assert cache.facts_of(facts.sha256) is not None
    cache.close()
    assert cache.facts_of(facts.sha256) is None
    cache.keep([(None, facts)])
