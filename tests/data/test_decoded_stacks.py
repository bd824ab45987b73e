from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.tif.decoded
from data.tif.decoded import decoded
from data.tif.stacks import Stack, open_stack
from data.volume_specs import VolumeError
from tests.tif_variants import by_tifffile, voxels_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    by_tifffile(compression="zlib")(path, voxels_of())
    return path


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def counting(stack: Stack) -> tuple[Stack, list[int]]:
    """The stack, and a list that grows with each slice that is decoded."""
    decoded_ones: list[int] = []

    def slices() -> Iterator[np.ndarray]:
        for number, plane in enumerate(stack.slices()):
            decoded_ones.append(number)
            yield plane

    return replace(stack, slices=slices), decoded_ones


def test_a_stack_is_decoded_once(packed: Path, cache: Path) -> None:
    stack, decoded_ones = counting(open_stack(packed))
    voxels, notes = decoded(stack)
    assert len(decoded_ones) == 8
    assert "decoded once" in notes[0]
    again, notes = decoded(stack)
    assert len(decoded_ones) == 8
    assert notes == ()
    (entry,) = entries(cache)
    for array in (voxels, again):
        np.testing.assert_array_equal(array, voxels_of())
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap)
        assert Path(array.base.filename) == entry
    np.testing.assert_array_equal(np.load(entry), voxels_of())


def test_the_same_content_is_found_wherever_it_lies(packed: Path, tmp_path: Path) -> None:
    decoded(open_stack(packed))
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(packed, tmp_path / "elsewhere" / "b.tif")
    stack, decoded_ones = counting(open_stack(Path(copy)))
    decoded(stack)
    assert not decoded_ones


def test_a_changed_file_is_never_served_with_old_voxels(packed: Path, tmp_path: Path) -> None:
    """Not even where size and time of the last change are those of before."""
    decoded(open_stack(packed))
    before = packed.stat()
    other = voxels_of()[::-1].copy()
    by_tifffile(compression="zlib")(tmp_path / "other.tif", other)
    content = (tmp_path / "other.tif").read_bytes()
    packed.write_bytes(content.ljust(before.st_size, b"\0")[: max(before.st_size, len(content))])
    os.utime(packed, ns=(before.st_atime_ns, before.st_mtime_ns))
    voxels, _ = decoded(open_stack(packed))
    np.testing.assert_array_equal(voxels, other)


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped voxel", "flipped header", "empty", "other shape"])
def test_a_damaged_entry_is_made_anew(damage: str, packed: Path, cache: Path) -> None:
    decoded(open_stack(packed))
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    other_shape = whole[:-4].replace(b"(8, 12, 10)", b"(8, 10, 12)")
    content = {
        "cut": whole[:-9],
        "longer": whole + b"x",
        "flipped voxel": whole[:700] + bytes([whole[700] ^ 1]) + whole[701:],
        "flipped header": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        "empty": b"",
        "other shape": other_shape + zlib.crc32(other_shape).to_bytes(4, "little"),
    }[damage]
    assert content != whole
    entry.write_bytes(content)
    stack, decoded_ones = counting(open_stack(packed))
    voxels, _ = decoded(stack)
    assert len(decoded_ones) == 8
    np.testing.assert_array_equal(voxels, voxels_of())
    assert [path.read_bytes() for path in entries(cache)] == [whole]


def test_an_entry_appears_whole_or_not_at_all(packed: Path, cache: Path) -> None:
    stack = open_stack(packed)

    def interrupted() -> Iterator[np.ndarray]:
        for number, plane in enumerate(stack.slices()):
            if number == 5:
                raise KeyboardInterrupt
            yield plane

    with pytest.raises(KeyboardInterrupt):
        decoded(replace(stack, slices=interrupted))
    assert entries(cache) == []


def test_a_file_that_changes_while_it_is_decoded_is_refused(packed: Path, cache: Path) -> None:
    stack = open_stack(packed)

    def touched() -> Iterator[np.ndarray]:
        yield from stack.slices()
        os.utime(packed)

    with pytest.raises(VolumeError, match="changed while it was read"):
        decoded(replace(stack, slices=touched))
    assert entries(cache) == []


def test_a_stack_that_gives_other_slices_than_it_said_is_refused(packed: Path, cache: Path) -> None:
    stack = open_stack(packed)
    with pytest.raises(VolumeError, match="changed while it was read"):
        decoded(replace(stack, slices=lambda: list(stack.slices())[:-1]))
    with pytest.raises(VolumeError, match="slice 0 is 12 x 9"):
        decoded(replace(stack, slices=lambda: (plane[:, :9] for plane in stack.slices())))
    assert entries(cache) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_without_a_cache_the_voxels_are_in_memory_and_it_is_told(
    number: int, packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    voxels, (note,) = decoded(open_stack(packed))
    np.testing.assert_array_equal(voxels, voxels_of())
    assert not voxels.flags.writeable
    assert os.strerror(number) in note
    assert "FILROUGE_CACHE" in note
    assert entries(cache) == []


def test_a_disk_without_room_is_not_filled(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(packed.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=voxels_of().nbytes - 1))
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("nothing is written"))
    voxels, (note,) = decoded(open_stack(packed))
    np.testing.assert_array_equal(voxels, voxels_of())
    assert "No space left" in note


def test_what_a_killed_process_left_behind_is_removed_after_an_hour(packed: Path, cache: Path) -> None:
    (cache / "volumes").mkdir(parents=True)
    old, new = cache / "volumes" / ".old.tmp", cache / "volumes" / ".new.tmp"
    for path, age in ((old, 4000), (new, 3000)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    decoded(open_stack(packed))
    assert not old.exists()
    assert new.exists()


def test_a_file_in_the_place_of_the_cache_is_no_obstacle(packed: Path, cache: Path) -> None:
    cache.write_text("a file")
    voxels, (note,) = decoded(open_stack(packed))
    np.testing.assert_array_equal(voxels, voxels_of())
    assert "into memory" in note


def test_what_fits_neither_on_the_disk_nor_into_memory_is_refused(
    packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file")
    monkeypatch.setattr(data.tif.decoded, "memory_budget_bytes", lambda: voxels_of().nbytes - 1)
    with pytest.raises(VolumeError, match=r"GiB.*FILROUGE_CACHE"):
        decoded(open_stack(packed))
    monkeypatch.setattr(data.tif.decoded, "memory_budget_bytes", lambda: voxels_of().nbytes)
    decoded(open_stack(packed))


def test_order_and_borders_of_the_files_are_a_part_of_the_key(tmp_path: Path, packed: Path) -> None:
    stack = open_stack(packed)
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    first.write_bytes(b"ab")
    second.write_bytes(b"c")
    third.write_bytes(b"abc")
    keys = {
        data.tif.decoded._content_key(replace(stack, files=files))
        for files in ((first, second), (second, first), (third,))
    }
    assert len(keys) == 3
