"""A stack of grey slices in one tif file, opened strictly: nothing guessed, nothing repaired, nothing written.

A damaged tif often opens without an error and with other slices than were written, so a file is compared with all
that it says about itself before a voxel of it is used. The voxels of uncompressed and of LZW data carry no checksum:
a changed byte in them cannot be told from a grey value.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from data.tif.layout import COPY_AGAIN, by, refuse_bad_layout
from data.tif.voxel_sizes import tif_voxel_size_um
from data.volume_specs import VolumeError

DTYPES = ("uint8", "uint16", "int16", "float32")
TIF_SUFFIXES = (".tif", ".tiff")
_STACK_AXES = ("ZYX", "QYX", "IYX", "TYX")
# what libtiff codecs, tifffile and the operating system raise on a damaged file
READ_ERRORS = (
    *(ValueError, RuntimeError, LookupError, OSError, MemoryError, TypeError, ArithmeticError),
    *(AttributeError, AssertionError, struct.error),
)


@dataclass(frozen=True, eq=False)
class Stack:
    """Grey slices that have passed every check and are not read yet.

    files: where they lie. shape: (Z, Y, X). voxel_size_um: (Z, Y, X) as the metadata says, or None. offset: of the
    voxels in the only file, where they lie there uncompressed and one behind the other; None elsewhere.
    slices: gives (row, column) arrays one after the other. notes: what a user should know.
    """

    path: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype
    voxel_size_um: tuple[float, float, float] | None
    offset: int | None
    slices: Callable[[], Iterator[np.ndarray]]
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the voxels when decoded."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_stack(path: Path, *, accept_warnings: bool = False) -> Stack:
    """Return the stack of slices in a tif file.

    accept_warnings: go on where tifffile warns, and note what it says; all other checks stay.
    Raises VolumeError when the file is damaged or cut short, holds no stack of grey slices, or differs from what it
    declares.
    """
    with opened(path, accept_warnings=accept_warnings) as (tif, warnings):
        series = checked_series(tif, path)
        refuse_other_axes(series, path)
        num_z, num_y, num_x = _stack_shape(series)
        offset = series.dataoffset if _num_channels(series) == 1 else None
        size = tif_voxel_size_um(tif)
        dtype = series.dtype.newbyteorder("=" if offset is None else tif.byteorder)
        turned = _orientation_note(series.pages[0])
        _probe(tif, series, offset, path)

    def slices() -> Iterator[np.ndarray]:
        with opened(path, accept_warnings=accept_warnings) as (tif, _):
            yield from decoded_slices(checked_series(tif, path), path)

    notes = (*(f"tifffile warns: {warning}" for warning in warnings), *turned)
    return Stack(path, (path,), (num_z, num_y, num_x), dtype, size, offset, slices, notes)


def _orientation_note(page: tifffile.TiffPage) -> tuple[str, ...]:
    """Return that the slices are to be turned, as their file says, and are not; nothing where it says no such thing."""
    tag = page.tags.get("Orientation")
    if tag is None or tag.value == 1:
        return ()
    return (f"says Orientation {tag.value}, which is not applied: rows and columns stay as they are stored",)


class _Records(logging.Handler):
    """Keeps what one thread logs, each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and record.getMessage() not in self.messages:
            self.messages.append(record.getMessage())


class _ReadersLog:
    """The log of tifffile while files are open: switched on, whatever logging is set to, and not printed."""

    def __init__(self) -> None:
        self._logger, self._lock, self._num_listeners = logging.getLogger("tifffile"), threading.Lock(), 0
        self._before = (logging.NOTSET, False, True)

    @contextmanager
    def recorded(self) -> Iterator[list[str]]:
        """Record what this thread makes tifffile say."""
        records = _Records()
        self._listen(records)
        try:
            yield records.messages
        finally:
            self._leave(records)

    def _listen(self, records: _Records) -> None:
        with self._lock:
            if self._num_listeners == 0:
                self._before = self._logger.level, self._logger.disabled, self._logger.propagate
                self._logger.disabled, self._logger.propagate = False, False
                self._logger.setLevel(logging.WARNING)
            self._num_listeners += 1
            self._logger.addHandler(records)

    def _leave(self, records: _Records) -> None:
        with self._lock:
            self._logger.removeHandler(records)
            self._num_listeners -= 1
            if self._num_listeners == 0:
                level, self._logger.disabled, self._logger.propagate = self._before
                self._logger.setLevel(level)


_READERS_LOG = _ReadersLog()


@contextmanager
def opened(path: Path, *, accept_warnings: bool) -> Iterator[tuple[tifffile.TiffFile, list[str]]]:
    """Open a tif for reading, with the list of what tifffile warns about; for some cut stacks nothing else tells.

    Whatever it raises becomes a VolumeError, and so do warnings, unless they are accepted.
    """
    refuse_no_file(path)
    with _READERS_LOG.recorded() as warnings:
        try:
            with tifffile.TiffFile(path) as tif:
                yield tif, warnings
        except VolumeError as error:
            if not warnings or any("tifffile warns" in problem for problem in error.problems):
                raise
            first, *others = error.problems  # the warning is about the same damage, and no problem of its own
            raise VolumeError(str(path), f"{first} (tifffile warns: {warnings[0]!r})", *others) from error
        except READ_ERRORS as error:
            raise VolumeError(str(path), _reason(error, warnings)) from error
        if warnings and not accept_warnings:
            raise VolumeError(
                str(path),
                f"tifffile warns: {warnings[0]!r}. {COPY_AGAIN}; or, if you know that it is harmless, say "
                "accept_warnings: true of this volume in volumes.yaml",
            )


def _reason(error: Exception, warnings: list[str]) -> str:
    said = str(error).splitlines()[0] if str(error) else "no further reason"
    if isinstance(error, ModuleNotFoundError) or "imagecodecs' package" in said:
        return f"a decoder is missing ({said}); install it: pip install imagecodecs"
    if isinstance(error, MemoryError):
        return f"asks for more memory than there is ({said}); crop it, or save it uncompressed. {COPY_AGAIN}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}; check its rights and its disk"
    warned = f"; tifffile warns: {warnings[0]!r}" if warnings else ""
    return f"cannot be read as a tif: {type(error).__name__}: {said}{warned}. {COPY_AGAIN}"


def refuse_no_file(path: Path) -> None:
    """Raise VolumeError for a file that is missing or empty."""
    if not path.is_file():
        raise VolumeError(str(path), f"the file is missing; {_found_beside(path)}")
    if path.stat().st_size == 0:
        raise VolumeError(str(path), "the file is empty (0 bytes); copy it again from its source")


def _found_beside(path: Path) -> str:
    """Return what lies in the folder of a file that is missing, and what to do."""
    name_it = "Name the file in volumes.yaml, or put it there"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}. {name_it}"
    names = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
    meant = [name for name in names if Path(name).stem.casefold() == path.stem.casefold()]
    if meant:
        return f"found {meant[0]} instead. Say file: {meant[0]} of this volume in volumes.yaml, or rename it"
    tifs = [name for name in names if Path(name).suffix.casefold() in TIF_SUFFIXES]
    if tifs:
        more = f" and {len(tifs) - 8} more" if len(tifs) > 8 else ""
        return f"beside it are {', '.join(tifs[:8])}{more}. {name_it}"
    return f"no tif is in {path.parent} (found {len(names)} other files and folders). {name_it}"


def checked_series(tif: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    """Return the only image of a tif, after every check of its layout."""
    tif.pages.useframes = False  # frames copy the first page's tags and hide pages that differ
    pages = list(tif.pages)
    found = tif.series
    if not found or not found[0].shape or 0 in found[0].shape:
        raise VolumeError(str(path), f"holds no image. {COPY_AGAIN}")
    series = found[0] if len(found) == 1 else _one_series(found, path)
    _refuse_colours(pages[0], series, path)
    refuse_bad_layout(tif, pages, series, path)
    page_bytes = max(page.nbytes for page in series.pages)
    if series.dataoffset is None and page_bytes > memory_budget_bytes():
        raise VolumeError(
            str(path),
            f"one page takes {page_bytes / 2**30:.2f} GiB when decoded, at most {memory_budget_bytes() / 2**30:.2f} "
            "GiB are allowed (half of this machine's memory); save one page for each slice, or crop it",
        )
    return series


def _one_series(found: Sequence[tifffile.TiffPageSeries], path: Path) -> tifffile.TiffPageSeries:
    """Return the stack that equal pages make, each of which was written by itself.

    Raises VolumeError where they are not equal, or more than pages.
    """
    first = found[0]
    kinds = {(one.shape, one.dtype.name, one.axes, one.kind) for one in found}
    if len(kinds) == 1 and all(len(one.pages) == 1 and one.axes == "YX" for one in found):
        pages = [one.pages[0] for one in found]
        shape = (len(pages), *first.shape)
        return tifffile.TiffPageSeries(pages, shape, first.dtype, f"I{first.axes}", kind=first.kind)
    shown = list(dict.fromkeys(f"{by(one.shape)} {one.dtype.name}" for one in found))
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    differing = "of different sizes or types" if len(shown) > 1 else f"of {first.axes} each"
    raise VolumeError(
        str(path),
        f"holds {len(found)} images {differing} ({', '.join(shown[:4])}{more}), expected one stack of equal slices; "
        "save the stack alone",
    )


def _refuse_colours(page: tifffile.TiffPage, series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse what are not grey values, with everything that is wrong at once."""
    problems = []
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        problems.append("holds palette indices, not grey values; convert it to greyscale (Fiji: Image > Type)")
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        problems.append("stores white as 0 (photometric MINISWHITE); save it with black as 0, so that dense is bright")
    if series.dtype.name not in DTYPES:
        problems.append(f"holds {series.dtype.name} voxels, expected one of {', '.join(DTYPES)}; convert it first")
    if problems:
        raise VolumeError(str(path), *problems)


def refuse_other_axes(series: tifffile.TiffPageSeries, path: Path) -> None:
    """Raise VolumeError unless slices, rows and columns are what is left without channels and axes of length 1."""
    axes = _stack_axes(series)
    if axes == "YX" and _num_channels(series) > 1:
        raise VolumeError(
            str(path),
            f"holds one 2D image of {_num_channels(series)} channels ({by(series.shape)}, axes {series.axes}), "
            "expected a stack of slices; if the channels are slices, save them as grey ones (tifffile.imwrite(…, "
            "photometric='minisblack')), otherwise save the whole volume as one tif, or name the folder that holds all "
            "slices",
        )
    if axes == "YX":
        raise VolumeError(
            str(path),
            f"holds one 2D image ({by(series.shape)}), expected a stack of slices; save the whole volume as one tif, "
            "or name the folder that holds all slices",
        )
    if axes not in _STACK_AXES:
        raise VolumeError(
            str(path),
            f"has axes {series.axes} ({by(series.shape)}), expected three: slices, rows, columns; save one stack",
        )


def memory_budget_bytes() -> int:
    """Return how much may be decoded into memory: half of what this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def map_voxels(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return voxels that lie uncompressed in a file, memory-mapped and read-only."""
    return np.memmap(path, dtype, "r", offset=offset, shape=shape).view(np.ndarray)


def _probe(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, offset: int | None, path: Path) -> None:
    """Decode the first, the middle and the last page, and compare them with the voxels to be mapped."""
    last = len(series.pages) - 1
    if last == 0:  # a page that stands for all, or is all
        return
    for number in sorted({0, last // 2, last}):
        page = series.pages[number]
        if offset is None:
            _decode(page)
        else:
            dtype = series.dtype.newbyteorder(tif.byteorder)
            mapped = map_voxels(path, offset + number * page.nbytes, dtype, page.shape)
            if not np.array_equal(_decode(page), mapped, equal_nan=True):
                raise VolumeError(str(path), f"page {number} lies elsewhere than the file declares. {COPY_AGAIN}")


def decoded_slices(series: tifffile.TiffPageSeries, path: Path) -> Iterator[np.ndarray]:
    """Yield the slices (row, column) of a series one after the other, in native byte order.

    Channels must be equal; raises VolumeError otherwise.
    """
    axes = [
        (axis, length) for axis, length in zip(series.axes, series.shape, strict=True) if length > 1 or axis in "YX"
    ]
    page_size, num_behind, size = math.prod(series.pages[0].shape), 0, 1
    while size < page_size:  # the last axes are stored in each page
        num_behind += 1
        size *= axes[-num_behind][1]
    if size != page_size:
        raise VolumeError(
            str(path), f"its pages hold {page_size:,} voxels each, which do not make up {by(series.shape)}"
        )
    ahead, inside = axes[: len(axes) - num_behind], axes[len(axes) - num_behind :]
    # one row of page numbers for each slice (or block of slices), one column for each channel that has its own pages
    numbers = np.arange(math.prod(length for _, length in ahead)).reshape([length for _, length in ahead])
    channels = [position for position, (axis, _) in enumerate(ahead) if axis in "CS"]
    numbers = np.moveaxis(numbers, channels, range(-len(channels), 0)) if channels else numbers[..., None]
    num_channels = math.prod(length for axis, length in ahead if axis in "CS")
    for row in numbers.reshape(-1, num_channels):
        first = _one_channel(_page(series, int(row[0]), inside), inside, path)
        for channel, number in enumerate(row[1:], start=1):
            other = _one_channel(_page(series, int(number), inside), inside, path)
            _refuse_unequal_channels(first, other, channel, path)
        yield from first.reshape(-1, *first.shape[-2:]).astype(first.dtype.newbyteorder("="), copy=False)


def _page(series: tifffile.TiffPageSeries, number: int, axes: list[tuple[str, int]]) -> np.ndarray:
    """Return the voxels of one page, also where the first page stands for all that follow."""
    shape = [length for _, length in axes]
    if len(series.pages) == 1 and series.dataoffset is not None:
        parent = series.pages[0].parent
        dtype = series.dtype.newbyteorder(parent.byteorder)
        offset = series.dataoffset + number * math.prod(shape) * dtype.itemsize
        return map_voxels(Path(parent.filehandle.path), offset, dtype, tuple(shape))
    return _decode(series.pages[number]).reshape(shape)


def _decode(page: tifffile.TiffPage) -> np.ndarray:
    """Return the voxels of a page, decoded in this thread, whose warnings are heard."""
    return page.asarray(maxworkers=1)


def _one_channel(voxels: np.ndarray, axes: list[tuple[str, int]], path: Path) -> np.ndarray:
    """Return voxels without their channels, which must all be the same."""
    for position in reversed([index for index, (axis, _) in enumerate(axes) if axis in "CS"]):
        first = voxels.take(0, axis=position)
        for channel in range(1, voxels.shape[position]):
            _refuse_unequal_channels(first, voxels.take(channel, axis=position), channel, path)
        voxels = first
    return voxels


def _refuse_unequal_channels(first: np.ndarray, other: np.ndarray, channel: int, path: Path) -> None:
    if not np.array_equal(first, other, equal_nan=first.dtype.kind == "f"):
        raise VolumeError(
            str(path),
            f"holds several channels, and channel {channel} differs from channel 0, expected grey values; export the "
            "one channel that was scanned",
        )


def _stack_axes(series: tifffile.TiffPageSeries) -> str:
    """Return the axes that are left when channels and axes of length 1 are set aside."""
    return "".join(axis for axis, length in _axes(series) if axis in "YX" or (length > 1 and axis not in "CS"))


def _stack_shape(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    return tuple(length for axis, length in _axes(series) if axis in "YX" or (length > 1 and axis not in "CS"))


def _num_channels(series: tifffile.TiffPageSeries) -> int:
    return math.prod(length for axis, length in _axes(series) if axis in "CS")


def _axes(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    return list(zip(series.axes, series.shape, strict=True))
