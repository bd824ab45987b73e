"""Slices written as a tif stack that ImageJ and this project read."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from data.errors import OutputError
from data.tif.stacks import DTYPES


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
