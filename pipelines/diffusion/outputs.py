"""Where the commands of this package write, and the numbers beside their pictures."""

from __future__ import annotations

from pathlib import Path

from data.errors import OutputError


def free_folder(asked: Path | None, above: Path, stem: str) -> Path:
    """Return a folder that holds nothing yet: the one asked for, or the first free `above`/`stem`-N.

    Raises OutputError where the one asked for holds something.
    """
    if asked is not None:
        if asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
            raise OutputError(
                str(asked), "exists and is not empty; nothing is written over. Choose another --output_dir."
            )
        return asked
    number = 0
    while (above / f"{stem}-{number}").exists():
        number += 1
    return above / f"{stem}-{number}"
