"""Folders that environment variables name: the data of users, and what is made from seeds or decoded once."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

DATA_VARIABLE = "FILROUGE_DATA"  # the data root, where no option names it
CACHE_VARIABLE = "FILROUGE_CACHE"


def data_root() -> Path | None:
    """Return the data root that the environment names, or None."""
    named = os.environ.get(DATA_VARIABLE)
    return Path(named) if named else None


def install_extra(extra: str) -> str:
    """Return the line of a shell that installs an optional group of packages: this project is in no registry."""
    return f"pip install -e {shlex.quote(f'{Path(__file__).resolve().parents[1]}[{extra}]')}"


def cache_folder() -> Path:
    """Return the folder in which generated and decoded data is kept: all of it can be made again."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "filrouge")
