"""The voxel size that a tif says of itself, in ImageJ's metadata or OME's, in micrometres."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import tifffile

# the units that ImageJ and OME write, case-folded (which turns the micro sign into the Greek letter)
_MICROMETRES = {
    **dict.fromkeys(("um", "μm", "\\u00b5m", "\\u03bcm", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("in", "inch", "inches"), 25_400.0),
}
_TIFFFILE = "1.11a"  # the version of ImageJ that tifffile (2026.3) says; it leaves out a spacing that it was not told


def tif_voxel_size_um(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """Return the voxel size (Z, Y, X) that the metadata says, or None where any part of it is missing or no length.

    A resolution alone (72 dpi, say) tells nothing: programs write it without knowing.
    """
    sizes = _ome_sizes_um(tif) if tif.ome_metadata is not None else _imagej_sizes_um(tif)
    if sizes is None or not all(math.isfinite(size) and size > 0 for size in sizes):
        return None
    return sizes


def _imagej_sizes_um(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """ImageJ: x and y are 1 / resolution (tags 282 and 283), z is `spacing`, all in `unit`, not the tif's own unit.

    ImageJ leaves out a spacing of 1, and all spacing of a single slice (ij.io.FileSaver.getDescriptionString).
    """
    metadata = tif.imagej_metadata or {}
    scale = _MICROMETRES.get(str(metadata.get("unit", "")).casefold())
    if metadata.get("ImageJ", _TIFFFILE) != _TIFFFILE and metadata.get("images", 1) != 1:
        metadata = {"spacing": 1.0, **metadata}
    tags = tif.pages.first.tags
    try:
        (num_x, den_x), (num_y, den_y) = tags["XResolution"].value, tags["YResolution"].value
        sizes = float(metadata["spacing"]), den_y / num_y, den_x / num_x
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return None if scale is None else (sizes[0] * scale, sizes[1] * scale, sizes[2] * scale)


def _ome_sizes_um(tif: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """OME: PhysicalSizeZ, Y and X of the first image, each in its own unit, micrometres where none is given."""
    try:
        pixels = next(ElementTree.fromstring(tif.ome_metadata).iterfind("{*}Image/{*}Pixels"))
        size_z, size_y, size_x = (
            float(pixels.attrib[f"PhysicalSize{axis}"])
            * _MICROMETRES[pixels.attrib.get(f"PhysicalSize{axis}Unit", "um").casefold()]
            for axis in "ZYX"
        )
    except (ElementTree.ParseError, StopIteration, KeyError, ValueError):
        return None
    return size_z, size_y, size_x
