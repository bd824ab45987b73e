"""Small pictures as data: URIs, so that a page holds them itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data.checks.decode import Refused, Task, decode_tasks
from data.checks.processes import parallel_map
from data.checks.report import Picture
from data.errors import DataError
from data.images import decode_image, read_picture

if TYPE_CHECKING:
    from data.gathered_images import EncodedImage

LONG_SIDE_PX = 192  # shown at half of it: sharp on screens with two pixels for one
_QUALITY = 82
_FEW = 48  # below, decoding takes less time than starting processes


def thumbnails(sources: Sequence[EncodedImage], words: Sequence[str], num_workers: int) -> list[Picture | None]:
    """Return each picture made small, with its words; None for one that can no longer be decoded."""
    made = dict(
        parallel_map(_thumbnail, decode_tasks(sources), num_processes=1 if len(sources) < _FEW else num_workers)
    )
    found = [made[place] for place in range(len(sources))]
    return [None if one is None else Picture(one[0], text, one[1]) for one, text in zip(found, words, strict=True)]


def picture(pixels: np.ndarray, words: str) -> Picture:
    """Return a picture of pixels in [0, 1], (row, column) or (row, column, 3), with its words."""
    uri, size_px = _encoded(pixels)
    return Picture(uri, words, size_px)


def _thumbnail(task: Task) -> tuple[str, tuple[int, int]] | None:
    if isinstance(task, Refused):
        return None
    try:
        return _encoded(decode_image(read_picture(task) if isinstance(task, Path) else task, ""))
    except DataError:
        return None


def _encoded(pixels: np.ndarray) -> tuple[str, tuple[int, int]]:
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", (image.height, image.width)
