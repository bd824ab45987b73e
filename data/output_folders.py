"""Where a command writes, and whether it can, asked before it begins to work."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from data.errors import OutputError
from data.exits import DISK_ERRORS


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


def refuse_unwritable(folder: Path, option: str = "--output_dir") -> Path:
    """Return a folder that a command can write into: it is made on trial, and what was not there is removed again.

    So nothing stays of a command that fails before it has written anything. option: the one that names the folder.
    Raises OutputError for a folder that may not be written, lies on a disk mounted read-only, or goes through a file.
    """
    missing: list[Path] = []
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        found = f"cannot be written ({error.strerror})"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            found = "is a file, or goes through one; expected a folder"
        raise OutputError(str(folder), f"{found}. Choose another {option}.") from None
    finally:
        for each in missing:
            with suppress(OSError):  # not made, or another command has put something into it
                each.rmdir()
    return folder
