"""A tif is the voxels that were written, or it is refused with a reason; there is no third thing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import data.tif.stacks
from data.tif.stacks import map_voxels, open_stack
from data.volume_specs import VolumeError
from tests.tif_variants import (
    BAD,
    GOOD,
    SHAPE,
    assert_harmless,
    by_tifffile,
    compression_at,
    cut,
    read,
    voxels_of,
    whole_file,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", GOOD)
def test_good_files_give_exactly_the_voxels_that_were_written(name: str, tmp_path: Path) -> None:
    dtype, write, mapped = GOOD[name]
    write(tmp_path / "a.tif", voxels_of(dtype))
    stack = open_stack(tmp_path / "a.tif")
    assert (stack.shape, stack.dtype.name, stack.notes) == (SHAPE, dtype, ())
    assert (stack.offset is not None) == mapped
    np.testing.assert_array_equal(read(stack), voxels_of(dtype))
    slices = list(stack.slices())  # also where they could be mapped
    assert {plane.shape for plane in slices} == {SHAPE[1:]}
    np.testing.assert_array_equal(np.stack(slices), voxels_of(dtype))


def test_there_are_enough_variants() -> None:
    assert len(GOOD) >= 12
    assert len(BAD) >= 20


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    write, words = BAD[name]
    path = tmp_path / "dry.tif"
    write(path, voxels_of())
    with pytest.raises(VolumeError, match=words) as refusal:
        read(open_stack(path))
    assert str(path) in str(refusal.value)
    assert refusal.value.exit_code == 3


@contextmanager
def silence() -> Iterator[None]:
    """Fail where Python warns or where a record reaches the root logger."""
    records: list[str] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logging.getLogger().removeHandler(handler)
    assert not records


@settings(deadline=None, max_examples=250, derandomize=True)
@given(name=st.sampled_from(sorted(GOOD)), share=st.floats(0, 1), back=st.integers(0, 40), from_end=st.booleans())
def test_a_tif_cut_anywhere_is_identical_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    share: float,
    back: int,
    from_end: bool,
) -> None:
    whole = whole_file(name)
    path = tmp_path_factory.getbasetemp() / "cut.tif"
    path.write_bytes(whole[: max(0, len(whole) - back)] if from_end else whole[: int(len(whole) * share)])
    with silence():
        try:
            voxels = read(open_stack(path))
        except VolumeError:
            return
    np.testing.assert_array_equal(voxels, voxels_of(GOOD[name][0]))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(name=st.sampled_from(sorted(GOOD)), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless_or_a_voxel_that_no_checksum_guards(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, change: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.tif"
    content = bytearray(whole_file(name))
    byte = int(place * len(content))
    path.write_bytes(content)
    compression = compression_at(path, byte)
    content[byte] ^= change
    path.write_bytes(content)
    with silence():
        try:
            voxels = read(open_stack(path))
        except VolumeError:
            return
    assert_harmless(voxels, voxels_of(GOOD[name][0]), compression)


def test_a_warning_of_the_reader_refuses_the_file_unless_it_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    by_tifffile(compression="zlib")(tmp_path / "a.tif", voxels_of())
    check = data.tif.stacks.refuse_other_axes

    def warn(*arguments: object) -> object:
        logging.getLogger("tifffile").warning("a tag is strange")
        return check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(data.tif.stacks, "refuse_other_axes", warn)
    with pytest.raises(VolumeError, match=r"a tag is strange.*accept_warnings: true"):
        open_stack(tmp_path / "a.tif")
    stack = open_stack(tmp_path / "a.tif", accept_warnings=True)
    assert stack.notes == ("tifffile warns: a tag is strange",)
    np.testing.assert_array_equal(read(stack), voxels_of())
    assert not caplog.records


def test_an_orientation_that_is_not_applied_is_told(tmp_path: Path) -> None:
    for value, told in ((1, ()), (3, ("says Orientation 3, which is not applied",))):
        by_tifffile(extratags=[(274, "H", 1, value)])(tmp_path / "a.tif", voxels_of())
        notes = open_stack(tmp_path / "a.tif").notes
        assert tuple(note.split(":")[0] for note in notes) == told


@pytest.mark.parametrize("name", ["cut ImageJ", "last page lost", "middle page skipped", "page without data"])
def test_accepted_warnings_leave_the_checks_of_the_structure(name: str, tmp_path: Path) -> None:
    write, words = BAD[name]
    write(tmp_path / "a.tif", voxels_of())
    with pytest.raises(VolumeError, match=words):
        open_stack(tmp_path / "a.tif", accept_warnings=True)


@pytest.mark.parametrize("silencer", ["level", "disabled"])
def test_a_silenced_logger_hides_no_damage(silencer: str, tmp_path: Path) -> None:
    """For a cut generic stack the log is the only sign; configurations of logging switch loggers off."""
    cut(by_tifffile(metadata=None))(tmp_path / "a.tif", voxels_of())
    logger = logging.getLogger("tifffile")
    before = logger.level, logger.disabled, logger.propagate, list(logger.handlers)
    try:
        if silencer == "level":
            logger.setLevel(logging.CRITICAL)
        else:
            logger.disabled = True
        changed = logger.level, logger.disabled, logger.propagate, list(logger.handlers)
        with pytest.raises(VolumeError, match="tifffile warns"):
            open_stack(tmp_path / "a.tif")
        assert (logger.level, logger.disabled, logger.propagate, list(logger.handlers)) == changed
    finally:
        logger.setLevel(before[0])
        logger.disabled = before[1]


def test_a_warning_belongs_to_the_file_that_was_opened_in_its_thread(tmp_path: Path) -> None:
    by_tifffile(compression="zlib")(tmp_path / "good.tif", voxels_of())
    cut(by_tifffile(metadata=None))(tmp_path / "bad.tif", voxels_of())
    logger = logging.getLogger("tifffile")
    before = logger.level, logger.disabled, logger.propagate, list(logger.handlers)

    def open_one(number: int) -> bool:
        try:
            read(open_stack(tmp_path / ("bad.tif" if number % 2 else "good.tif")))
        except VolumeError:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(open_one, range(60))) == [True, False] * 30
    assert (logger.level, logger.disabled, logger.propagate, list(logger.handlers)) == before


def test_a_page_that_does_not_fit_into_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_tifffile(compression="zlib")(tmp_path / "zlib.tif", voxels_of())
    by_tifffile()(tmp_path / "plain.tif", voxels_of())
    monkeypatch.setattr(data.tif.stacks, "memory_budget_bytes", lambda: 239)
    with pytest.raises(VolumeError, match="one page takes"):
        open_stack(tmp_path / "zlib.tif")
    assert open_stack(tmp_path / "plain.tif").shape == SHAPE
    monkeypatch.setattr(data.tif.stacks, "memory_budget_bytes", lambda: 240)
    assert open_stack(tmp_path / "zlib.tif").shape == SHAPE


def test_more_than_4_gib_behind_one_header_are_counted_by_the_description(tmp_path: Path) -> None:
    num_slices, side = 1100, 2048
    path = tmp_path / "large.tif"
    text = f"ImageJ=1.54f\nimages={num_slices}\nslices={num_slices}\n"
    tifffile.imwrite(path, np.zeros((side, side), np.uint8), description=text, metadata=None, photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].dataoffsets[0]
    marks = {0: 11, num_slices // 2: 22, num_slices - 1: 33}
    with path.open("r+b") as file:  # a file with holes takes no room on the disk
        file.truncate(start + num_slices * side**2)
        for number, mark in marks.items():
            file.seek(start + number * side**2 + 5)
            file.write(bytes([mark]))
    stack = open_stack(path)
    assert stack.nbytes > 2**32
    assert stack.shape == (num_slices, side, side)
    assert stack.offset == start
    voxels = map_voxels(path, start, stack.dtype, stack.shape)
    assert {number: int(voxels[number, 0, 5]) for number in marks} == marks


_WITHOUT_IMAGECODECS = """
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
sys.modules["imagecodecs"] = None
import numpy as np
from data.tif.stacks import open_stack
from data.volume_specs import VolumeError
assert len(list(open_stack(Path("zlib.tif")).slices())) == 8
try:
    open_stack(Path("lzw.tif"))
except VolumeError as error:
    print(error)
"""


def test_without_imagecodecs_deflate_is_read_and_lzw_says_what_to_install(tmp_path: Path) -> None:
    for name in ("zlib", "lzw"):
        by_tifffile(compression=name)(tmp_path / f"{name}.tif", voxels_of())
    said = _run(_WITHOUT_IMAGECODECS, tmp_path)
    assert "pip install imagecodecs" in said
    assert "damaged" not in said


_FLIPS_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np
from data.tif.stacks import map_voxels, open_stack
from data.volume_specs import VolumeError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rng = np.random.default_rng(5)
outcomes = {"read": 0, "refused": 0}
files = [path.read_bytes() for path in sorted(Path().glob("*.tif"))]
target = Path("flipped")
for number in range(240):
    content = bytearray(files[number % len(files)])
    for place in rng.integers(0, len(content), rng.integers(1, 5)):
        content[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    target.write_bytes(content)
    try:
        stack = open_stack(target)
        count = sum(1 for _ in stack.slices())
        assert count == stack.shape[0]
        outcomes["read"] += 1
    except VolumeError:
        outcomes["refused"] += 1
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline
print(outcomes["read"], outcomes["refused"], grown // 1024)
"""


def test_damage_takes_no_memory(tmp_path: Path) -> None:
    """A number that was changed may claim any size: nothing is taken before it is compared with the file."""
    for name in ("zlib", "volume tiles", "LZW page by page", "ImageJ", "OME", "BigTIFF page by page", "Pillow"):
        dtype, write, _ = GOOD[name]
        write(tmp_path / f"{name}.tif", voxels_of(dtype))
    read_ones, refused, grown_mib = (int(word) for word in _run(_FLIPS_UNDER_A_LIMIT, tmp_path).split())
    assert min(read_ones, refused) >= 20
    assert grown_mib < 100


def _run(script: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_opening_and_reading_never_open_a_file_for_writing(tmp_path: Path) -> None:
    opened: list[tuple[str, int]] = []
    watching = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching[0] and event == "open" and str(arguments[0]).startswith(str(tmp_path)):
            opened.append((str(arguments[0]), int(arguments[2])))  # type: ignore[call-overload]

    for name in ("default", "zlib", "page by page", "OME", "ImageJ one header"):
        GOOD[name][1](tmp_path / f"{name}.tif", voxels_of(GOOD[name][0]))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    for path in before:
        path.chmod(0o444)
    sys.addaudithook(watch)
    for path in before:
        read(open_stack(path))
    watching[0] = False
    assert {Path(name) for name, _ in opened} == set(before)
    assert {flags & os.O_ACCMODE for _, flags in opened} == {os.O_RDONLY}
    assert not any(flags & (os.O_CREAT | os.O_TRUNC | os.O_APPEND) for _, flags in opened)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
