"""The size that the bytes of a picture declare, from its header alone, and how many bytes such a picture may take.

A file of a few pixels can hold hundreds of megabytes, or a stream that grows to them: both are refused before the work.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

ROOM_BYTES = 64 << 20  # beside the pixels: profiles, descriptions, previews
_BYTES_PER_PIXEL = 16  # twice what four channels of 16 bits take; no encoder needs more
_HEAD_BYTES = 1 << 20  # in which a file says its size
_MOST_CHUNKS = 100_000
MOST_SCANS = 100  # of a JPEG: each goes over all pixels, an encoder writes some ten
_PNG, _WEBP, _LERC = b"\x89PNG\r\n\x1a\n", b"RIFF", b"Lerc2 "
_J2K = b"\xff\x4f\xff\x51"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def declared_size(content: bytes) -> tuple[int, int] | None:
    """Return the (rows, columns) that a PNG, JPEG, BMP, WebP, JPEG 2000 or LERC declares; None for anything else."""
    try:
        if content.startswith(_PNG):
            columns, rows = struct.unpack_from(">II", content, 16)
        elif content.startswith(b"BM"):
            columns, rows = struct.unpack_from("<ii", content, 18)
        elif content.startswith(b"\xff\xd8"):
            return _jpeg_size(content)
        elif content.startswith(_WEBP) and content[8:12] == b"WEBP":
            return _webp_size(content)
        elif content.startswith(_LERC):
            version = struct.unpack_from("<i", content, len(_LERC))[0]
            rows, columns = struct.unpack_from("<ii", content, len(_LERC) + (8 if version >= 3 else 4))
        elif (place := content[:4096].find(_J2K)) >= 0:
            right, bottom, left, top = struct.unpack_from(">IIII", content, place + 8)
            columns, rows = right - left, bottom - top
        else:
            return None
    except struct.error:
        return None
    return abs(rows), abs(columns)  # a BMP whose rows stand from top to bottom has a negative number of them


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(content):
        if content[place] != 0xFF:
            return None
        marker = content[place + 1]
        if marker == 0xFF:  # filled up
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            rows, columns = struct.unpack_from(">HH", content, place + 5)
            return rows, columns
        else:
            place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    return None


def _webp_size(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[place : place + 3], "little") for place in (24, 27))
        return height + 1, width + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", content, 26)
    return height & 0x3FFF, width & 0x3FFF


def most_bytes(size: tuple[int, int] | None, most_pixels: int) -> int:
    """Return how many bytes a file of a picture may have. size: (rows, columns), None for as many as are allowed."""
    rows, columns = size or (1, most_pixels)
    return min(rows * columns, most_pixels) * _BYTES_PER_PIXEL + ROOM_BYTES


def file_problem(path: Path, num_bytes: int, most_pixels: int) -> str | None:
    """Return why a file is too large to be read for the picture that it holds; None for one that may be read."""
    if num_bytes <= ROOM_BYTES:
        return None
    with path.open("rb") as file:
        size = declared_size(file.read(_HEAD_BYTES))
    return size_problem(size, num_bytes, most_pixels)


def size_problem(size: tuple[int, int] | None, num_bytes: int, most_pixels: int) -> str | None:
    """Return why a number of bytes is too much for a picture of a size; None where it is not."""
    most = most_bytes(size, most_pixels)
    if num_bytes <= most:
        return None
    what = "a picture" if size is None else f"{size[0]:,} x {size[1]:,} px"
    return f"has {num_bytes:,} bytes for {what}, expected at most {most:,}. Save it anew."


def stream_problem(content: bytes) -> str | None:
    """Return why the compressed data of a PNG or JPEG ask for more work than its size does; None where they do not.

    A file that is damaged or of another format is left to its decoder.
    """
    if content.startswith(b"\xff\xd8"):
        num_scans = content.count(b"\xff\xda")
        if num_scans > MOST_SCANS:
            return f"is a JPEG of {num_scans:,} scans, expected at most {MOST_SCANS}. Save it anew."
    if not content.startswith(_PNG):
        return None
    parts, num_chunks = _png_data(content)
    if num_chunks > _MOST_CHUNKS:
        return f"is a PNG of more than {_MOST_CHUNKS:,} chunks. Save it anew."
    held, needed = sum(map(len, parts)), _png_bytes(content)
    if needed is not None and held > 2 * needed + (64 << 10):
        return (
            f"holds {held:,} bytes of compressed pixels, its size asks for {needed:,} before compression. Save it anew."
        )
    return None


def inflated_problem(content: bytes) -> str | None:
    """Return how a PNG's pixels grow beyond its size when they are decompressed; None where they do not.

    For a decoder that goes on to the end of the data (libpng); Pillow stops where the picture is full.
    """
    needed = _png_bytes(content)
    if needed is None:
        return None
    stream, left, parts = zlib.decompressobj(), needed, _png_data(content)[0]
    part: bytes | memoryview
    try:
        for part in parts:
            while part and left >= 0 and not stream.eof:
                left -= len(stream.decompress(part, max(1, min(left + 1, 1 << 20))))
                part = stream.unconsumed_tail
    except zlib.error:
        return None  # told by the decoder
    return None if left >= 0 else f"its pixels grow beyond the {needed:,} bytes that its size asks for. Save it anew."


def _png_data(content: bytes) -> tuple[list[memoryview], int]:
    """Return the parts of a PNG's compressed pixels, and how many chunks were walked over."""
    view, place, parts, num_chunks = memoryview(content), len(_PNG), [], 0
    while place + 12 <= len(content) and num_chunks <= _MOST_CHUNKS:
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT":
            parts.append(view[place + 8 : place + 8 + length])
        if kind == b"IEND":
            break
        place, num_chunks = place + 12 + length, num_chunks + 1
    return parts, num_chunks


def _png_bytes(content: bytes) -> int | None:
    """Return how many bytes the pixels of a PNG take before compression, at most; None for a header that is none."""
    if len(content) < 33 or not re.match(rb"....IHDR", content[8:16], re.DOTALL):
        return None
    columns, rows, depth, colour = struct.unpack_from(">IIBB", content, 16)
    bits = columns * depth * _PNG_CHANNELS.get(colour, 4)
    needed = rows * (1 + (bits + 7) // 8)
    return 2 * needed + 64 if content[28] else needed  # interlaced: seven smaller pictures
