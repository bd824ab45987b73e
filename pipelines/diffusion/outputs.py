"""Where the commands of this package write."""

from __future__ import annotations

from pathlib import Path

from data.errors import OutputError
from data.output_folders import refuse_unwritable


def free_folder(asked: Path | None, above: Path, stem: str) -> Path:
    """Return a folder that holds nothing yet and can be written: the one asked for, or the first free `above`/`stem`-N.

    Raises OutputError where the one asked for holds something, and as `refuse_unwritable` does.
    """
    if asked is not None:
        refuse_unwritable(asked)
        if asked.exists() and any(asked.iterdir()):
            raise OutputError(
                str(asked), "exists and is not empty; nothing is written over. Choose another --output_dir."
            )
        return asked
    number = 0
    while (above / f"{stem}-{number}").exists():
        number += 1
    return refuse_unwritable(above / f"{stem}-{number}")
