"""Tif files as programs write them, and as damage leaves them, of one small volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from data.tif.stacks import Stack, map_voxels

SHAPE = (8, 12, 10)
# of these the data carry no checksum: a changed byte cannot be told from a grey value
UNGUARDED = {
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.ZSTD,
    tifffile.COMPRESSION.JPEG2000,
}

Writer = Callable[[Path, np.ndarray], object]


def voxels_of(dtype: str = "uint16") -> np.ndarray:
    rng = np.random.default_rng(7)
    if dtype == "float32":
        return rng.normal(0.3, 0.2, SHAPE).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min + 1, limits.max, SHAPE).astype(dtype)


def by_tifffile(**options: Any) -> Writer:
    return lambda path, voxels: tifffile.imwrite(path, voxels, **{"photometric": "minisblack", **options})


def pages_by_tifffile(file_options: dict[str, Any] | None = None, **options: Any) -> Writer:
    def write(path: Path, voxels: np.ndarray) -> None:
        with tifffile.TiffWriter(path, **(file_options or {})) as writer:
            for plane in voxels:
                writer.write(plane, contiguous=False, photometric="minisblack", metadata=None, **options)

    return write


def appended(**options: Any) -> Writer:
    """Write each slice by itself, as an image with a description of its own."""

    def write(path: Path, voxels: np.ndarray) -> None:
        is_big = options.get("bigtiff", False)
        more = {name: value for name, value in options.items() if name != "bigtiff"}
        for number, plane in enumerate(voxels):
            first = {"bigtiff": is_big} if number == 0 else {}
            tifffile.imwrite(path, plane, append=number > 0, photometric="minisblack", **first, **more)

    return write


def by_pillow(**options: Any) -> Writer:
    def write(path: Path, voxels: np.ndarray) -> None:
        first, *others = [Image.fromarray(plane) for plane in voxels]
        first.save(path, save_all=True, append_images=others, **options)

    return write


def expanded(expand: Callable[[np.ndarray], np.ndarray], **options: Any) -> Writer:
    """Write what becomes of the volume under a function: more axes, or channels."""
    return lambda path, voxels: tifffile.imwrite(path, expand(voxels), **options)


def one_header(path: Path, voxels: np.ndarray) -> None:
    """Write as ImageJ does above 4 GB: one page, its description counts the slices that follow its own."""
    tifffile.imwrite(path, voxels[:1], imagej=True, byteorder=">", metadata={"axes": "ZYX", "Labels": ["x" * 40]})
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].dataoffsets[0]
        described = tif.pages[0].tags["ImageDescription"]
    content = bytearray(path.read_bytes()[:start])
    text = f"ImageJ=1.54f\nimages={len(voxels)}\nslices={len(voxels)}\n".encode()
    assert len(text) <= described.count, "the description has room"
    content[described.valueoffset : described.valueoffset + described.count] = text.ljust(described.count, b"\0")
    path.write_bytes(content + voxels.astype(voxels.dtype.newbyteorder(">")).tobytes())


def pyramid(path: Path, voxels: np.ndarray) -> None:
    """Write a stack with a copy of half the size below each page."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(voxels, photometric="minisblack", tile=(16, 16), subifds=1, metadata={"axes": "ZYX"})
        writer.write(voxels[:, ::2, ::2], photometric="minisblack", tile=(16, 16), subfiletype=1)


GOOD: Mapping[str, tuple[str, Writer, bool]] = {  # dtype, writer, memory-mapped
    "default": ("uint16", by_tifffile(), True),
    "no metadata": ("uint16", by_tifffile(metadata=None), True),
    "axes ZYX": ("uint16", by_tifffile(metadata={"axes": "ZYX"}), True),
    "big-endian": ("uint16", by_tifffile(byteorder=">"), True),
    "ImageJ": ("uint16", by_tifffile(imagej=True, metadata={"axes": "ZYX"}), True),
    "ImageJ time axis": ("uint16", by_tifffile(imagej=True, metadata={"axes": "TYX"}), True),
    "ImageJ big-endian": ("uint16", by_tifffile(imagej=True, byteorder=">", metadata={"axes": "ZYX"}), True),
    "ImageJ zlib": ("uint16", by_tifffile(imagej=True, compression="zlib", metadata={"axes": "ZYX"}), False),
    "ImageJ one header": ("uint16", one_header, True),
    "BigTIFF": ("uint16", by_tifffile(bigtiff=True), True),
    "BigTIFF zlib": ("uint16", by_tifffile(bigtiff=True, compression="zlib"), False),
    "BigTIFF page by page": ("uint16", pages_by_tifffile({"bigtiff": True, "byteorder": ">"}), False),
    "OME": ("uint16", by_tifffile(ome=True, metadata={"axes": "ZYX"}), True),
    "OME CZYX": ("uint16", expanded(lambda v: v[None], ome=True, metadata={"axes": "CZYX"}), True),
    "OME TZYX": ("uint16", expanded(lambda v: v[None], ome=True, metadata={"axes": "TZYX"}), True),
    "OME LZW": ("uint16", by_tifffile(ome=True, compression="lzw", metadata={"axes": "ZYX"}), False),
    "one channel": ("uint16", expanded(lambda v: v[None], metadata={"axes": "CZYX"}), True),
    "one time": ("uint16", expanded(lambda v: v[None], metadata={"axes": "TZYX"}), True),
    "zlib": ("uint16", by_tifffile(compression="zlib"), False),
    "zlib with predictor": ("int16", by_tifffile(compression="zlib", predictor=True), False),
    "LZW": ("uint8", by_tifffile(compression="lzw"), False),
    "LZW with predictor": ("uint16", by_tifffile(compression="lzw", predictor=True), False),
    "LZW page by page": ("uint16", pages_by_tifffile(compression="lzw"), False),
    "several strips": ("uint16", by_tifffile(rowsperstrip=5), True),
    "several strips zlib": ("float32", by_tifffile(rowsperstrip=5, compression="zlib", predictor=3), False),
    "tiled": ("uint16", by_tifffile(tile=(16, 16)), False),
    "tiled zlib": ("uint16", by_tifffile(tile=(16, 16), compression="zlib"), False),
    "volume tiles": ("uint16", by_tifffile(tile=(16, 16, 16), compression="zlib", metadata={"axes": "ZYX"}), False),
    "pages written one by one": ("uint16", appended(), False),
    "BigTIFF pages written one by one": ("float32", appended(bigtiff=True), False),
    "zlib pages written one by one": ("uint8", appended(compression="zlib"), False),
    "Zstandard": ("uint16", by_tifffile(compression="zstd"), False),
    "Zstandard with predictor": ("int16", by_tifffile(compression="zstd", predictor=True), False),
    "LZMA": ("uint16", by_tifffile(compression="lzma"), False),
    "PackBits": ("uint8", by_tifffile(compression="packbits"), False),
    "lossless JPEG 2000": ("uint16", by_tifffile(compression="jpeg2000", compressionargs={"level": 0}), False),
    "LERC": ("float32", by_tifffile(compression="lerc"), False),
    "tiled LERC": ("uint16", by_tifffile(tile=(16, 16), compression="lerc"), False),
    "pyramid": ("uint16", pyramid, False),
    "page by page": ("uint16", pages_by_tifffile(), False),
    "Pillow": ("uint8", by_pillow(), False),
    "Pillow 16 bits": ("uint16", by_pillow(), False),
    "Pillow deflate": ("uint8", by_pillow(compression="tiff_adobe_deflate"), False),
    "Pillow LZW": ("uint8", by_pillow(compression="tiff_lzw"), False),
    "uint8": ("uint8", by_tifffile(), True),
    "int16": ("int16", by_tifffile(), True),
    "float32": ("float32", by_tifffile(), True),
    "float32 big-endian": ("float32", by_tifffile(byteorder=">"), True),
    "equal RGB": ("uint8", expanded(lambda v: np.stack([v] * 3, -1), photometric="rgb"), False),
    "equal RGB zlib": (
        "uint16",
        expanded(lambda v: np.stack([v] * 3, -1), photometric="rgb", compression="zlib"),
        False,
    ),
    "equal planar RGB": (
        "uint8",
        expanded(lambda v: np.stack([v] * 3, 1), photometric="rgb", planarconfig="separate"),
        False,
    ),
    "equal channels": (
        "uint16",
        expanded(lambda v: np.stack([v] * 2, 1), imagej=True, metadata={"axes": "ZCYX"}),
        False,
    ),
    "equal channels OME": ("uint16", expanded(lambda v: np.stack([v] * 2), ome=True, metadata={"axes": "CZYX"}), False),
}


def cut(write: Writer, share: float = 0.6) -> Writer:
    """Write a file, then keep a part of its bytes."""

    def write_cut(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write_cut


def rotten(write: Writer, page: int = 4) -> Writer:
    """Write a file, then set a quarter of the bytes of a page to zero."""

    def write_rotten(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        with tifffile.TiffFile(path) as tif:
            start, count = tif.pages[page].dataoffsets[0], tif.pages[page].databytecounts[0]
        content = bytearray(path.read_bytes())
        content[start + count // 4 : start + count // 2] = bytes(count // 2 - count // 4)
        path.write_bytes(content)

    return write_rotten


def with_page(change: Callable[[np.ndarray], np.ndarray], page: int = 5) -> Writer:
    """Write page by page, one of them changed."""

    def write(path: Path, voxels: np.ndarray) -> None:
        with tifffile.TiffWriter(path) as writer:
            for index, plane in enumerate(voxels):
                plane = change(plane) if index == page else plane
                writer.write(plane, contiguous=False, photometric="minisblack", metadata=None)

    return write


def with_mixed_compression(path: Path, voxels: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as writer:
        for index, plane in enumerate(voxels):
            packed = "zlib" if index == 5 else None
            writer.write(plane, contiguous=False, photometric="minisblack", metadata=None, compression=packed)


def with_tag(write: Writer, page: int, tag: str, change: int) -> Writer:
    """Write a file, then add to the one number that a tag of a page holds."""

    def write_changed(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        with tifffile.TiffFile(path) as tif:
            tif.pages.useframes = False
            found = tif.pages[page].tags[tag]
        value = found.value[0] if isinstance(found.value, tuple) else int(found.value)
        content = bytearray(path.read_bytes())
        size = 2 if found.dtype == 3 else 4
        content[found.valueoffset : found.valueoffset + size] = (value + change).to_bytes(size, "little")
        path.write_bytes(content)

    return write_changed


def with_tag_code(write: Writer, page: int, tag: str, code: int) -> Writer:
    """Write a file, then let a tag of a page be another one."""

    def write_changed(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        with tifffile.TiffFile(path) as tif:
            tif.pages.useframes = False
            entry = tif.pages[page].tags[tag].offset
        content = bytearray(path.read_bytes())
        content[entry : entry + 2] = code.to_bytes(2, "little")
        path.write_bytes(content)

    return write_changed


def with_next_page(write: Writer, page: int, target: int | None) -> Writer:
    """Write a file, then let a page be followed by another one than the next, or by none."""

    def write_changed(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        with tifffile.TiffFile(path) as tif:
            tif.pages.useframes = False
            here = tif.pages[page]
            pointer = here.offset + 2 + 12 * len(here.tags)
            offset = 0 if target is None else tif.pages[target].offset
        content = bytearray(path.read_bytes())
        content[pointer : pointer + 4] = offset.to_bytes(4, "little")
        path.write_bytes(content)

    return write_changed


def replaced(write: Writer, old: bytes, new: bytes) -> Writer:
    """Write a file, then replace bytes that occur in it once."""

    def write_replaced(path: Path, voxels: np.ndarray) -> None:
        write(path, voxels)
        content = path.read_bytes()
        assert len(old) == len(new), "nothing moves"
        assert content.count(old) == 1, f"{old!r} occurs {content.count(old)} times"
        path.write_bytes(content.replace(old, new))

    return write_replaced


def _written(write: Writer, path: Path, voxels: np.ndarray) -> bytes:
    write(path, voxels)
    return path.read_bytes()


def bad_first_offset(path: Path, voxels: np.ndarray) -> None:
    tifffile.imwrite(path, voxels)
    damaged = bytearray(path.read_bytes())
    damaged[4:8] = (2**30).to_bytes(4, "little")
    path.write_bytes(damaged)


def ome_in_two_files(path: Path, voxels: np.ndarray) -> None:
    """Write OME-XML that takes the second half of the slices from another file, which exists."""
    half = len(voxels) // 2
    names = (path.name, "second.tif")
    parts = "".join(
        f'<TiffData FirstZ="{number * half}" IFD="0" PlaneCount="{half}">'
        f'<UUID FileName="{name}">urn:uuid:0000000{number}</UUID></TiffData>'
        for number, name in enumerate(names)
    )
    for number, name in enumerate(names):
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:0000000{number}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            f'Type="uint16" SizeX="10" SizeY="12" SizeZ="8" SizeC="1" SizeT="1">{parts}</Pixels></Image></OME>'
        )
        part = voxels[number * half : (number + 1) * half]
        tifffile.imwrite(path.with_name(name), part, description=xml, metadata=None, photometric="minisblack")


_IMAGEJ = by_tifffile(imagej=True, metadata={"axes": "ZYX"})
_OME = by_tifffile(ome=True, metadata={"axes": "ZYX"})
_PAGES = pages_by_tifffile()

BAD: Mapping[str, tuple[Writer, str]] = {  # writer, what the refusal says
    "missing": (lambda _path, _voxels: None, "missing"),
    "empty": (lambda path, _voxels: path.write_bytes(b""), "empty"),
    "text": (lambda path, _voxels: path.write_text("a letter, not a scan\n" * 9), "not a TIFF"),
    "renamed PNG": (lambda path, voxels: Image.fromarray(voxels[0].astype(np.uint8)).save(path, "PNG"), "not a TIFF"),
    "header alone": (lambda path, _voxels: path.write_bytes(b"II*\0\x08\0\0\0"), "damaged"),
    "bad first offset": (bad_first_offset, "damaged"),
    "cut generic": (cut(by_tifffile(metadata=None)), "tifffile warns"),
    "cut ImageJ": (cut(_IMAGEJ), "declares 960 voxels, found 120"),
    "cut ImageJ one header": (cut(one_header), "damaged or incomplete"),
    "cut shaped": (cut(by_tifffile()), "incomplete"),
    "cut BigTIFF": (cut(by_tifffile(bigtiff=True)), "incomplete"),
    "cut OME": (cut(_OME), "incomplete"),
    "cut pages": (cut(_PAGES), "incomplete"),
    "cut zlib": (cut(by_tifffile(compression="zlib")), "incomplete"),
    "cut LZW": (cut(pages_by_tifffile(compression="lzw")), "incomplete"),
    "cut tiled": (cut(by_tifffile(tile=(16, 16))), "incomplete"),
    "cut by one byte": (cut(one_header, 0.9999), "incomplete"),
    "bit rot in zlib": (rotten(by_tifffile(compression="zlib")), "cannot be read"),
    "bit rot in zlib tiles": (rotten(by_tifffile(tile=(16, 16), compression="zlib")), "cannot be read"),
    "bit rot in volume tiles": (
        rotten(by_tifffile(tile=(16, 16, 16), compression="zlib", metadata={"axes": "ZYX"}), page=0),
        "cannot be read",
    ),
    "one page of another height": (with_page(lambda plane: plane[:9]), "page 5 is 9 x 10 uint16, page 0 is 12 x 10"),
    "one page of another type": (with_page(lambda plane: plane.astype(np.uint8)), "page 5 is 12 x 10 uint8"),
    "one page compressed": (with_mixed_compression, "page 5 differs from page 0 in compression"),
    "last page lost": (with_next_page(_PAGES, 6, None), "belong to no page"),
    "middle page skipped": (with_next_page(_PAGES, 3, 5), "belong to no page"),
    "pages in a circle": (with_next_page(_PAGES, 6, 2), "tifffile warns"),
    "OME declares another slice": (replaced(_OME, b'SizeZ="8"', b'SizeZ="9"'), "pages of it are missing|missing"),
    "ImageJ declares another slice": (replaced(_IMAGEJ, b"images=8", b"images=9"), "declares 1,080 voxels, found 960"),
    "OME that says nothing of pixels": (
        lambda path, voxels: path.write_bytes(_written(_OME, path, voxels).replace(b"Pixels", b"Pixelz")),
        "description .ome. that cannot be followed",
    ),
    "ImageJ that is not named": (replaced(_IMAGEJ, b"ImageJ=", b"ImbgeJ="), "description .imagej. that cannot"),
    "OME in two files": (ome_in_two_files, "refers to other files"),
    "page without data": (with_tag(_PAGES, 5, "StripByteCounts", -240), "page 5 hold no data"),
    "page too short": (with_tag(_PAGES, 5, "StripByteCounts", -2), "page 5 holds 238 bytes, expected 240"),
    "page beyond the end": (with_tag(_PAGES, 5, "StripOffsets", 10_000), "reach to byte"),
    "page on top of another": (with_tag(by_tifffile(), 4, "StripOffsets", 240), "on top of another part"),
    "page one byte off": (with_tag(by_pillow(), 5, "StripOffsets", 1), "page 5 begins elsewhere"),
    "tag twice": (with_tag_code(_PAGES, 6, "SamplesPerPixel", 273), "page 6 has the same tag twice"),
    "more rows in each strip": (with_tag(_PAGES, 5, "RowsPerStrip", -6), "rows per strip"),
    "one 2D page": (lambda path, voxels: tifffile.imwrite(path, voxels[0]), "one 2D image"),
    "planar RGB": (
        expanded(lambda v: v[:3].astype(np.uint8), photometric="rgb"),
        "one 2D image",
    ),
    "unequal RGB": (
        expanded(lambda v: np.stack([v, v, v[::-1]], -1).astype(np.uint8), photometric="rgb"),
        "channel 2 differs",
    ),
    "unequal channels": (
        expanded(lambda v: np.stack([v, v[::-1]], 1), imagej=True, metadata={"axes": "ZCYX"}),
        "channel 1 differs",
    ),
    "four axes": (expanded(lambda v: np.stack([v, v]), imagej=True, metadata={"axes": "TZYX"}), "axes TZYX"),
    "images written one by one, of two sizes": (
        lambda path, voxels: [tifffile.imwrite(path, v, append=True) for v in (voxels[0], voxels[1], voxels[2, :9])],
        r"3 images of different sizes or types \(12 x 10 uint16, 9 x 10 uint16\)",
    ),
    "two equal stacks": (
        lambda path, voxels: [tifffile.imwrite(path, voxels, append=True) for _ in range(2)],
        "2 images of QYX each",
    ),
    "cut pages written one by one": (cut(appended()), "tifffile warns|incomplete|belong to no page"),
    "three slices that look like colours": (
        lambda path, voxels: tifffile.imwrite(path, voxels[:3].astype(np.uint8), photometric="rgb"),
        r"one 2D image of 3 channels \(3 x 12 x 10, axes SYX\), .*photometric='minisblack'",
    ),
    "palette": (
        expanded(lambda v: v.astype(np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        "palette",
    ),
    "white is zero": (by_tifffile(photometric="miniswhite"), "MINISWHITE"),
    "float64": (expanded(lambda v: v.astype(np.float64)), "float64"),
    "uint32": (expanded(lambda v: v.astype(np.uint32)), "uint32"),
    "two stacks": (
        lambda path, voxels: [tifffile.imwrite(path, part, append=True) for part in (voxels, voxels[:, :9])],
        "2 images",
    ),
}


def read(stack: Stack) -> np.ndarray:
    """Return all voxels of a stack, mapped or decoded."""
    if stack.offset is not None:
        return np.array(map_voxels(stack.path, stack.offset, stack.dtype, stack.shape))
    return np.stack(list(stack.slices()))


@cache
def whole_file(name: str) -> bytes:
    """Return the content of one of the good files."""
    with TemporaryDirectory() as folder:
        dtype, write, _ = GOOD[name]
        write(Path(folder) / "a.tif", voxels_of(dtype))
        return (Path(folder) / "a.tif").read_bytes()


def compression_at(path: Path, byte: int) -> int | None:
    """Return how the voxels are compressed in which a byte lies; None for a byte that is not of voxels."""
    with tifffile.TiffFile(path) as tif:
        for series in tif.series:
            behind_one_page = len(series.pages) == 1 and series.dataoffset is not None
            for page in series.pages:
                for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                    if start <= byte < start + (series.nbytes if behind_one_page else count):
                        return int(page.compression)
    return None


def assert_harmless(voxels: np.ndarray, truth: np.ndarray, compression: int | None) -> None:
    """Fail where one changed byte did more than a reader can help. compression: of the byte, see `compression_at`."""
    assert (voxels.shape, voxels.dtype.name) == (truth.shape, truth.dtype.name)
    equal = (voxels == truth) | (np.isnan(voxels) if voxels.dtype.kind == "f" else False)
    num_voxels, num_slices = int((voxels != truth).sum()), int((~equal).any(axis=(1, 2)).sum())
    if compression == tifffile.COMPRESSION.NONE:  # one byte is a part of one voxel
        assert num_voxels <= 1
    elif compression in UNGUARDED:  # what follows in the strip is lost
        assert num_slices <= 1
    else:
        assert num_voxels == 0
