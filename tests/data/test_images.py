from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

import data.images
from data.errors import DataError
from data.images import decode_image, read_image, resized, resized_shape

RNG = np.random.default_rng(3)
ROWS, COLUMNS = 6, 10
GREY = RNG.integers(0, 256, (ROWS, COLUMNS), np.uint8)
RGB = RNG.integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (ROWS, COLUMNS), np.uint8)
GREY_16 = RNG.integers(0, 65536, (ROWS, COLUMNS), np.uint16)
RGB_16 = RNG.integers(0, 65536, (ROWS, COLUMNS, 3), np.uint16)
ALPHA_16 = RNG.integers(0, 65536, (ROWS, COLUMNS), np.uint16)
ORIENTATION = ExifTags.Base.Orientation


def smooth(channels: int) -> np.ndarray:
    """A ramp of even brightness, which lossy formats keep to a grey level or three: uint8 (48, 64, channels)."""
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([np.clip(60 + (k + 1) * rows + columns, 0, 255) for k in range(channels)], -1).astype(np.uint8)


def pil(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tif(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png(depth: int, rows: bytes, shape: tuple[int, int], transparent: int | None = None) -> bytes:
    """A grey PNG put together by hand: a filter byte and packed levels for each row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, 0, 0, 0, 0)
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def on(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Colours (row, column[, 3]) in [0, 1] seen on a background, by the definition."""
    colour = np.broadcast_to(colour if colour.ndim == 3 else colour[..., None], (*colour.shape[:2], 3))
    return alpha[..., None] * colour + (1 - alpha[..., None]) * (np.array(background) / 255)


def grey(levels: np.ndarray, top: int) -> np.ndarray:
    return np.repeat(levels[..., None].astype(np.float64) / top, 3, axis=2)


PALETTE = Image.fromarray(GREY // 64, "P")
PALETTE.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
PALETTE_RGB = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]])[GREY // 64] / 255
WHITE = (255, 255, 255)
RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))
CMYK = smooth(4)
CMYK_RGB = (255.0 - CMYK[..., :3]) / 255 * (255.0 - CMYK[..., 3:]) / 255
MULTIPLIED = np.rint(RGB_16 * (ALPHA_16[..., None] / 65535)).astype(np.uint16)
TWO_BIT = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
TWO_BIT_PNG = png(2, b"\0\x1b\0\xe4", (2, 4), transparent=2)

GOOD: dict[str, tuple[bytes, np.ndarray, float]] = {  # bytes, expected pixels, tolerance in levels of 255
    "PNG RGB": (pil(Image.fromarray(RGB), "PNG"), RGB / 255, 0),
    "PNG grey": (pil(Image.fromarray(GREY), "PNG"), grey(GREY, 255), 0),
    "PNG palette": (pil(PALETTE, "PNG"), PALETTE_RGB, 0),
    "PNG palette, one colour transparent": (
        pil(PALETTE, "PNG", transparency=1),
        on(PALETTE_RGB, np.where(GREY // 64 == 1, 0.0, 1.0), WHITE),
        0,
    ),
    "PNG 1 bit": (pil(Image.fromarray(GREY > 99), "PNG"), grey(GREY > 99, 1), 0),
    "PNG 2 bit, one level transparent": (TWO_BIT_PNG, on(TWO_BIT / 3, (TWO_BIT != 2) * 1.0, WHITE), 0),
    "PNG RGB, one colour transparent": (
        pil(Image.fromarray(RGB), "PNG", transparency=tuple(int(v) for v in RGB[2, 3])),
        on(RGB / 255, np.where((RGB[2, 3] == RGB).all(-1), 0.0, 1.0), WHITE),
        0,
    ),
    "PNG grey and alpha": (
        pil(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"),
        on(GREY / 255, ALPHA / 255, WHITE),
        0,
    ),
    "PNG RGBA": (pil(RGBA, "PNG"), on(RGB / 255, ALPHA / 255, WHITE), 0),
    "PNG 16 bit grey": (pil(Image.fromarray(GREY_16), "PNG"), grey(GREY_16, 65535), 0),
    "PNG 16 bit grey, one level transparent": (
        png(16, b"".join(b"\0" + row.astype(">u2").tobytes() for row in GREY_16), (ROWS, COLUMNS), int(GREY_16[1, 2])),
        on(GREY_16 / 65535, np.where(GREY_16[1, 2] == GREY_16, 0.0, 1.0), WHITE),
        0,
    ),
    "PNG 16 bit grey and alpha": (
        imagecodecs.png_encode(np.dstack([GREY_16, ALPHA_16])),
        on(GREY_16 / 65535, ALPHA_16 / 65535, WHITE),
        0,
    ),
    "PNG 16 bit RGB": (imagecodecs.png_encode(RGB_16), RGB_16 / 65535, 0),
    "PNG 16 bit RGBA": (
        imagecodecs.png_encode(np.dstack([RGB_16, ALPHA_16])),
        on(RGB_16 / 65535, ALPHA_16 / 65535, WHITE),
        0,
    ),
    "JPEG RGB": (pil(Image.fromarray(smooth(3)), "JPEG", quality=100, subsampling=0), smooth(3) / 255, 4),
    "JPEG grey": (pil(Image.fromarray(smooth(1)[..., 0]), "JPEG", quality=100), grey(smooth(1)[..., 0], 255), 2),
    "JPEG progressive": (pil(Image.fromarray(smooth(3)), "JPEG", quality=100, progressive=True), smooth(3) / 255, 6),
    "JPEG CMYK": (pil(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=100), CMYK_RGB, 4),
    "JPEG with a second picture": (
        pil(
            Image.fromarray(smooth(3)),
            "MPO",
            save_all=True,
            append_images=[Image.fromarray(255 - smooth(3))],
            quality=100,
            subsampling=0,
        ),
        smooth(3) / 255,
        4,
    ),
    "WebP RGB": (pil(Image.fromarray(RGB), "WEBP", lossless=True), RGB / 255, 0),
    "WebP RGBA": (pil(RGBA, "WEBP", lossless=True, exact=True), on(RGB / 255, ALPHA / 255, WHITE), 0),
    "BMP RGB": (pil(Image.fromarray(RGB), "BMP"), RGB / 255, 0),
    "BMP palette": (pil(PALETTE, "BMP"), PALETTE_RGB, 0),
    "tif RGB": (tif(RGB, photometric="rgb"), RGB / 255, 0),
    "tif RGB, planes apart, big-endian": (
        tif(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate", byteorder=">"),
        RGB / 255,
        0,
    ),
    "tif grey, zlib": (tif(GREY, compression="zlib"), grey(GREY, 255), 0),
    "tif grey, LZW": (tif(GREY, compression="lzw"), grey(GREY, 255), 0),
    "tif white is zero": (tif(GREY, photometric="miniswhite"), grey(255 - GREY, 255), 0),
    "tif 1 bit": (pil(Image.fromarray(GREY > 99), "TIFF", compression="group4"), grey(GREY > 99, 1), 0),
    "tif CMYK": (tif(CMYK, photometric="separated"), CMYK_RGB, 1),
    "tif 16 bit grey": (tif(GREY_16), grey(GREY_16, 65535), 0),
    "tif 16 bit grey, big-endian, LZW": (tif(GREY_16, byteorder=">", compression="lzw"), grey(GREY_16, 65535), 0),
    "tif 16 bit white is zero": (tif(GREY_16, photometric="miniswhite"), grey(65535 - GREY_16, 65535), 0),
    "tif 16 bit RGB": (tif(RGB_16, photometric="rgb"), RGB_16 / 65535, 0),
    "tif 16 bit RGB, planes apart": (
        tif(np.moveaxis(RGB_16, -1, 0), photometric="rgb", planarconfig="separate"),
        RGB_16 / 65535,
        0,
    ),
    "tif 16 bit RGBA": (
        tif(np.dstack([RGB_16, ALPHA_16]), photometric="rgb", extrasamples=["unassalpha"]),
        on(RGB_16 / 65535, ALPHA_16 / 65535, WHITE),
        0,
    ),
    "tif 16 bit RGB multiplied by alpha": (
        tif(np.dstack([MULTIPLIED, ALPHA_16]), photometric="rgb", extrasamples=["assocalpha"]),
        on(RGB_16 / 65535, ALPHA_16 / 65535, WHITE),
        0.01,
    ),
    "BigTIFF": (tif(RGB, photometric="rgb", bigtiff=True), RGB / 255, 0),
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_that_were_written(tmp_path: Path, name: str) -> None:
    content, expected, tolerance = GOOD[name]
    path = tmp_path / "picture.bin"  # the content says what it is, not the name
    path.write_bytes(content)
    pixels = read_image(path)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert pixels.shape == expected.shape
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=tolerance / 255 + 2e-7)


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (200, 30, 99)])
def test_transparent_pixels_lie_on_the_background(background: tuple[int, int, int]) -> None:
    for content, levels in ((pil(RGBA, "PNG"), RGB / 255), (pil(RGBA.convert("LA"), "PNG"), None)):
        pixels = decode_image(content, "a.png", background)
        if levels is None:
            levels = np.asarray(RGBA.convert("LA"))[..., 0] / 255
        np.testing.assert_allclose(pixels, on(levels, ALPHA / 255, background), rtol=0, atol=2e-7)
    clear_red = pil(Image.new("RGBA", (2, 2), (200, 0, 0, 0)), "PNG")
    assert (decode_image(clear_red, "a.png", background) == np.float32(background) / 255).all()


def test_a_16_bit_ramp_keeps_all_its_levels() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for content in (pil(Image.fromarray(ramp), "PNG"), tif(ramp)):
        levels = decode_image(content, "ramp")[..., 0].ravel()
        assert (np.diff(levels) > 0).all()
        assert (levels[0], levels[-1]) == (0, 1)


def oriented(kind: str, orientation: int) -> tuple[bytes, np.ndarray, float]:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if kind == "tif 16 bit":
        return tif(GREY_16, extratags=[(274, "H", 1, orientation, True)]), GREY_16 / 65535, 0
    if kind == "PNG 16 bit":
        return pil(Image.fromarray(GREY_16), "PNG", exif=exif), GREY_16 / 65535, 0
    if kind == "JPEG":
        levels = smooth(1)[..., 0]
        return pil(Image.fromarray(levels), kind, exif=exif, quality=100), levels / 255, 2
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    return pil(Image.fromarray(RGB), kind, exif=exif, **options), RGB[..., 0] / 255, 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "PNG 16 bit", "tif 16 bit"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    content, stored, tolerance = oriented(kind, orientation)
    reference = Image.fromarray(stored.astype(np.float32))
    reference.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(reference))
    found = decode_image(content, "a")[..., 0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance / 255 + 2e-7)


def film(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return pil(frames[0], kind, save_all=True, append_images=frames[1:])


def huge_png() -> bytes:
    return png(8, b"", (20_000, 20_000))


def huge_tif() -> bytes:
    """A tif of a few bytes that promises 60,000 x 60,000 pixels."""
    content = bytearray(tif(np.zeros((4, 4), np.uint16), metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
        offsets = [file.pages.first.tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for offset in offsets:
        content[offset : offset + 2] = struct.pack("<H", 60_000)
    return bytes(content)


JPEG = GOOD["JPEG RGB"][0]
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"not an image at all", "no image of the formats JPEG"),
    "HTML named as an image": (b"<!DOCTYPE html><html></html>", "no image of the formats"),
    "GIF": (pil(PALETTE, "GIF"), "no image of the formats"),
    "PDF": (pil(Image.fromarray(RGB), "PDF"), "no image of the formats"),
    "JPEG cut short": (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    "JPEG start only": (JPEG[:20], "no image of the formats|cannot be decoded"),
    "PNG cut short": (GOOD["PNG RGB"][0][:100], "cannot be decoded"),
    "PNG 16 bit cut short": (GOOD["PNG 16 bit grey"][0][:100], "cannot be decoded"),
    "PNG without pixels": (GOOD["PNG RGB"][0].replace(b"IDAT", b"IDBT"), "no image of the formats"),
    "PNG wrong header checksum": (GOOD["PNG RGB"][0].replace(b"IHDR\0\0\0\x0a", b"IHDR\0\0\0\x0b"), "no image of the"),
    "WebP cut short": (GOOD["WebP RGB"][0][:100], "cannot be decoded|no image of the formats"),
    "BMP cut short": (GOOD["BMP RGB"][0][:100], "cannot be decoded"),
    "tif cut short": (GOOD["tif RGB"][0][:-30], "not in the file"),
    "tif 16 bit cut short": (GOOD["tif 16 bit grey"][0][:-30], "not in the file"),
    "tif header only": (GOOD["tif RGB"][0][:8], "holds no picture"),
    "animated PNG": (film("PNG"), "holds 3 frames"),
    "animated WebP": (film("WEBP"), "holds 3 frames"),
    "tif of several pages": (tif(np.zeros((3, 16, 16), np.uint8), photometric="minisblack"), "holds 3 pages"),
    "tif float": (tif(RGB.astype(np.float32), photometric="rgb"), "float32, expected 8 bit"),
    "tif signed": (tif(GREY_16.astype(np.int16)), "int16, expected 8 bit"),
    "tif 32 bit": (tif(GREY_16.astype(np.uint32)), "uint32, expected 8 bit"),
    "tif with a channel of no meaning": (
        tif(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["unspecified"]),
        "UNSPECIFIED",
    ),
    "huge PNG": (huge_png(), "pixels allowed|pixels are allowed"),
    "huge tif": (huge_tif(), "60,000 x 60,000 px, at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_with_file_and_reason(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path)
    assert caught.value.where == str(path)
    assert len(caught.value.problems) == 1


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: the file is missing"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="found a folder"):
        read_image(tmp_path)
    with pytest.raises(DataError, match="hub 3: found no bytes"):
        decode_image(b"", "hub 3")


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.images, "MAX_PIXELS", ROWS * COLUMNS - 1)
    for name in ("PNG RGB", "tif RGB", "tif 16 bit grey"):
        with pytest.raises(DataError, match="6 x 10 px, at most 59 pixels"):
            decode_image(GOOD[name][0], "a")
    monkeypatch.setattr(data.images, "MAX_PIXELS", ROWS * COLUMNS)
    assert decode_image(GOOD["PNG RGB"][0], "a").shape == (ROWS, COLUMNS, 3)


@pytest.mark.parametrize(
    "name",
    ["JPEG RGB", "JPEG progressive", "PNG RGB", "PNG 16 bit RGB", "WebP RGB", "BMP RGB", "tif RGB", "tif 16 bit grey"],
)
def test_a_file_cut_anywhere_gives_its_picture_or_an_error(name: str) -> None:
    content, _, _ = GOOD[name]
    whole = decode_image(content, "a")
    refused = 0
    for stop in range(1, len(content), max(1, len(content) // 60)):
        try:
            pixels = decode_image(content[:stop], "a")
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels, whole)
    assert refused > 40


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(
        ["JPEG RGB", "PNG RGB", "PNG 16 bit RGB", "WebP RGB", "BMP RGB", "tif RGB", "tif 16 bit grey"]
    ),
    place=st.integers(0, 399),
    value=st.integers(0, 255),
)
def test_a_damaged_byte_gives_a_picture_or_an_error_of_ours(name: str, place: int, value: int) -> None:
    content = bytearray(GOOD[name][0])
    content[place % len(content)] = value
    try:
        pixels = decode_image(bytes(content), "a")
    except DataError:
        return
    assert pixels.ndim == 3
    assert np.isfinite(pixels).all()
    assert ((pixels >= 0) & (pixels <= 1)).all()


@pytest.mark.parametrize(
    ("shape", "short_side_px", "expected"),
    [
        ((100, 200), 50, (50, 100)),
        ((200, 100), 50, (100, 50)),
        ((100, 101), 10, (10, 10)),
        ((100, 105), 10, (10, 11)),  # half a pixel is rounded up
        ((64, 64), 64, (64, 64)),
        ((3, 7), 9, (9, 21)),
    ],
)
def test_the_short_side_gets_its_size_and_proportions_stay(
    shape: tuple[int, int], short_side_px: int, expected: tuple[int, int]
) -> None:
    assert resized_shape(shape, short_side_px) == expected
    pixels = np.random.default_rng(0).random((*shape, 3), np.float32)
    assert resized(pixels, short_side_px).shape == (*expected, 3)


def test_resizing_keeps_flat_colours_and_the_range() -> None:
    flat = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (40, 60, 3)).copy()
    np.testing.assert_allclose(resized(flat, 16), flat[:16, :24], atol=1e-6)
    assert resized(flat, 40) is flat
    edge = np.zeros((40, 60, 3), np.float32)
    edge[:, 30:] = 1
    for short_side_px in (17, 90):  # Lanczos overshoots at an edge
        pixels = resized(edge, short_side_px)
        assert pixels.dtype == np.float32
        assert (pixels.min(), pixels.max()) == (0, 1)


def test_resizing_removes_what_the_new_size_cannot_hold() -> None:
    """A checkerboard of single pixels becomes its mean; taking every third pixel would keep it."""
    board = (np.indices((90, 90)).sum(axis=0) % 2).astype(np.float32)
    pixels = resized(np.repeat(board[..., None], 3, axis=2), 30)
    np.testing.assert_allclose(pixels[3:-3, 3:-3], 0.5, atol=0.02)


def test_resizing_neither_moves_nor_mixes_channels() -> None:
    """A slow sine of each channel stays where it is, as a function of the place in the image."""
    along = (np.arange(120) + 0.5) / 120
    waves = np.stack([0.5 + 0.4 * np.sin(2 * np.pi * (k + 1) * along) for k in range(3)], axis=-1)
    pixels = np.broadcast_to(waves.astype(np.float32), (120, 120, 3)).copy()
    at = (np.arange(40) + 0.5) / 40
    expected = np.stack([0.5 + 0.4 * np.sin(2 * np.pi * (k + 1) * at) for k in range(3)], axis=-1)
    np.testing.assert_allclose(resized(pixels, 40)[5:-5, 3:-3], np.broadcast_to(expected[3:-3], (30, 34, 3)), atol=5e-3)
