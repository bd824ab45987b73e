"""Images that have been drawn, each in a file that is named after everything it depends on.

A file appears whole or not at all: what a killed process leaves is complete, and is not drawn again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from data.errors import OutputError
from pipelines.sheets import to_picture
from pipelines.whole_files import write_text

INDEX = "images.json"


class ImageStore:
    """A folder of PNG files by key: images/<two characters>/<key>.png."""

    def __init__(self, folder: Path) -> None:
        """folder: of the evaluation; made when the first image is kept. Raises OutputError where it cannot be one."""
        if folder.exists() and not folder.is_dir():
            raise OutputError(str(folder), "is a file; expected a folder, new or of an earlier evaluation.")
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return where the image of a key lies, or will."""
        assert key.isalnum(), f"{key!r} is no key"
        return self.folder / "images" / key[:2] / f"{key}.png"

    def has(self, key: str) -> bool:
        """Return whether the image of a key is there and whole; a damaged file counts as none."""
        try:
            with Image.open(self.path(key), formats=["PNG"]) as picture:
                picture.verify()
        except (OSError, SyntaxError, UnidentifiedImageError):  # Pillow (13) names a broken PNG a SyntaxError
            return False
        return True

    def keep(self, key: str, image: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Write an image, floats (H, W, 3) in [0, 1], with what it was drawn from in its header."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = PngImagePlugin.PngInfo()
        header.add_itxt("filrouge", json.dumps(dict(facts), ensure_ascii=False))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # of this process: another may draw the same
        to_picture(image).save(temporary, format="PNG", pnginfo=header)
        temporary.replace(path)

    def read(self, key: str) -> np.ndarray:
        """Return an image, uint8 (H, W, 3)."""
        with Image.open(self.path(key), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"))

    def read_all(self, keys: Iterable[str]) -> np.ndarray:
        """Return images of one size, uint8 (N, H, W, 3)."""
        return np.stack([self.read(key) for key in keys])

    def write_index(self, entries: Iterable[Mapping[str, Any]]) -> Path:
        """Write what each image shows, one in each line of a JSON list, and return the file."""
        lines = ",\n".join(json.dumps(dict(entry), ensure_ascii=False) for entry in entries)
        return write_text(self.folder / INDEX, f"[\n{lines}\n]\n")
