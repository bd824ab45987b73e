"""One picture as float pixels, strictly: what cannot be decoded whole, or would lose grey levels, is refused.

Colour profiles are ignored: values count as sRGB, CMYK is turned into RGB without a profile.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image, UnidentifiedImageError

from data.errors import DataError
from data.picture_sizes import declared_size, file_problem, inflated_problem, size_problem, stream_problem

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # where Pillow warns of a decompression bomb; 1 GiB as float32 RGB
WHITE = (255, 255, 255)

# what Pillow, tifffile, libtiff's and libpng's wrappers and the operating system raise on a damaged file
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# of tifs of 16 bits; others hold whole pictures, of any size, inside a page
_COMPRESSIONS = (
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.ZSTD,
    tifffile.COMPRESSION.LZMA,
)
_PNG_DEPTH = 24  # the byte of a PNG that holds its bits per channel
_COPY_AGAIN = "The file is damaged or incomplete: copy it again from its source."


def read_image(path: Path, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Return a picture as float32 (row, column, 3) in [0, 1], upright as its EXIF orientation says.

    JPEG, PNG, WebP, BMP, or TIFF of one page, by its content and not by its name; 8 bits per channel are divided by
    255, 16 bits by 65535. Transparent pixels lie on the background, which is RGB of 0 to 255.
    Raises DataError with the file and the reason for anything else.
    """
    return decode_image(read_picture(path), str(path), background)


def read_picture(path: Path) -> bytes:
    """Return the bytes of the file of a picture.

    Raises DataError for one that is missing, empty, cannot be read, or has more bytes than its size can ask for.
    """
    try:
        problem = file_problem(path, path.stat().st_size, MAX_PIXELS) if path.is_file() else None
    except OSError:
        problem = None  # told when it is read
    if problem is not None:
        raise DataError(str(path), problem)
    return read_content(path)


def read_content(path: Path) -> bytes:
    """Return the bytes of a file. Raises DataError for one that is missing, empty or cannot be read."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            found = "a folder" if path.is_dir() else "a pipe, a device or the like"
            raise DataError(str(path), f"found {found}, expected a file.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(str(path), "the file is missing.") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}.") from error
    if not content:
        raise DataError(str(path), f"the file is empty (0 bytes). {_COPY_AGAIN}")
    return content


def decode_image(content: bytes, where: str, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Return a picture from the bytes of its file; see `read_image`. where: what an error calls the file."""
    if not content:
        raise DataError(where, f"found no bytes, expected an image. {_COPY_AGAIN}")
    problem = size_problem(declared_size(content), len(content), MAX_PIXELS) or stream_problem(content)
    if problem is not None:
        raise DataError(where, problem)
    try:
        if content.startswith(_TIFF_STARTS) and (sixteen_bit := _sixteen_bit_tiff(content, where)) is not None:
            return sixteen_bit.on(background)
        return _decoded(content, where).on(background)
    except UnidentifiedImageError as error:
        raise DataError(
            where, f"is no image of the formats {', '.join(FORMATS)}, or one that is damaged at its start."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(where, f"has more than the {MAX_PIXELS:,} pixels allowed. {_CROP}") from error
    except _READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(where, f"cannot be decoded: {reason}. {_COPY_AGAIN}") from error


def resized(pixels: np.ndarray, short_side_px: int) -> np.ndarray:
    """Return an image whose short side has a number of pixels, with its proportions kept to half a pixel.

    pixels: float32 (row, column, 3) in [0, 1]. Lanczos with three lobes, widened where the image shrinks, so that
    nothing aliases; clipped to [0, 1]. An image that has the size already is given back as it is.
    """
    rows, columns = resized_shape((pixels.shape[0], pixels.shape[1]), short_side_px)
    if (rows, columns) == pixels.shape[:2]:
        return pixels
    channels = [
        np.asarray(Image.fromarray(pixels[..., channel], "F").resize((columns, rows), Image.Resampling.LANCZOS))
        for channel in range(pixels.shape[2])
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


def resized_shape(shape: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """Return the (rows, columns) of an image after `resized`."""
    short = min(shape)
    # whole numbers only: half a pixel rounds up on every machine
    rows, columns = ((2 * size * short_side_px + short) // (2 * short) for size in shape)
    return rows, columns


_CROP = "Crop it, or make it smaller."


class _Picture:
    """Decoded levels, not yet upright and not yet on a background."""

    def __init__(self, levels: np.ndarray, orientation: int) -> None:
        """levels: uint8 or uint16 (row, column[, channels]), channels grey or RGB, with alpha or without."""
        if levels.ndim == 2:
            levels = levels[..., np.newaxis]
        assert levels.shape[2] in (1, 2, 3, 4), f"channels of {levels.shape}"
        self.levels, self.orientation = levels, orientation

    def on(self, background: tuple[int, int, int]) -> np.ndarray:
        """Return the picture as float32 (row, column, 3) in [0, 1], upright, transparent pixels on the background."""
        unit = self.levels.astype(np.float32) / np.float32(np.iinfo(self.levels.dtype).max)
        num_colours = 3 if unit.shape[2] >= 3 else 1
        colour = np.repeat(unit, 3, axis=2) if unit.shape[2] == 1 else unit[..., :num_colours]
        if unit.shape[2] > num_colours:
            alpha = unit[..., num_colours:]
            colour = colour * alpha + np.asarray(background, np.float32) / 255 * (1 - alpha)
        return np.ascontiguousarray(_upright(colour, self.orientation))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image turned as its EXIF orientation 1 to 8 says (CIPA DC-008, tag 274); others count as 1."""
    if orientation in (5, 6, 7, 8):  # rows were stored as columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decoded(content: bytes, where: str) -> _Picture:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _refuse_size((image.height, image.width), where)
            # a multi-picture JPEG (MPO), as telephones write it, has its main picture first and is not a film
            num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if num_frames > 1:
                raise DataError(where, f"holds {num_frames} frames, expected one picture. Save one of them.")
            image.load()
            levels = _levels(image, content, where)
            return _Picture(levels, image.getexif().get(ExifTags.Base.Orientation, 1))


def _levels(image: Image.Image, content: bytes, where: str) -> np.ndarray:
    """Return the levels of a picture that Pillow has decoded without complaint."""
    if image.format == "PNG":
        # Pillow keeps 8 of the 16 bits of colour, and misreads the transparent grey of 2 and 4 bits
        grey_transparency = image.mode in ("1", "L") and "transparency" in image.info
        if content[_PNG_DEPTH] == 16 or grey_transparency:
            if (problem := inflated_problem(content)) is not None:
                raise DataError(where, problem)
            return imagecodecs.png_decode(content)
    if image.mode in ("CMYK", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"):
        return np.asarray(image.convert("RGBA"))
    raise DataError(
        where,
        f"found pixels of the kind {image.mode}, expected 8 or 16 bit grey, RGB, palette or CMYK. Save it as RGB; "
        "a scan with other grey values belongs into a volume.",
    )


def _sixteen_bit_tiff(content: bytes, where: str) -> _Picture | None:
    """Return the picture in a tif of 16 bits per channel; None for one of 8 bits or fewer, which Pillow may read.

    Raises DataError for a tif that is not a single whole page, or that has other values.
    """
    with _TiffWarnings(where), tifffile.TiffFile(io.BytesIO(content)) as tif:
        num_pages = len(tif.pages)
        if num_pages == 0:
            raise DataError(where, f"holds no picture. {_COPY_AGAIN}")
        if num_pages > 1:
            raise DataError(
                where,
                f"holds {num_pages} pages, expected one picture. Save one of them; a stack of slices is a volume.",
            )
        page = tif.pages.first
        _refuse_size((page.imagelength, page.imagewidth), where)
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > len(content) or 0 in page.databytecounts:
            raise DataError(where, f"parts of its pixels are not in the file. {_COPY_AGAIN}")
        extra = [tifffile.EXTRASAMPLE(kind).name for kind in page.extrasamples]
        if extra not in ([], ["ASSOCALPHA"], ["UNASSALPHA"]):
            raise DataError(where, f"has channels {', '.join(extra)} beside its colours. Save it as RGB or RGBA.")
        if page.dtype in (np.uint8, np.bool_):
            return None
        kind = page.photometric.name if page.photometric is not None else "no kind"
        if page.dtype != np.uint16 or page.bitspersample != 16 or kind not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise DataError(
                where,
                f"found {kind} pixels of {page.bitspersample} bit {page.dtype}, expected 8 bit, or 16 bit unsigned "
                "grey or RGB. Save it so; a scan with other grey values belongs into a volume.",
            )
        num_colours = page.samplesperpixel - len(extra)
        if num_colours != (3 if kind == "RGB" else 1) or page.axes not in ("YX", "YXS", "SYX"):
            raise DataError(where, f"found {num_colours} channels of colour in a {kind} tif. {_COPY_AGAIN}")
        if page.compression not in _COMPRESSIONS:
            found = getattr(page.compression, "name", page.compression)
            known = ", ".join(each.name for each in _COMPRESSIONS)
            raise DataError(where, f"is compressed as {found}, expected one of {known}. Save it so.")
        levels = page.asarray(maxworkers=1)
        if page.axes == "SYX":
            levels = np.moveaxis(levels, 0, -1)
        if kind == "MINISWHITE":
            levels = np.iinfo(np.uint16).max - levels
        if extra == ["ASSOCALPHA"]:
            levels = _unmultiplied(levels)
        orientation = page.tags.get("Orientation")
        return _Picture(levels, 1 if orientation is None else int(orientation.value))


def _unmultiplied(levels: np.ndarray) -> np.ndarray:
    """Return the levels of a picture whose colours were stored multiplied by its alpha, the last channel."""
    alpha = levels[..., -1:].astype(np.float64)
    top = np.iinfo(levels.dtype).max
    colour = np.divide(levels[..., :-1] * np.float64(top), alpha, out=np.zeros(levels[..., :-1].shape), where=alpha > 0)
    return np.concatenate([np.rint(np.minimum(colour, top)).astype(levels.dtype), levels[..., -1:]], axis=-1)


def _refuse_size(shape: tuple[int, int], where: str) -> None:
    rows, columns = shape
    if rows * columns > MAX_PIXELS:
        raise DataError(where, f"has {rows:,} x {columns:,} px, at most {MAX_PIXELS:,} pixels are allowed. {_CROP}")
    if rows * columns == 0:
        raise DataError(where, f"has {rows} x {columns} px. {_COPY_AGAIN}")


class _TiffWarnings(logging.Handler):
    """Refuses a tif that tifffile warns of: for some damaged files a line in the log is the only sign."""

    def __init__(self, where: str) -> None:
        super().__init__(logging.WARNING)
        self.where = where
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("tifffile").addHandler(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        logging.getLogger("tifffile").removeHandler(self)
        if self.messages and kind is None:
            raise DataError(self.where, f"tifffile warns: {self.messages[0]!r}. {_COPY_AGAIN}")
