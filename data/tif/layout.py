"""Where the pages of a tif lie in its file, compared with everything that the file says about itself.

A damaged tif often opens without an error and with other slices than were written: cut, one slice short, or a slice
that begins a few bytes too late. Such a file contradicts itself somewhere, and these are the places to look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from data.volume_specs import VolumeError

COPY_AGAIN = "The file is damaged or incomplete: copy it again from its source, or save it again as an ImageJ tif"
# series of these kinds are stored in one file, and all that is said of them is known here
SERIES_KINDS = ("shaped", "uniform", "generic", "imagej", "ome")
# any of these in the first page's description says how the slices are ordered, though the rest of it be damaged
_SIGNS = {
    "ome": ("openmicroscopy", "<OME ", "</OME>"),
    "imagej": ("ImageJ=", "\nimages=", "\nslices=", "\nchannels="),
    "shaped": ('{"shape":', '"axes":'),
}
# what tells how the bytes of a page become voxels, in words
_STRUCTURE = {
    "compression": "compression",
    "predictor": "predictor",
    "photometric": "photometric interpretation",
    "bitspersample": "bits per sample",
    "sampleformat": "sample format",
    "samplesperpixel": "samples per pixel",
    "planarconfig": "planar configuration",
    "fillorder": "fill order",
    "rowsperstrip": "rows per strip",
    "tilewidth": "tile width",
    "tilelength": "tile length",
    "tiledepth": "tile depth",
}
_ALIGNMENTS = tuple(2**power for power in range(13))
_SMALLEST_ROOM = 64  # bytes; writers leave up to 15 to align what follows


def refuse_bad_layout(
    tif: tifffile.TiffFile, pages: list[tifffile.TiffPage], series: tifffile.TiffPageSeries, path: Path
) -> None:
    """Refuse a file that holds other slices than it says, pages that differ, or data where none can be.

    pages: all of the file, each with its own tags. Raises VolumeError with the first contradiction that is found.
    """
    _refuse_foreign(series, path)
    _refuse_unequal(pages, path)
    _refuse_miscounted(tif, pages, series, path)
    _refuse_unfollowed(pages[0], series, path)
    for index, page in enumerate(pages):
        _refuse_bad_segments(index, page, series, path)
    _refuse_misplaced(tif, pages, series, path)


def by(shape: Sequence[int]) -> str:
    """Return a shape in words: "8 x 12 x 10"."""
    return " x ".join(str(length) for length in shape)


def _refuse_foreign(series: tifffile.TiffPageSeries, path: Path) -> None:
    if series.kind not in SERIES_KINDS:
        raise VolumeError(str(path), f"is a file of the kind {series.kind}; export it as a plain or ImageJ tif stack")
    if series.is_multifile:
        raise VolumeError(str(path), "refers to other files for a part of its slices; export one file that has all")


def _refuse_unfollowed(page: tifffile.TiffPage, series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse a file whose description tifffile has passed over: channels would then count as slices."""
    described = [kind for kind, signs in _SIGNS.items() if any(sign in page.description for sign in signs)]
    if described and series.kind not in described:
        raise VolumeError(str(path), f"has a description ({described[0]}) that cannot be followed. {COPY_AGAIN}")


def _refuse_miscounted(
    tif: tifffile.TiffFile, pages: list[tifffile.TiffPage], series: tifffile.TiffPageSeries, path: Path
) -> None:
    found = math.prod(series.shape)
    declared = _declared_voxels(tif)
    if declared is not None and declared != found:
        raise VolumeError(
            str(path), f"declares {declared:,} voxels, found {found:,} ({by(series.shape)}). {COPY_AGAIN}"
        )
    if any(page is None for page in series.pages):
        raise VolumeError(str(path), f"declares {by(series.shape)}, but pages of it are missing. {COPY_AGAIN}")
    in_pages = sum(math.prod(page.shape) for page in pages)
    # one page may stand for all slices behind it: ImageJ does so above 4 GB
    if in_pages != found and not (len(pages) == 1 and series.dataoffset is not None):
        raise VolumeError(
            str(path), f"its pages hold {in_pages:,} voxels, expected {found:,} ({by(series.shape)}). {COPY_AGAIN}"
        )
    numbers = [page.index for page in series.pages]
    if len(numbers) > 1 and sorted(numbers) != list(range(len(pages))):
        raise VolumeError(str(path), f"a page stands for more than one slice, or for none. {COPY_AGAIN}")


def _declared_voxels(tif: tifffile.TiffFile) -> int | None:
    """Return how many voxels, over all channels, the file's own description promises, or None where it is silent."""
    if tif.imagej_metadata is not None:
        return int(tif.imagej_metadata.get("images", 1)) * math.prod(tif.pages.first.shape)
    if tif.shaped_metadata:  # one for each image that was written by itself
        return sum(math.prod(image["shape"]) for image in tif.shaped_metadata)
    return None


def _refuse_unequal(pages: list[tifffile.TiffPage], path: Path) -> None:
    first = pages[0]
    for index, page in enumerate(pages):
        codes = [tag.code for tag in page.tags]
        if len(set(codes)) < len(codes):
            raise VolumeError(str(path), f"page {index} has the same tag twice. {COPY_AGAIN}")
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise VolumeError(
                str(path),
                f"page {index} is {by(page.shape)} {page.dtype}, page 0 is {by(first.shape)} {first.dtype}; "
                "every slice must have the same size and type",
            )
        differing = [words for name, words in _STRUCTURE.items() if _differ(page, first, name)]
        if differing:
            raise VolumeError(
                str(path), f"page {index} differs from page 0 in {', '.join(differing)}; save all slices alike"
            )


def _differ(page: tifffile.TiffPage, first: tifffile.TiffPage, attribute: str) -> bool:
    return bool(getattr(page, attribute) != getattr(first, attribute))


def _refuse_bad_segments(index: int, page: tifffile.TiffPage, series: tifffile.TiffPageSeries, path: Path) -> None:
    """Refuse a page with other strips or tiles than its size asks for."""
    expected, counts = math.prod(page.chunked), page.databytecounts
    if not len(page.dataoffsets) == len(counts) == expected:
        raise VolumeError(
            str(path),
            f"page {index} has {len(page.dataoffsets)} strips or tiles, expected {expected} for {by(page.shape)}. "
            f"{COPY_AGAIN}",
        )
    if 0 in counts:
        raise VolumeError(str(path), f"parts of page {index} hold no data. {COPY_AGAIN}")
    if page.compression != tifffile.COMPRESSION.NONE or page.bitspersample != page.dtype.itemsize * 8:
        return
    held = sum(counts)
    needed = page.nbytes if not page.is_tiled else math.prod(page.tile) * page.samplesperpixel * page.dtype.itemsize
    if page.is_tiled:
        needed *= expected
    if held not in (needed, series.nbytes):
        raise VolumeError(
            str(path), f"page {index} holds {held:,} bytes, expected {needed:,} for {by(page.shape)}. {COPY_AGAIN}"
        )


def _refuse_misplaced(
    tif: tifffile.TiffFile, pages: list[tifffile.TiffPage], series: tifffile.TiffPageSeries, path: Path
) -> None:
    """Refuse voxels beyond the end of the file or on top of something else, and room where slices are lost."""
    data, size = _data_extents(pages, series), tif.filehandle.size
    if data[:, 1].max() > size:
        raise VolumeError(
            str(path), f"its voxels reach to byte {data[:, 1].max():,}, it ends at {size:,}. {COPY_AGAIN}"
        )
    extents = np.concatenate([data, _structure_extents(tif, pages)])
    extents = extents[np.argsort(extents[:, 0], kind="stable")]
    starts, stops, is_data = extents[:, 0], extents[:, 1], extents[:, 2] >= 0
    reached = np.maximum.accumulate(stops)  # by this part and all before it
    reached_by_data = np.maximum.accumulate(np.where(is_data, stops, 0))
    overlaps = (starts[1:] < reached_by_data[:-1]) | (is_data[1:] & (starts[1:] < reached[:-1]))
    if overlaps.any():
        second = int(overlaps.argmax()) + 1
        page = max(extents[second, 2], extents[second - 1, 2])
        raise VolumeError(
            str(path), f"page {page} lies on top of another part of the file, at byte {starts[second]:,}. {COPY_AGAIN}"
        )
    uncompressed = pages[0].compression == tifffile.COMPRESSION.NONE
    displaced = _displaced_page(extents, reached) if uncompressed else None
    if displaced is not None:
        raise VolumeError(str(path), f"page {displaced} begins elsewhere in its place than all others. {COPY_AGAIN}")
    room = np.append(starts[1:], size) - reached
    largest = int(room.argmax())
    slice_bytes = np.median([sum(page.databytecounts) for page in pages])
    if room[largest] >= max(slice_bytes, _SMALLEST_ROOM):
        raise VolumeError(
            str(path),
            f"{room[largest]:,} bytes from byte {reached[largest]:,} on belong to no page, room for a slice that is "
            f"lost. {COPY_AGAIN}",
        )


def _displaced_page(extents: np.ndarray, reached: np.ndarray) -> int | None:
    """Return the only page that begins elsewhere behind what lies before it than all others do, or None.

    extents, reached: in the order of the file. Writers begin pages at multiples of a power of 2, or leave a room of one
    size; the first two pages, around which the descriptions lie, are left out.
    """
    pages, first = np.unique(extents[:, 2], return_index=True)
    first = first[pages > 1]
    if len(first) < 4:
        return None
    starts, ends_before = extents[first, 0], reached[first - 1]
    expected = [-(-ends_before // alignment) * alignment for alignment in _ALIGNMENTS]
    expected.append(ends_before + int(np.median(starts - ends_before)))
    displaced = [np.flatnonzero(starts != places) for places in expected]
    fewest = min(displaced, key=len)
    return int(extents[first[fewest[0]], 2]) if len(fewest) == 1 else None


def _data_extents(pages: list[tifffile.TiffPage], series: tifffile.TiffPageSeries) -> np.ndarray:
    """Return (start, stop, page) of all voxel data, in bytes."""
    if len(pages) == 1 and series.dataoffset is not None:
        return np.array([[series.dataoffset, series.dataoffset + series.nbytes, 0]], np.int64)
    starts = np.concatenate([np.asarray(page.dataoffsets, np.int64) for page in pages])
    counts = np.concatenate([np.asarray(page.databytecounts, np.int64) for page in pages])
    numbers = np.repeat(np.arange(len(pages)), [len(page.dataoffsets) for page in pages])
    return np.stack([starts, starts + counts, numbers], axis=1)


def _structure_extents(tif: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> np.ndarray:
    """Return (start, stop, -1) in bytes of the header, the pages' directories, and the values of their tags.

    And of smaller copies of the pages, which a pyramid keeps below them: they are not read.
    """
    entry, head, tail, inline = (20, 8, 8, 8) if tif.is_bigtiff else (12, 2, 4, 4)
    extents = [(0, 16 if tif.is_bigtiff else 8, -1)]
    copies = [copy for page in pages if page.subifds for copy in page.pages]
    for copy in copies:
        extents += [(o, o + n, -1) for o, n in zip(copy.dataoffsets, copy.databytecounts, strict=True)]
    for page in [*pages, *copies]:
        extents.append((page.offset, page.offset + head + entry * len(page.tags) + tail, -1))
        for tag in page.tags:
            if tag.valuebytecount > inline:
                extents.append((tag.valueoffset, tag.valueoffset + tag.valuebytecount, -1))
    return np.array(extents, np.int64)
