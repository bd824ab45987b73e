from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import data.volumes
from data.errors import OutputError, SettingsError
from data.volumes import (
    PLANES,
    VolumeError,
    VolumeSpec,
    open_volume,
    read_volume_specs,
    unit_to_native,
    window_to_unit,
    write_stack,
)

SHAPE = (8, 12, 10)
MAP = {"thickness": 0, "warp": 1, "weft": 2}


def voxels_of(dtype: str = "uint16") -> np.ndarray:
    rng = np.random.default_rng(7)
    if dtype == "float32":
        return rng.normal(0.3, 0.2, SHAPE).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min + 1, limits.max, SHAPE).astype(dtype)


def spec_of(path: Path, **declared: object) -> VolumeSpec:
    return VolumeSpec(**{"state": "dry", "path": path, "planes": MAP, **declared})  # type: ignore[arg-type]


def write_page_by_page(path: Path, voxels: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as writer:
        for plane in voxels:
            writer.write(plane, contiguous=False, photometric="minisblack", metadata=None)


def write_pil(path: Path, voxels: np.ndarray) -> None:
    first, *others = [Image.fromarray(plane) for plane in voxels]
    first.save(path, save_all=True, append_images=others)


Writer = Callable[[Path, np.ndarray], object]


def by_tifffile(**options: object) -> Writer:
    return lambda path, voxels: tifffile.imwrite(path, voxels, **{"photometric": "minisblack", **options})


GOOD: dict[str, tuple[str, Writer, bool]] = {  # dtype, writer, memory-mapped
    "default": ("uint16", by_tifffile(), True),
    "no metadata": ("uint16", by_tifffile(metadata=None), True),
    "axes ZYX": ("uint16", by_tifffile(metadata={"axes": "ZYX"}), True),
    "ImageJ": ("uint16", by_tifffile(imagej=True, metadata={"axes": "ZYX"}), True),
    "ImageJ time axis": ("uint16", by_tifffile(imagej=True, metadata={"axes": "TYX"}), True),
    "big-endian ImageJ": ("uint16", by_tifffile(imagej=True, byteorder=">", metadata={"axes": "ZYX"}), True),
    "BigTIFF": ("uint16", by_tifffile(bigtiff=True), True),
    "OME": ("uint16", by_tifffile(ome=True, metadata={"axes": "ZYX"}), True),
    "one channel": (
        "uint16",
        lambda path, voxels: tifffile.imwrite(path, voxels[None], metadata={"axes": "CZYX"}),
        True,
    ),
    "zlib": ("uint16", by_tifffile(compression="zlib"), False),
    "LZW with predictor": ("uint16", by_tifffile(compression="lzw", predictor=True), False),
    "tiled": ("uint16", by_tifffile(tile=(16, 16)), False),
    "volume tiles": ("uint16", by_tifffile(tile=(16, 16, 16), compression="zlib", metadata={"axes": "ZYX"}), False),
    "page by page": ("uint16", write_page_by_page, False),
    "PIL": ("uint8", write_pil, False),
    "write_stack": ("uint16", lambda path, voxels: write_stack(path, voxels, (40.0, 40.0, 40.0)), True),
    "uint8": ("uint8", by_tifffile(), True),
    "int16": ("int16", by_tifffile(), True),
    "float32": ("float32", by_tifffile(), True),
    "equal RGB": (
        "uint8",
        lambda path, voxels: tifffile.imwrite(path, np.stack([voxels] * 3, -1), photometric="rgb"),
        False,
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_files_give_exactly_the_voxels_that_were_written(name: str, tmp_path: Path) -> None:
    dtype, write, mapped = GOOD[name]
    voxels = voxels_of(dtype)
    write(tmp_path / "a.tif", voxels)
    write_stack(tmp_path / "reference.tif", voxels, None)

    volume = open_volume(spec_of(tmp_path / "a.tif", shape=SHAPE))

    np.testing.assert_array_equal(volume.voxels, voxels)
    assert (volume.shape, volume.voxels.dtype.name) == (SHAPE, dtype)
    assert not volume.voxels.flags.writeable
    base = volume.voxels
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) == mapped
    assert volume.content_hash() == open_volume(spec_of(tmp_path / "reference.tif")).content_hash()


def cut(share: float, **options: object) -> Writer:
    def write(path: Path, voxels: np.ndarray) -> None:
        by_tifffile(**options)(path, voxels)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


def write_rotten(path: Path, voxels: np.ndarray) -> None:
    tifffile.imwrite(path, voxels, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        start, count = tif.pages[4].dataoffsets[0], tif.pages[4].databytecounts[0]
    rotten = bytearray(path.read_bytes())
    rotten[start + count // 4 : start + count // 2] = bytes(count // 2 - count // 4)
    path.write_bytes(rotten)


def write_other_height(path: Path, voxels: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as writer:
        for index, plane in enumerate(voxels):
            plane = plane[:9] if index == 5 else plane
            writer.write(plane, contiguous=False, photometric="minisblack", metadata=None)


def write_bad_offset(path: Path, voxels: np.ndarray) -> None:
    tifffile.imwrite(path, voxels)
    damaged = bytearray(path.read_bytes())
    damaged[4:8] = (2**30).to_bytes(4, "little")
    path.write_bytes(damaged)


def write_cut_pages(path: Path, voxels: np.ndarray) -> None:
    write_page_by_page(path, voxels)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.6)])


def with_tag(write: Writer, page: int, tag: str, change: int) -> Writer:
    """Write a file, then change the one number that a tag of a page holds."""

    def write_changed(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        with tifffile.TiffFile(path) as tif:
            tif.pages.useframes = False
            found = tif.pages[page].tags[tag]
        changed = bytearray(path.read_bytes())
        changed[found.valueoffset : found.valueoffset + 4] = (found.value[0] + change).to_bytes(4, "little")
        path.write_bytes(changed)

    return write_changed


def write_ome_missing_slice(path: Path, voxels: np.ndarray) -> None:
    tifffile.imwrite(path, voxels, ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    path.write_bytes(path.read_bytes().replace(b'SizeZ="8"', b'SizeZ="9"'))


BAD: dict[str, tuple[Writer, str]] = {
    "missing": (lambda _path, _voxels: None, "missing"),
    "folder": (lambda path, _voxels: path.mkdir(), "folder"),
    "empty": (lambda path, _voxels: path.write_bytes(b""), "empty"),
    "text": (lambda path, _voxels: path.write_text("a letter, not a scan\n" * 9), "not a TIFF"),
    "renamed PNG": (lambda path, voxels: Image.fromarray(voxels[0].astype(np.uint8)).save(path, "PNG"), "not a TIFF"),
    "bad first offset": (write_bad_offset, "damaged|tifffile warns"),
    "cut generic": (cut(0.6, metadata=None), "tifffile warns"),
    "cut ImageJ": (cut(0.6, imagej=True, metadata={"axes": "ZYX"}), "declares 960 voxels, found 120"),
    "cut shaped": (cut(0.6), "incomplete"),
    "cut OME": (cut(0.6, ome=True, metadata={"axes": "ZYX"}), "incomplete"),
    "cut pages": (write_cut_pages, "incomplete"),
    "cut zlib": (cut(0.6, compression="zlib"), "incomplete"),
    "cut tiled": (cut(0.6, tile=(16, 16)), "incomplete"),
    "bit rot in zlib": (write_rotten, "cannot be read"),
    "one page of another height": (write_other_height, "9 x 10"),
    "OME missing slice": (write_ome_missing_slice, "pages of it are missing"),
    "page without data": (with_tag(write_page_by_page, 5, "StripByteCounts", -240), "hold no data"),
    "page beyond the end": (with_tag(write_page_by_page, 5, "StripOffsets", 10_000), "reach to byte"),
    "page elsewhere": (with_tag(by_tifffile(), 4, "StripOffsets", 240), "page 4 lies elsewhere"),
    "one 2D page": (lambda path, voxels: tifffile.imwrite(path, voxels[0]), "one 2D image"),
    "planar RGB": (
        lambda path, voxels: tifffile.imwrite(path, voxels[:3].astype(np.uint8), photometric="rgb"),
        "one 2D image",
    ),
    "unequal RGB": (
        lambda path, voxels: tifffile.imwrite(
            path, np.stack([voxels, voxels, voxels[::-1]], -1).astype(np.uint8), photometric="rgb"
        ),
        "channel 2 differs",
    ),
    "unequal channels": (
        lambda path, voxels: tifffile.imwrite(
            path, np.stack([voxels, voxels[::-1]], 1), imagej=True, metadata={"axes": "ZCYX"}
        ),
        "channel 1 differs",
    ),
    "four axes": (
        lambda path, voxels: tifffile.imwrite(path, np.stack([voxels, voxels]), imagej=True, metadata={"axes": "TZYX"}),
        "axes TZYX",
    ),
    "palette": (
        lambda path, voxels: tifffile.imwrite(
            path, voxels.astype(np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
        ),
        "palette",
    ),
    "white is zero": (by_tifffile(photometric="miniswhite"), "MINISWHITE"),
    "float64": (lambda path, voxels: tifffile.imwrite(path, voxels.astype(np.float64)), "float64"),
    "uint32": (lambda path, voxels: tifffile.imwrite(path, voxels.astype(np.uint32)), "uint32"),
    "two stacks": (
        lambda path, voxels: [tifffile.imwrite(path, part, append=True) for part in (voxels, voxels[:, :9])],
        "2 images",
    ),
    "constant": (lambda path, voxels: tifffile.imwrite(path, np.full_like(voxels, 9)), "no contrast"),
    "all zero": (lambda path, voxels: tifffile.imwrite(path, np.zeros_like(voxels)), "nothing but 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    write, words = BAD[name]
    path = tmp_path / "dry.tif"
    write(path, voxels_of())
    with pytest.raises(VolumeError, match=words) as refusal:
        open_volume(spec_of(path))
    assert str(path) in str(refusal.value)
    assert refusal.value.exit_code == 3


def test_shape_is_compared_with_the_declared_one(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.tif", voxels_of(), None)
    with pytest.raises(VolumeError, match="declared 9 x 12 x 10, the file holds 8 x 12 x 10"):
        open_volume(spec_of(tmp_path / "a.tif", shape=(9, 12, 10)))


def test_a_warning_of_the_reader_refuses_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack(tmp_path / "a.tif", voxels_of(), None)
    check = data.volumes._only_series

    def warn(*arguments: object) -> object:
        logging.getLogger("tifffile").warning("a tag is strange")
        return check(*arguments)

    monkeypatch.setattr(data.volumes, "_only_series", warn)
    with pytest.raises(VolumeError, match="a tag is strange"):
        open_volume(spec_of(tmp_path / "a.tif"))
    assert not logging.getLogger("tifffile").handlers


def test_decoding_stays_inside_the_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "zlib.tif", voxels_of(), compression="zlib")
    write_stack(tmp_path / "plain.tif", voxels_of(), None)
    monkeypatch.setattr(data.volumes, "memory_budget_bytes", lambda: voxels_of().nbytes - 1)
    with pytest.raises(VolumeError, match="GiB"):
        open_volume(spec_of(tmp_path / "zlib.tif"))
    assert open_volume(spec_of(tmp_path / "plain.tif")).shape == SHAPE
    monkeypatch.setattr(data.volumes, "memory_budget_bytes", lambda: voxels_of().nbytes)
    assert open_volume(spec_of(tmp_path / "zlib.tif")).shape == SHAPE


WHOLE_FILES: dict[str, bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("whole") / "a.tif"
    for name, (dtype, write, _) in GOOD.items():
        path.unlink(missing_ok=True)
        write(path, voxels_of(dtype))
        WHOLE_FILES[name] = path.read_bytes()


@settings(deadline=None, max_examples=300)
@given(name=st.sampled_from(sorted(GOOD)), share=st.floats(0, 1), back=st.integers(0, 40), from_end=st.booleans())
def test_a_tif_cut_anywhere_is_identical_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, share: float, back: int, from_end: bool
) -> None:
    whole = WHOLE_FILES[name]
    path = tmp_path_factory.getbasetemp() / "cut.tif"
    path.unlink(missing_ok=True)
    path.write_bytes(whole[: max(0, len(whole) - back)] if from_end else whole[: int(len(whole) * share)])
    try:
        volume = open_volume(spec_of(path))
    except VolumeError:
        return
    np.testing.assert_array_equal(volume.voxels, voxels_of(GOOD[name][0]))


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


def test_opening_and_reading_leave_the_file_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_stack(path, voxels_of(), None)
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    open_volume(spec_of(path)).content_hash()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_content_hash_depends_on_shape_dtype_and_every_voxel(tmp_path: Path) -> None:
    voxels = voxels_of()
    changed = voxels.copy()
    changed[-1, -1, -1] += 1
    hashes = set()
    for index, variant in enumerate((voxels, changed, voxels.reshape(8, 10, 12), voxels.view(np.int16))):
        write_stack(tmp_path / f"{index}.tif", variant, None)
        hashes.add(open_volume(spec_of(tmp_path / f"{index}.tif")).content_hash())
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("unit", "spacing", "resolution", "expected"),
    [
        ("mm", 0.025, (50, 40), (25.0, 25.0, 20.0)),
        ("um", 20.2, (1 / 40, 1 / 30), (20.2, 30.0, 40.0)),
        ("micron", 20.0, (1 / 40, 1 / 40), (20.0, 40.0, 40.0)),
        ("\\u00B5m", 20.0, (1 / 40, 1 / 40), (20.0, 40.0, 40.0)),
        ("pixel", 1.0, (1, 1), None),
        ("um", 0.0, (1 / 40, 1 / 40), None),
    ],
)
def test_voxel_size_is_read_from_imagej_metadata(
    unit: str, spacing: float, resolution: tuple[float, float], expected: tuple[float, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "unit": unit, "spacing": spacing}
    tifffile.imwrite(path, voxels_of(), imagej=True, resolution=resolution, metadata=metadata)
    size = open_volume(spec_of(path)).voxel_size_um
    assert size == (None if expected is None else pytest.approx(expected, rel=1e-9))
    assert open_volume(spec_of(path, voxel_size_um=(1.0, 2.0, 3.0))).voxel_size_um == (1.0, 2.0, 3.0)


def test_voxel_size_is_unknown_where_only_a_screen_resolution_is_given(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", voxels_of(), resolution=(72, 72), resolutionunit="inch")
    assert open_volume(spec_of(tmp_path / "a.tif")).voxel_size_um is None


def test_window_leaves_out_nan_and_padding(tmp_path: Path) -> None:
    voxels = np.zeros((16, 24, 20), np.float32)
    voxels[4:12] = np.linspace(5.0, 6.0, 8 * 24 * 20).reshape(8, 24, 20)
    voxels[10:, :6] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", voxels)
    low, high = open_volume(spec_of(tmp_path / "a.tif")).window
    valid = voxels[::2, ::2, ::2]
    valid = valid[~np.isnan(valid) & (valid != 0)]
    assert (low, high) == pytest.approx(tuple(np.percentile(valid, [0.5, 99.5])))
    assert 5.0 < low < 5.02


def test_zero_is_a_grey_value_where_dtypes_are_signed_and_uint8_keeps_its_range(tmp_path: Path) -> None:
    signed = np.zeros(SHAPE, np.int16)
    signed[:4] = 100
    tifffile.imwrite(tmp_path / "signed.tif", signed)
    assert open_volume(spec_of(tmp_path / "signed.tif")).window == (0.0, 100.0)
    tifffile.imwrite(tmp_path / "bytes.tif", voxels_of("uint8") // 2)
    assert open_volume(spec_of(tmp_path / "bytes.tif")).window == (0.0, 255.0)


def test_declared_window_is_kept_and_refused_where_it_holds_no_voxel(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.tif", voxels_of(), None)
    assert open_volume(spec_of(tmp_path / "a.tif", window=(1200.0, 52000.0))).window == (1200.0, 52000.0)
    with pytest.raises(VolumeError, match="holds no grey value"):
        open_volume(spec_of(tmp_path / "a.tif", window=(-1.0, 0.5)))


@settings(deadline=None)
@given(
    plane=hnp.arrays(np.uint16, (5, 7), elements=st.integers(0, 65535)),
    edges=st.lists(st.integers(0, 65535), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_window_inverts_within_half_a_grey_level(plane: np.ndarray, edges: list[int]) -> None:
    low, high = edges
    unit, clipped = window_to_unit(plane, low=low, high=high)
    assert unit.dtype == np.float32
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert clipped == np.count_nonzero((plane < low) | (plane > high))
    back = unit_to_native(unit, low=low, high=high, dtype=np.uint16)
    np.testing.assert_array_equal(back, np.clip(plane, low, high))
    eight_bits = np.rint(unit * 255) / 255
    error = np.abs(unit_to_native(eight_bits, low=low, high=high, dtype=np.float32) - np.clip(plane, low, high))
    assert error.max() <= 0.5 * (high - low) / 255 + 0.01


def test_a_16_bit_ramp_keeps_its_order_and_its_levels() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    unit, clipped = window_to_unit(ramp, low=0, high=65535)
    assert clipped == 0
    assert np.all(np.diff(unit.ravel()) > 0)
    assert np.unique(np.rint(unit * 255)).size >= 250


def test_nan_is_counted_and_leaves_no_nan() -> None:
    unit, clipped = window_to_unit(np.array([[np.nan, np.inf, 0.5, -1.0]], np.float32), low=0, high=1)
    np.testing.assert_array_equal(unit, [[0, 1, 0.5, 0]])
    assert clipped == 3


def test_native_values_are_clipped_to_the_dtype() -> None:
    unit = np.array([-1.0, 0.0, 1.0, 9.0])
    np.testing.assert_array_equal(unit_to_native(unit, low=10, high=250, dtype=np.uint8), [0, 10, 250, 255])
    np.testing.assert_array_equal(unit_to_native(unit, low=-5, high=5, dtype="int16"), [-15, -5, 5, 85])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)])
def test_an_empty_window_is_refused(low: float, high: float) -> None:
    with pytest.raises(VolumeError, match="low < high"):
        window_to_unit(np.zeros((2, 2)), low=low, high=high)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_written_stack_reads_back_with_its_voxel_size(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "slices.tif"
    write_stack(path, voxels_of(dtype), (20.2, 40.0, 47.0))
    volume = open_volume(spec_of(path))
    np.testing.assert_array_equal(volume.voxels, voxels_of(dtype))
    assert volume.voxel_size_um == (20.2, 40.0, 47.0)
    assert [file.name for file in path.parent.iterdir()] == ["slices.tif"]


def test_three_slices_are_written_as_three_slices_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "slices.tif"
    write_stack(path, voxels_of("uint8")[:3], None)
    before = path.read_bytes()
    assert open_volume(spec_of(path)).shape == (3, 12, 10)
    with pytest.raises(OutputError, match="exists"):
        write_stack(path, voxels_of("uint8"), None)
    assert path.read_bytes() == before


def test_specs_have_defaults_and_need_no_file(tmp_path: Path) -> None:
    specs = read_volume_specs(tmp_path)
    assert {state: spec.path.name for state, spec in specs.items()} == {
        "dry": "dry.tif",
        "compacted": "dry_compacted.tif",
        "injected": "injected.tif",
    }
    assert specs["dry"] == VolumeSpec("dry", tmp_path / "dry.tif", MAP)
    with pytest.raises(VolumeError, match=r"missing.*no tif"):
        open_volume(specs["dry"])


def test_volumes_yaml_overrides_only_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "volumes.yaml").write_text(
        "dry: {file: scans/scan7.tif, planes: {thickness: 0, warp: 2, weft: 1}, voxel_size_um: [40, 40.5, 41],\n"
        "      window: [1200, 52000], shape: [359, 702, 970]}\n"
        "injected:\n"
    )
    specs = read_volume_specs(tmp_path)
    assert specs["dry"] == VolumeSpec(
        "dry",
        tmp_path / "scans/scan7.tif",
        {"thickness": 0, "warp": 2, "weft": 1},
        (40.0, 40.5, 41.0),
        (1200.0, 52000.0),
        (359, 702, 970),
    )
    assert specs["injected"] == VolumeSpec("injected", tmp_path / "injected.tif", MAP)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dyr: {}", "'dyr' is not a state. Did you mean dry"),
        ("dry: {plane: {}}", "dry.plane is not a key. Did you mean planes"),
        ("dry: {planes: {thickness: 0, warp: 1, wefft: 2}}", "Did you mean weft"),
        ("dry: {planes: {thickness: 0, warp: 1}}", "each of thickness, warp and weft"),
        ("dry: {planes: {thickness: 0, warp: 1, weft: 1}}", "each of thickness, warp and weft"),
        ("dry: {planes: {thickness: 0, warp: 1, weft: 3}}", "less than or equal to 2"),
        ("dry: {window: [5, 5]}", "low < high"),
        ("dry: {window: [.nan, 5]}", "finite"),
        ("dry: {window: 5}", "dry.window: found 5"),
        ("dry: {voxel_size_um: [40, 40, 0]}", "greater than 0"),
        ("dry: {voxel_size_um: [40, 40]}", "voxel_size_um"),
        ("dry: {voxel_size_um: [40, 40, true]}", "valid number"),
        ("dry: {shape: [359, 702, 970.5]}", "valid integer"),
        ("dry: {shape: [359, -702, 970]}", "greater than 0"),
        ("dry: {file: ../scan.tif}", "inside the data root"),
        ("dry: {file: /scans/scan.tif}", "inside the data root"),
        ("dry: {file: 'C:\\scan.tif'}", "inside the data root"),
        ("dry: {file: 7}", "valid string"),
        ("dry: {file: ''}", "at least 1"),
        ("dry: scan.tif", "expected a mapping"),
        ("[dry, injected]", "expected one mapping"),
        ("dry: {file: a.tif}\ninjected: {file: a.tif}", "injected and dry are both read from a.tif"),
        ("dry: {file: injected.tif}", "injected and dry are both read from injected.tif"),
        ("dry: {file: [", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_volumes_yaml_are_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "volumes.yaml").write_text(text)
    with pytest.raises(SettingsError) as refusal:
        read_volume_specs(tmp_path)
    assert words in str(refusal.value)
    assert str(tmp_path / "volumes.yaml") in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_all_mistakes_in_volumes_yaml_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "volumes.yaml").write_text(
        "dyr: {}\ndry: {window: [9, 1], shape: [1, 2], files: x}\ninjected: {voxel_size_um: [0, 1, 1]}"
    )
    with pytest.raises(SettingsError) as refusal:
        read_volume_specs(tmp_path)
    assert len(refusal.value.problems) == 5


def test_a_data_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="is not a folder"):
        read_volume_specs(tmp_path / "nowhere")
