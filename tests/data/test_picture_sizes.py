"""A picture whose file asks for more work than its size does is refused before the work is done."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import data.images
from data.errors import DataError
from data.images import decode_image, read_image, read_picture
from data.picture_sizes import MOST_SCANS, ROOM_BYTES, declared_size

SHAPE = (40, 56)
RGB = np.random.default_rng(3).integers(0, 256, (*SHAPE, 3), np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(data: list[bytes], *, side: int = 4, depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    body = b"".join(chunk(b"IDAT", part) for part in data)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + body + chunk(b"IEND", b"")


def grown(num_mib: int) -> bytes:
    """A stream of a few kilobytes that becomes a number of MiB."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(num_mib)) + packer.flush()


FORMATS: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encoded("PNG"),
    "JPEG": lambda: encoded("JPEG"),
    "progressive JPEG": lambda: encoded("JPEG", progressive=True, exif=b"Exif\0\0" + bytes(3000)),
    "BMP": lambda: encoded("BMP"),
    "WebP": lambda: encoded("WEBP"),
    "lossless WebP": lambda: encoded("WEBP", lossless=True),
    "WebP with EXIF": lambda: encoded("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "JPEG 2000": lambda: imagecodecs.jpeg2k_encode(RGB),
    "bare JPEG 2000": lambda: imagecodecs.jpeg2k_encode(RGB, codecformat="J2K"),
    "LERC": lambda: imagecodecs.lerc_encode(RGB[..., 0]),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_size_is_that_of_the_header(kind: str) -> None:
    assert declared_size(FORMATS[kind]()) == SHAPE


def test_what_has_no_such_header_has_no_size() -> None:
    for content in (
        b"",
        b"BM",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"text",
        b"\xff\xd8" * 90,
    ):
        assert declared_size(content) is None


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a PNG with many bytes of pixels": (
        lambda: png([np.random.default_rng(1).bytes(1 << 20)]),
        "holds 1,048,576 bytes of compressed pixels, its size asks for 52",
    ),
    "a PNG with many chunks": (lambda: png([b""] * 100_001), "more than 100,000 chunks"),
    "a PNG of 16 bits that grows": (lambda: png([grown(200)], depth=16), "bytes"),
    "a PNG with transparent grey that grows": (
        lambda: png([grown(200)], colour=0, more=chunk(b"tRNS", b"\0\x07")),
        "bytes",
    ),
    "a JPEG of many scans": (
        lambda: encoded("JPEG").replace(b"\xff\xda", b"\xff\xda\xff\xda" * MOST_SCANS, 1),
        "scans, expected at most",
    ),
    "a tif that holds a JPEG 2000": (
        lambda: _tif(RGB.astype(np.uint16), photometric="rgb", compression="jpeg2000"),
        "is compressed as JPEG_2000|is compressed as JPEG2000|is compressed as APERIO",
    ),
}


def _tif(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_words(kind: str) -> None:
    make, words = BOMBS[kind]
    with pytest.raises(DataError, match=words):
        decode_image(make(), kind)


def test_a_bomb_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 x 4 px in 500 MB, most of them a hole in the file."""
    path = tmp_path / "a.png"
    path.write_bytes(png([b""]))
    with path.open("r+b") as file:
        file.truncate(500_000_000)
    monkeypatch.setattr(data.images, "read_content", lambda _: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"has 500,000,000 bytes for 4 x 4 px, expected at most"):
        read_picture(path)


def test_a_large_description_beside_a_picture_is_no_bomb(tmp_path: Path) -> None:
    text = chunk(b"tEXt", b"Comment\0" + b"x" * (1 << 20))
    whole = zlib.compress(b"".join(b"\0" + bytes(12) for _ in range(4)))
    (tmp_path / "a.png").write_bytes(png([whole], more=text))
    assert ROOM_BYTES > 1 << 20
    assert read_image(tmp_path / "a.png").shape == (4, 4, 3)
