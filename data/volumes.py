"""Strict, read-only tif volumes: planes by name, a window in native grey values, nothing guessed and nothing repaired.

A damaged tif often opens without an error and with other slices than were written, so a file is compared with all
that it says about itself before a voxel of it is used. Axes are (Z, Y, X); slices are (row, column).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import tifffile
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data.errors import DataError, OutputError, SettingsError, nearest

PLANES = ("thickness", "warp", "weft")
STATE_FILES = {"dry": "dry.tif", "compacted": "dry_compacted.tif", "injected": "injected.tif"}
SPECS_FILE = "volumes.yaml"
DTYPES = ("uint8", "uint16", "int16", "float32")
WINDOW_PERCENTILES = (0.5, 99.5)


_STACK_AXES = ("ZYX", "QYX", "IYX", "TYX")
# what libtiff codecs, tifffile and the operating system raise on a damaged file
_READ_ERRORS = (ValueError, RuntimeError, LookupError, OSError, MemoryError, TypeError, ArithmeticError, struct.error)
# the units that ImageJ writes, case-folded (which turns the micro sign into the Greek letter)
_MICROMETRES = {
    **dict.fromkeys(("um", "μm", "\\u00b5m", "\\u03bcm", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("inch", "inches"), 25_400.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
}


class VolumeError(DataError):
    """A volume that is missing, damaged, or not what was declared."""


@dataclass(frozen=True)
class VolumeSpec:
    """What is declared about a volume before it is opened.

    planes: plane name -> axis of (Z, Y, X) that its slices are cut along. voxel_size_um: (Z, Y, X), or None where the
    file must say it. window: (low, high) native grey values, or None for percentiles. shape: (Z, Y, X), or None.
    """

    state: str
    path: Path
    planes: Mapping[str, int]
    voxel_size_um: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    shape: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """An opened volume.

    voxels: (Z, Y, X), native dtype, not writeable. voxel_size_um: (Z, Y, X), or None where nobody said it.
    window: (low, high) native grey values, low < high.
    """

    spec: VolumeSpec
    voxels: np.ndarray
    voxel_size_um: tuple[float, float, float] | None
    window: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The length of the axes (Z, Y, X)."""
        num_z, num_y, num_x = self.voxels.shape
        return num_z, num_y, num_x

    def num_slices(self, plane: str) -> int:
        """Return how many slices the volume has in a plane."""
        return self.voxels.shape[self._axis(plane)]

    def plane(self, name: str, index: int) -> np.ndarray:
        """Return one slice: (row, column), native dtype, a view that cannot be written to.

        name: one of PLANES. index: 0 to num_slices(name) - 1. Rows and columns are the two other axes in file order.
        """
        axis = self._axis(name)
        assert 0 <= index < self.voxels.shape[axis], f"slice {index} of {self.voxels.shape[axis]}"
        whole = slice(None)
        return self.voxels[(whole,) * axis + (index,)]

    def content_hash(self) -> str:
        """Return the sha256 of shape, dtype and voxels, as hexadecimal digits: the same for every encoding of them."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        little = self.voxels.dtype.newbyteorder("<")
        digest = hashlib.sha256(f"{self.shape} {self.voxels.dtype.name}".encode())
        for plane in self.voxels:
            digest.update(plane.astype(little).tobytes())
        return digest.hexdigest()

    def _axis(self, plane: str) -> int:
        assert plane in self.spec.planes, f"unknown plane {plane!r}"
        return self.spec.planes[plane]


_Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, gt=0)]
_Grey = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Axis = Annotated[int, Field(strict=True, ge=0, le=2)]
_Plane = Literal["thickness", "warp", "weft"]
_DEFAULT_PLANES: dict[_Plane, int] = {"thickness": 0, "warp": 1, "weft": 2}


class _Entry(BaseModel):
    """One state of volumes.yaml."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[str, Field(strict=True, min_length=1)] | None = None
    planes: dict[_Plane, _Axis] | None = None
    voxel_size_um: tuple[_Positive, _Positive, _Positive] | None = None
    window: tuple[_Grey, _Grey] | None = None
    shape: tuple[_Count, _Count, _Count] | None = None

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str | None) -> str | None:
        if file is not None:
            path = PurePosixPath(file.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise ValueError("must be a path inside the data root; move or link the file there")
        return file

    @field_validator("planes")
    @classmethod
    def _permutation(cls, planes: dict[_Plane, int] | None) -> dict[_Plane, int] | None:
        if planes is not None and sorted(planes.values()) != [0, 1, 2]:
            raise ValueError("must give each of thickness, warp and weft another axis of 0, 1 and 2")
        return planes

    @field_validator("window")
    @classmethod
    def _ordered(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and window[0] >= window[1]:
            raise ValueError("must be [low, high] with low < high")
        return window


def read_volume_specs(data_root: Path) -> dict[str, VolumeSpec]:
    """Return what is declared about the volume of each state: defaults, overridden by volumes.yaml in the data root.

    The volumes themselves need not exist. Raises SettingsError with everything that is wrong in volumes.yaml, and
    VolumeError when the data root is no folder.
    """
    if not data_root.is_dir():
        raise VolumeError(
            str(data_root), "is not a folder; give the folder that holds " + ", ".join(STATE_FILES.values())
        )
    entries = _read_entries(data_root / SPECS_FILE)
    specs = {}
    for state, default_file in STATE_FILES.items():
        entry = entries.get(state, _Entry())
        specs[state] = VolumeSpec(
            state=state,
            path=data_root / (entry.file or default_file),
            planes={str(plane): axis for plane, axis in (entry.planes or _DEFAULT_PLANES).items()},
            voxel_size_um=entry.voxel_size_um,
            window=entry.window,
            shape=entry.shape,
        )
    return specs


def _read_entries(path: Path) -> dict[str, _Entry]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(str(path), f"cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            str(path), f"found {_brief(content)}, expected one mapping for each state, such as dry: {{file: dry.tif}}"
        )
    problems, entries = [], {}
    for state, fields in content.items():
        if state not in STATE_FILES:
            problems.append(f"{state!r} is not a state.{nearest(str(state), STATE_FILES)}")
            continue
        try:
            entries[state] = _Entry.model_validate({} if fields is None else fields)
        except ValidationError as error:
            problems += _sentences(state, fields, error)
    files = {state: entries.get(state, _Entry()).file or default for state, default in STATE_FILES.items()}
    problems += [
        f"{state} and {other} are both read from {file}; give every state a file of its own"
        for position, (state, file) in enumerate(files.items())
        for other in list(files)[:position]
        if files[other] == file
    ]
    if problems:
        raise SettingsError(str(path), *problems)
    return entries


def _sentences(state: str, fields: Any, error: ValidationError) -> list[str]:
    """Return one sentence for each problem that pydantic found: where, what was found, what was expected."""
    sentences = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in (state, *problem["loc"]) if part != "[key]")
        key = str(problem["loc"][-1]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{where} is not a key.{nearest(key, _Entry.model_fields)}")
        elif problem["type"] == "literal_error":
            sentences.append(f"{where} is not a plane.{nearest(str(problem['input']), PLANES)}")
        elif problem["type"] == "model_type":
            sentences.append(f"{state}: found {_brief(fields)}, expected a mapping such as {{file: scan.tif}}")
        else:
            expected = problem["msg"].removeprefix("Value error, ")
            sentences.append(f"{where}: found {_brief(problem['input'])}: {expected[0].lower()}{expected[1:]}")
    return sentences


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def open_volume(spec: VolumeSpec) -> Volume:
    """Return the volume, memory-mapped where its voxels lie contiguously in the file, decoded into memory otherwise.

    Raises VolumeError when the file is missing, damaged or cut short, holds no stack of grey slices, differs from what
    it or the spec declares, does not fit into memory, or has no grey values to make a window of.
    """
    _refuse_no_file(spec.path)
    try:
        with _no_warnings(spec.path), tifffile.TiffFile(spec.path) as tif:
            voxels = _read_voxels(tif, spec)
            voxel_size_um = spec.voxel_size_um or _imagej_voxel_size_um(tif)
    except _READ_ERRORS as error:
        if isinstance(error, ModuleNotFoundError) or "imagecodecs" in str(error):
            raise VolumeError(str(spec.path), f"a decoder is missing ({error}); install imagecodecs") from error
        raise VolumeError(str(spec.path), f"cannot be read as a tif: {_reason(error)}. {_COPY_AGAIN}") from error
    voxels.flags.writeable = False
    return Volume(spec, voxels, voxel_size_um, _window(voxels, spec))


_COPY_AGAIN = "The file is damaged or incomplete: copy it again from its source, or save it again as an ImageJ tif"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no further reason'}"


def _refuse_no_file(path: Path) -> None:
    if path.is_dir():
        raise VolumeError(
            str(path), "found a folder, expected one tif file that holds the whole volume; stack the slices"
        )
    if not path.is_file():
        beside = sorted(file.name for file in path.parent.glob("*.tif*")) if path.parent.is_dir() else []
        found = f"beside it are {', '.join(beside[:8])}" if beside else f"no tif is in {path.parent}"
        raise VolumeError(str(path), f"the file is missing; {found}. Name the file in {SPECS_FILE}, or put it there")
    if path.stat().st_size == 0:
        raise VolumeError(str(path), "the file is empty (0 bytes); copy it again from its source")


class _Records(logging.Handler):
    """Keeps the messages of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _no_warnings(path: Path) -> Iterator[None]:
    """Refuse a file about which tifffile warns: for some cut stacks the log line is the only sign of the damage."""
    logger, records = logging.getLogger("tifffile"), _Records()
    logger.addHandler(records)
    try:
        yield
    except (VolumeError, *_READ_ERRORS) as error:
        if not records.messages:
            raise
        warning = f"tifffile warns: {records.messages[0]!r}"
        found = (*error.problems, warning) if isinstance(error, VolumeError) else (f"{warning}. {_COPY_AGAIN}",)
        raise VolumeError(str(path), *found) from error
    finally:
        logger.removeHandler(records)
    if records.messages:
        raise VolumeError(str(path), f"tifffile warns: {records.messages[0]!r}. {_COPY_AGAIN}")


def _read_voxels(tif: tifffile.TiffFile, spec: VolumeSpec) -> np.ndarray:
    """Return the voxels (Z, Y, X) of a file that has passed every check."""
    tif.pages.useframes = False  # frames copy the first page's tags and hide pages that differ
    pages = list(tif.pages)
    series = _only_series(tif, spec.path)
    _refuse_inconsistent(tif, pages, series, spec.path)
    _refuse_pictures(pages[0], series, spec.path)
    if spec.shape is not None and spec.shape != _stack_shape(series):
        found = f"declared {_by(spec.shape)}, the file holds {_by(_stack_shape(series))} (slices x rows x columns)"
        raise VolumeError(str(spec.path), f"{found}; correct the shape in {SPECS_FILE} or bring the right file")
    if series.dataoffset is None or _num_channels(series) > 1:
        _refuse_too_large(series.nbytes, spec.path)
        return _one_channel(series.asarray(), series, spec.path)
    dtype = series.dtype.newbyteorder(tif.byteorder)
    mapped = np.memmap(spec.path, dtype, "r", offset=series.dataoffset, shape=_stack_shape(series)).view(np.ndarray)
    if len(pages) == len(mapped):
        for index in (0, len(pages) // 2, len(pages) - 1):
            if not np.array_equal(np.squeeze(pages[index].asarray()), mapped[index].squeeze(), equal_nan=True):
                raise VolumeError(str(spec.path), f"page {index} lies elsewhere than the file declares. {_COPY_AGAIN}")
    return mapped


def _only_series(tif: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    series = tif.series
    if not series or not series[0].shape or 0 in series[0].shape:
        raise VolumeError(str(path), f"holds no image. {_COPY_AGAIN}")
    if len(series) > 1:
        found = ", ".join(_by(one.shape) for one in series[:4])
        raise VolumeError(
            str(path),
            f"holds {len(series)} images of different kinds ({found}), expected one stack of equal slices; "
            "save the stack alone",
        )
    return series[0]


def _refuse_pictures(page: tifffile.TiffPage, series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse what holds no stack of grey slices, with everything that is wrong at once."""
    problems = []
    axes = _stack_axes(series)
    if axes == "YX":
        problems.append(
            f"holds one 2D image ({_by(series.shape)}), expected a stack of slices; save the whole volume as one tif"
        )
    elif axes not in _STACK_AXES:
        problems.append(
            f"has axes {series.axes} ({_by(series.shape)}), expected three: slices, rows, columns; save one stack"
        )
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        problems.append("holds palette indices, not grey values; convert it to greyscale (Fiji: Image > Type)")
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        problems.append("stores white as 0 (photometric MINISWHITE); save it with black as 0, so that dense is bright")
    if series.dtype.name not in DTYPES:
        problems.append(f"holds {series.dtype.name} voxels, expected one of {', '.join(DTYPES)}; convert it first")
    if problems:
        raise VolumeError(str(path), *problems)


def _refuse_inconsistent(
    tif: tifffile.TiffFile, pages: list[tifffile.TiffPage], series: tifffile.TiffPageSeries, path: Path
) -> None:
    """Refuse a file that holds other slices than it says, pages that differ, or data beyond its end."""
    declared = _declared_voxels(tif)
    if declared is not None and declared != math.prod(series.shape):
        raise VolumeError(
            str(path),
            f"declares {declared:,} voxels, found {math.prod(series.shape):,} ({_by(series.shape)}). {_COPY_AGAIN}",
        )
    if any(page is None for page in series.pages):
        raise VolumeError(str(path), f"declares {_by(series.shape)}, but pages of it are missing. {_COPY_AGAIN}")
    for index, page in enumerate(pages):
        if (page.shape, page.dtype, page.photometric) != (pages[0].shape, pages[0].dtype, pages[0].photometric):
            raise VolumeError(
                str(path),
                f"page {index} is {_by(page.shape)} {page.dtype}, page 0 is {_by(pages[0].shape)} {pages[0].dtype}; "
                "every slice must have the same size and type",
            )
    size = tif.filehandle.size
    ends = [
        offset + count for page in pages for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    ]
    if series.dataoffset is not None:
        ends.append(series.dataoffset + series.nbytes)
    if max(ends, default=size + 1) > size:
        raise VolumeError(
            str(path), f"its voxels reach to byte {max(ends, default=0):,}, it ends at {size:,}. {_COPY_AGAIN}"
        )
    if any(count == 0 for page in pages for count in page.databytecounts):
        raise VolumeError(str(path), f"parts of its slices hold no data. {_COPY_AGAIN}")


def _declared_voxels(tif: tifffile.TiffFile) -> int | None:
    """Return how many voxels, over all channels, the file's own description promises, or None where it is silent."""
    if tif.imagej_metadata is not None:
        return int(tif.imagej_metadata.get("images", 1)) * math.prod(tif.pages.first.shape)
    if tif.shaped_metadata:
        return math.prod(tif.shaped_metadata[0]["shape"])
    return None


def _refuse_too_large(num_bytes: int, path: Path) -> None:
    budget = memory_budget_bytes()
    if num_bytes > budget:
        raise VolumeError(
            str(path),
            f"takes {num_bytes / 2**30:.2f} GiB when decoded, at most {budget / 2**30:.2f} GiB are allowed (half of "
            "this machine's memory); save it uncompressed and contiguous, which needs no decoding, or crop it",
        )


def memory_budget_bytes() -> int:
    """Return how large a volume may be that must be decoded into memory: half of what this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _stack_axes(series: tifffile.TiffPageSeries) -> str:
    """Return the axes that are left when channels and axes of length 1 are set aside."""
    return "".join(axis for axis, length in _axes(series) if axis in "YX" or (length > 1 and axis not in "CS"))


def _stack_shape(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    return tuple(length for axis, length in _axes(series) if axis in "YX" or (length > 1 and axis not in "CS"))


def _num_channels(series: tifffile.TiffPageSeries) -> int:
    return math.prod(length for axis, length in _axes(series) if axis in "CS")


def _axes(series: tifffile.TiffPageSeries) -> list[tuple[str, int]]:
    return list(zip(series.axes, series.shape, strict=True))


def _one_channel(voxels: np.ndarray, series: tifffile.TiffPageSeries, path: Path) -> np.ndarray:
    """Return the voxels (Z, Y, X) of a stack whose channels, if it has several, are all the same."""
    for position in reversed([index for index, (axis, _) in enumerate(_axes(series)) if axis in "CS"]):
        first = voxels.take(0, axis=position)
        for channel in range(1, voxels.shape[position]):
            if not np.array_equal(first, voxels.take(channel, axis=position)):
                raise VolumeError(
                    str(path),
                    f"holds {voxels.shape[position]} channels, and channel {channel} differs from channel 0, "
                    "expected grey values; export the one channel that was scanned",
                )
        voxels = first
    return voxels.reshape(_stack_shape(series))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def _imagej_voxel_size_um(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """Return the voxel size (Z, Y, X) that ImageJ wrote, or None where any part of it is missing.

    x and y are 1 / resolution (tags 282 and 283), z is `spacing`, all in `unit`; the tif's own resolution unit tells
    nothing.
    """
    metadata = tif.imagej_metadata or {}
    scale = _MICROMETRES.get(str(metadata.get("unit", "")).casefold())
    tags = tif.pages.first.tags
    try:
        (num_x, den_x), (num_y, den_y) = tags["XResolution"].value, tags["YResolution"].value
        sizes = float(metadata["spacing"]), den_y / num_y, den_x / num_x
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if scale is None or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    return sizes[0] * scale, sizes[1] * scale, sizes[2] * scale


def _window(voxels: np.ndarray, spec: VolumeSpec) -> tuple[float, float]:
    """Return the window: the one declared, or the percentiles of a 1/8 sub-sample without NaN and padding.

    Exact 0 is padding in uint16 and float32 scans. uint8 has been windowed by whoever made it and keeps 0 to 255.
    """
    sample = voxels[::2, ::2, ::2].ravel()
    if sample.dtype.kind == "f":
        sample = sample[np.isfinite(sample)]
    if sample.dtype.name in ("uint16", "float32"):
        sample = sample[sample != 0]
    if sample.size == 0:
        raise VolumeError(str(spec.path), "holds nothing but 0 and NaN; export the scan again")
    lowest, highest = float(sample.min()), float(sample.max())
    if spec.window is not None:
        if spec.window[1] <= lowest or spec.window[0] >= highest:
            raise VolumeError(
                str(spec.path),
                f"the window {list(spec.window)} holds no grey value of the volume, which has {lowest:g} to "
                f"{highest:g}; correct it in {SPECS_FILE}",
            )
        return spec.window
    low, high = (float(value) for value in np.percentile(sample, WINDOW_PERCENTILES))
    if low >= high:
        raise VolumeError(
            str(spec.path),
            f"its percentiles {WINDOW_PERCENTILES[0]} and {WINDOW_PERCENTILES[1]} are both {low:g} (grey values "
            f"{lowest:g} to {highest:g}): no contrast to learn; give a window in {SPECS_FILE} or export the scan again",
        )
    return (0.0, 255.0) if voxels.dtype.name == "uint8" else (low, high)


def window_to_unit(plane: np.ndarray, *, low: float, high: float) -> tuple[np.ndarray, int]:
    """Return the plane mapped from the window to [0, 1], and how many pixels fell outside the window.

    plane: (row, column), any real dtype. low, high: the window in native grey values. The result is float32 (row,
    column), clipped; NaN becomes 0 and is counted. Raises VolumeError when low >= high.
    """
    if not low < high:
        raise VolumeError(
            "window", f"found low {low:g}, high {high:g}, expected low < high; correct it in {SPECS_FILE}"
        )
    unit = (plane.astype(np.float64) - low) / (high - low)
    outside = ~((unit >= 0) & (unit <= 1))
    unit = np.clip(np.nan_to_num(unit, nan=0.0), 0, 1)
    return unit.astype(np.float32), int(outside.sum())


def unit_to_native(unit: np.ndarray, *, low: float, high: float, dtype: np.dtype | type | str) -> np.ndarray:
    """Return native grey values: the inverse of window_to_unit, rounded and clipped to what an integer dtype holds.

    unit: any shape, finite; 0 is low, 1 is high. dtype: of the result.
    """
    assert np.isfinite(unit).all(), "grey values are finite"
    native = low + unit.astype(np.float64) * (high - low)
    target = np.dtype(dtype)
    if target.kind in "iu":
        limits = np.iinfo(target)
        native = np.clip(np.rint(native), limits.min, limits.max)
    return native.astype(target)


def write_stack(
    path: Path, voxels: np.ndarray, voxel_size_um: tuple[float, float, float] | None, *, overwrite: bool = False
) -> None:
    """Write slices as an ImageJ tif stack; the file appears whole or not at all.

    voxels: (slice, row, column), one of DTYPES. voxel_size_um: (slice, row, column), or None where it is unknown.
    Raises OutputError when the file exists and overwrite is False.
    """
    assert voxels.ndim == 3, f"a stack has three axes, found {voxels.ndim}"
    assert voxels.dtype.name in DTYPES, f"cannot write {voxels.dtype}"
    if path.exists() and not overwrite:
        raise OutputError(str(path), "the file exists and is not overwritten; move it away or choose another name")
    metadata: dict[str, Any] = {"axes": "ZYX"}
    resolution = None
    if voxel_size_um is not None:
        size_z, size_y, size_x = voxel_size_um
        metadata |= {"spacing": size_z, "unit": "um"}
        resolution = (1 / size_x, 1 / size_y)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            little = np.ascontiguousarray(voxels, voxels.dtype.newbyteorder("<"))
            tifffile.imwrite(
                file,
                little,
                byteorder="<",
                imagej=True,
                photometric="minisblack",
                resolution=resolution,
                metadata=metadata,
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
