"""Where what can be made again is kept: generated data and decoded volumes."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "FILROUGE_CACHE"


def cache_folder() -> Path:
    """Return the folder for what can be made again: FILROUGE_CACHE, or .cache/filrouge in the home folder."""
    return Path(os.environ.get(CACHE_VARIABLE, Path.home() / ".cache" / "filrouge"))
