from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.errors import MOST_SHOWN
from data.tif.slice_folders import open_slice_folder
from data.volume_specs import VolumeError
from tests.tif_variants import voxels_of


def write_slices(folder: Path, name: str = "s_{}.tif", first: int = 0, **options: object) -> None:
    for number, plane in enumerate(voxels_of(), start=first):
        tifffile.imwrite(folder / name.format(number), plane, **options)  # type: ignore[arg-type]


def read(folder: Path) -> np.ndarray:
    return np.stack(list(open_slice_folder(folder).slices()))


@pytest.mark.parametrize("name", ["s_{}.tif", "s_{:04d}.tiff", "{}.TIF", "2024-05-07 scan 3 slice {:03d} of 8.tif"])
@pytest.mark.parametrize("first", [0, 1, 6, 97])
def test_slices_come_in_the_order_of_their_numbers(name: str, first: int, tmp_path: Path) -> None:
    write_slices(tmp_path, name, first)
    stack = open_slice_folder(tmp_path)
    assert (stack.shape, stack.dtype, stack.offset) == ((8, 12, 10), np.uint16, None)
    np.testing.assert_array_equal(read(tmp_path), voxels_of())
    assert stack.notes == ((f"its slices are numbered {first} to {first + 7}",) if first > 1 else ())


@pytest.mark.parametrize(
    "options",
    [{"compression": "zlib"}, {"compression": "lzw"}, {"imagej": True}, {"ome": True}, {"bigtiff": True},
     {"byteorder": ">"}, {"tile": (16, 16)}, {"metadata": None}],
    ids=str,
)  # fmt: skip
def test_slices_may_be_encoded_in_any_way(options: dict[str, object], tmp_path: Path) -> None:
    write_slices(tmp_path, **options)
    np.testing.assert_array_equal(read(tmp_path), voxels_of())


def test_equal_channels_are_one_and_others_are_refused(tmp_path: Path) -> None:
    grey = voxels_of("uint8")
    for number, plane in enumerate(grey):
        tifffile.imwrite(tmp_path / f"s_{number}.tif", np.stack([plane] * 3, -1), photometric="rgb")
    np.testing.assert_array_equal(read(tmp_path), grey)
    tifffile.imwrite(tmp_path / "s_5.tif", np.stack([grey[5], grey[5], grey[4]], -1), photometric="rgb")
    with pytest.raises(VolumeError, match=r"s_5\.tif: .*channel 2 differs"):
        read(tmp_path)


def test_what_lies_beside_the_slices_is_told(tmp_path: Path) -> None:
    write_slices(tmp_path)
    (tmp_path / "scan.log").write_text("180 projections")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (note,) = open_slice_folder(tmp_path).notes
    assert "1 files beside the slices are left out: scan.log" in note


def remove(*numbers: int) -> Callable[[Path], object]:
    return lambda folder: [(folder / f"s_{number}.tif").unlink() for number in numbers]


def replace_slice(number: int, pixels: np.ndarray, **options: object) -> Callable[[Path], object]:
    return lambda folder: tifffile.imwrite(folder / f"s_{number}.tif", pixels, **options)  # type: ignore[arg-type]


def cut_slice(folder: Path) -> None:
    path = folder / "s_5.tif"
    path.write_bytes(path.read_bytes()[:-40])


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


PLANE = voxels_of()[0]
FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a hole": (remove(3), ("1 of 0 to 7: 3",)),
    "holes": (remove(3, 5, 6), ("3 of 0 to 7: 3, 5, 6",)),
    "every second": (remove(1, 3, 5), ("3 of 0 to 7",)),
    "another height": (replace_slice(3, PLANE[:9]), ("s_3.tif: is 9 x 10 uint16, 7 of 8 slices are 12 x 10 uint16",)),
    "another type": (replace_slice(6, PLANE.astype(np.uint8)), ("s_6.tif: is 12 x 10 uint8",)),
    "float64 first": (replace_slice(0, PLANE.astype(float)), ("s_0.tif: holds float64",)),
    "turned": (replace_slice(3, np.ascontiguousarray(PLANE.T)), ("s_3.tif: is 10 x 12 uint16",)),
    "cut": (cut_slice, ("s_5.tif: ", "incomplete")),
    "empty": (lambda folder: (folder / "s_2.tif").write_bytes(b""), ("s_2.tif: the file is empty",)),
    "text": (lambda folder: (folder / "s_2.tif").write_text("a letter"), ("s_2.tif: ", "not a TIFF")),
    "renamed PNG": (
        lambda folder: Image.fromarray(PLANE).save(folder / "s_2.tif", "PNG"),
        ("s_2.tif: ", "not a TIFF"),
    ),
    "a folder": (lambda folder: (remove(4)(folder), (folder / "s_4.tif").mkdir()), ("s_4.tif: ", "missing")),
    "a dead link": (
        lambda folder: (remove(4)(folder), (folder / "s_4.tif").symlink_to(folder / "nothing")),
        ("s_4.tif: ", "missing"),
    ),
    "a stack": (replace_slice(4, voxels_of()), ("s_4.tif: holds 8 x 12 x 10", "one slice in each file")),
    "the same number twice": (lambda folder: replace_slice(9, PLANE)(folder) or rename("s_9.tif", "s_03.tif")(folder),
                              ("s_03.tif, s_3.tif", "same number")),
    "two suffixes": (
        lambda folder: (replace_slice(9, PLANE)(folder), rename("s_9.tif", "s_3.tiff")(folder)),
        ("s_3.tif, s_3.tiff", "same number"),
    ),
    "a stranger": (rename("s_7.tif", "overview.tif"), ("overview.tif: named unlike", "s_0.tif")),
    "a note in a name": (rename("s_7.tif", "s_7 (copy).tif"), ("s_7 (copy).tif: named unlike",)),
    "two numbers vary": (
        lambda folder: [rename(f"s_{n}.tif", f"s_{n}_{n + 5}.tif")(folder) for n in range(8)],
        ("2 numbers vary", "s_0_5.tif"),
    ),
    "timestamps": (
        lambda folder: [rename(f"s_{n}.tif", f"s_{20240507101500 + 41 * n}.tif")(folder) for n in range(8)],
        ("slices are missing, 280 of",),
    ),
    "palette": (
        replace_slice(3, PLANE.astype(np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        ("s_3.tif: holds palette",),
    ),
    "white is zero": (replace_slice(3, PLANE, photometric="miniswhite"), ("s_3.tif: stores white as 0",)),
    "one slice": (remove(1, 2, 3, 4, 5, 6, 7), ("found only s_0.tif",)),
    "no slice": (remove(*range(8)), ("found 0 other files", "one tif for each slice")),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_is_no_stack_is_refused_with_the_names_of_its_files(name: str, tmp_path: Path) -> None:
    spoil, words = FAULTS[name]
    write_slices(tmp_path)
    spoil(tmp_path)
    with pytest.raises(VolumeError) as refusal:
        read(tmp_path)
    for word in words:
        assert word in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


def test_all_bad_slices_are_told_at_once(tmp_path: Path) -> None:
    write_slices(tmp_path)
    cut_slice(tmp_path)
    (tmp_path / "s_2.tif").write_bytes(b"")
    with pytest.raises(VolumeError) as refusal:
        open_slice_folder(tmp_path)
    assert [problem.split(":")[0] for problem in refusal.value.problems] == ["s_2.tif", "s_5.tif"]
    for number in range(8):
        (tmp_path / f"s_{number}.tif").write_bytes(b"")
    for number in range(8, 30):
        (tmp_path / f"s_{number}.tif").write_bytes(b"")
    with pytest.raises(VolumeError) as refusal:
        open_slice_folder(tmp_path)
    assert len(refusal.value.problems) == 30
    for number in range(30, 130):
        (tmp_path / f"s_{number}.tif").write_bytes(b"")
    with pytest.raises(VolumeError) as refusal:
        open_slice_folder(tmp_path)
    first, *shown, last = str(refusal.value).splitlines()
    assert first.endswith(": 130 problems")
    assert len(shown) == MOST_SHOWN
    assert last == "  and 30 more"


def test_the_voxel_size_is_that_of_all_slices(tmp_path: Path) -> None:
    metadata = {"unit": "um", "spacing": 20.0}
    write_slices(tmp_path, imagej=True, resolution=(1 / 40, 1 / 40), metadata=metadata)
    assert open_slice_folder(tmp_path).voxel_size_um == pytest.approx((20.0, 40.0, 40.0))
    replace_slice(4, PLANE, imagej=True, resolution=(1 / 50, 1 / 40), metadata=metadata)(tmp_path)
    stack = open_slice_folder(tmp_path)
    assert stack.voxel_size_um is None
    assert "different voxel sizes" in stack.notes[0]
