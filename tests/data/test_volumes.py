from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from data.tif.writer import write_stack
from data.volume_specs import PLANES, VolumeError, VolumeSpec, read_volume_specs
from data.volumes import open_volume, plane_notes
from tests.tif_variants import BAD, GOOD, SHAPE, by_tifffile, voxels_of

MAP = {"thickness": 0, "warp": 1, "weft": 2}


def spec_of(path: Path, **declared: object) -> VolumeSpec:
    return VolumeSpec(**{"state": "dry", "path": path, "planes": MAP, **declared})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FILROUGE_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("name", GOOD)
def test_a_volume_is_mapped_read_only_and_the_same_in_every_encoding(name: str, tmp_path: Path, cache: Path) -> None:
    dtype, write, mapped = GOOD[name]
    write(tmp_path / "a.tif", voxels_of(dtype))
    volume = open_volume(spec_of(tmp_path / "a.tif", shape=SHAPE))
    np.testing.assert_array_equal(volume.voxels, voxels_of(dtype))
    assert (volume.shape, volume.voxels.dtype.name) == (SHAPE, dtype)
    assert not volume.voxels.flags.writeable
    base = volume.voxels
    while not isinstance(base, np.memmap):
        assert isinstance(base.base, np.ndarray), "voxels are a view of a file"
        base = base.base
    assert base.mode == "r"
    assert Path(base.filename).is_relative_to(tmp_path if mapped else cache)
    write_stack(tmp_path / "reference.tif", voxels_of(dtype), None)
    assert volume.content_hash() == open_volume(spec_of(tmp_path / "reference.tif")).content_hash()


@pytest.mark.parametrize("name", ["cut ImageJ", "bit rot in zlib", "missing", "palette"])
def test_a_damaged_volume_is_refused_and_leaves_nothing_in_the_cache(name: str, tmp_path: Path, cache: Path) -> None:
    write, words = BAD[name]
    write(tmp_path / "dry.tif", voxels_of())
    with pytest.raises(VolumeError, match=words):
        open_volume(spec_of(tmp_path / "dry.tif"))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_missing_volume_is_told_with_what_lies_there(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"missing.*no tif"):
        open_volume(read_volume_specs(tmp_path)["dry"])
    by_tifffile()(tmp_path / "scan7.tif", voxels_of())
    with pytest.raises(VolumeError, match=r"missing.*beside it are scan7\.tif"):
        open_volume(read_volume_specs(tmp_path)["dry"])


@pytest.mark.parametrize("name", ["DRY.TIF", "Dry.tiff", "dry"])
def test_a_volume_under_nearly_its_name_is_named(tmp_path: Path, name: str) -> None:
    if name == "dry":
        (tmp_path / name).mkdir()
    else:
        by_tifffile()(tmp_path / name, voxels_of())
    with pytest.raises(VolumeError, match=rf"the file is missing; found {name} instead\. Say file: {name} of"):
        open_volume(read_volume_specs(tmp_path)["dry"])
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(VolumeError, match=r"compacted.tif: the file is missing; (beside it are|no tif is in)"):
        open_volume(read_volume_specs(tmp_path)["compacted"])


def test_voxels_that_are_no_numbers_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voxels = voxels_of("float32")
    voxels[2, 3, 4:7], voxels[5, 1, 1] = np.nan, np.inf
    by_tifffile()(tmp_path / "a.tif", voxels)
    (note,) = open_volume(spec_of(tmp_path / "a.tif")).notes
    assert note == ("of its 960 voxels 3 are NaN and show as black and 1 are infinite and show as black or white")
    assert note in capsys.readouterr().err


def test_planes_that_nobody_declared_are_told(tmp_path: Path) -> None:
    by_tifffile()(tmp_path / "dry.tif", voxels_of())
    volume = open_volume(read_volume_specs(tmp_path)["dry"])
    assert plane_notes([volume]) == [
        "dry.tif: volumes.yaml says no planes, so they are taken as thickness along Z, warp along Y, weft along X"
    ]
    (tmp_path / "volumes.yaml").write_text("dry: {planes: {thickness: 0, warp: 1, weft: 2}}")
    assert plane_notes([open_volume(read_volume_specs(tmp_path)["dry"])]) == []


def test_a_folder_of_slices_that_volumes_yaml_names_is_a_volume(tmp_path: Path) -> None:
    for number, plane in enumerate(voxels_of()):
        (tmp_path / "slices").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "slices" / f"s_{number}.tif", plane)
    (tmp_path / "volumes.yaml").write_text("dry: {file: slices, voxel_size_um: [40, 40, 40], shape: [8, 12, 10]}")
    volume = open_volume(read_volume_specs(tmp_path)["dry"])
    np.testing.assert_array_equal(volume.voxels, voxels_of())
    assert volume.voxel_size_um == (40, 40, 40)


def test_shape_is_compared_with_the_declared_one(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.tif", voxels_of(), None)
    with pytest.raises(VolumeError, match="declared 9 x 12 x 10, the file holds 8 x 12 x 10"):
        open_volume(spec_of(tmp_path / "a.tif", shape=(9, 12, 10)))


@pytest.mark.parametrize(
    ("declared", "found", "is_told"),
    [
        ((40.0, 40.0, 40.0), (40.0, 40.0, 40.0), False),
        ((40.0, 40.0, 40.0), (40.5, 39.5, 40.0), False),
        ((40.0, 40.0, 40.0), (41.0, 40.0, 40.0), True),
        ((40.0, 40.0, 40.0), (40.0, 40.0, 0.04), True),
        ((40.0, 40.0, 40.0), None, False),
        (None, (25.0, 20.0, 20.0), False),
    ],
)
def test_the_declared_voxel_size_wins_and_a_contradiction_is_told(
    declared: tuple[float, float, float] | None,
    found: tuple[float, float, float] | None,
    is_told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_stack(tmp_path / "a.tif", voxels_of(), found)
    volume = open_volume(spec_of(tmp_path / "a.tif", voxel_size_um=declared))
    assert volume.voxel_size_um == (declared or found)
    told = capsys.readouterr().err
    assert ("volumes.yaml says 40 x 40 x 40 um" in told) == is_told
    assert len(volume.notes) == is_told


def test_accepted_warnings_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rational number with denominator 0 is no length, and tifffile warns about a tag of an unknown type."""
    path = tmp_path / "a.tif"
    by_tifffile(metadata=None)(path, voxels_of())
    with tifffile.TiffFile(path) as tif:
        entry = tif.pages[0].tags["Software"].offset
    content = bytearray(path.read_bytes())
    content[entry + 2 : entry + 4] = (99).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"tifffile warns.*accept_warnings: true"):
        open_volume(spec_of(path))
    assert capsys.readouterr().err == ""
    volume = open_volume(spec_of(path, accept_warnings=True))
    np.testing.assert_array_equal(volume.voxels, voxels_of())
    assert f"{path}: tifffile warns" in capsys.readouterr().err
    assert len(volume.notes) == 1


@pytest.mark.parametrize("permutation", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_planes_are_views_along_the_declared_axes(permutation: tuple[int, int, int], tmp_path: Path) -> None:
    voxels = voxels_of()
    write_stack(tmp_path / "a.tif", voxels, None)
    volume = open_volume(spec_of(tmp_path / "a.tif", planes=dict(zip(PLANES, permutation, strict=True))))
    for plane, axis in zip(PLANES, permutation, strict=True):
        assert volume.num_slices(plane) == SHAPE[axis]
        for index in (0, SHAPE[axis] - 1):
            cut_plane = volume.plane(plane, index)
            np.testing.assert_array_equal(cut_plane, voxels.take(index, axis=axis))
            assert np.shares_memory(cut_plane, volume.voxels)
            with pytest.raises(ValueError, match="read-only"):
                cut_plane[0, 0] = 1


def test_content_hash_depends_on_shape_dtype_and_every_voxel(tmp_path: Path) -> None:
    voxels = voxels_of()
    changed = voxels.copy()
    changed[-1, -1, -1] += 1
    hashes = set()
    for index, variant in enumerate((voxels, changed, voxels.reshape(8, 10, 12), voxels.view(np.int16))):
        write_stack(tmp_path / f"{index}.tif", variant, None)
        hashes.add(open_volume(spec_of(tmp_path / f"{index}.tif")).content_hash())
    assert len(hashes) == 4


def test_the_window_is_declared_or_found(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.tif", voxels_of(), None)
    assert open_volume(spec_of(tmp_path / "a.tif", window=(1200.0, 52000.0))).window == (1200.0, 52000.0)
    low, high = open_volume(spec_of(tmp_path / "a.tif")).window
    assert 0 < low < 5_000 < 60_000 < high < 65_535
    write_stack(tmp_path / "flat.tif", np.full(SHAPE, 9, np.uint16), None)
    with pytest.raises(VolumeError, match=r"flat\.tif: .*no contrast"):
        open_volume(spec_of(tmp_path / "flat.tif"))
