"""What was found in pictures before, by their content, so that a check and the training after it decode them once."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import PIL
import tifffile

from data.checks.facts import ImageFacts

FILE_NAME = "pictures.sqlite"
# raised when the same picture gives other facts; another decoder may refuse what the last one took
VERSION = f"1 pillow {PIL.__version__} tifffile {tifffile.__version__} imagecodecs {imagecodecs.__version__}"
_WAIT_S = 20  # for other processes that write
_TABLES = """
    CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INT, mtime_ns INT, ctime_ns INT, sha256 TEXT);
    CREATE TABLE IF NOT EXISTS facts (sha256 TEXT, version TEXT, line TEXT, likeness BLOB,
                                      PRIMARY KEY (sha256, version));
"""


class FileState(NamedTuple):
    """Which file, and what changes when it is written: a state that is known stands for the content it had."""

    path: bytes  # as the system has it: a name need not be text
    size: int
    mtime_ns: int
    ctime_ns: int  # a program may set the time of modification back, but not this one

    @staticmethod
    def of(path: Path) -> FileState | None:
        """Return the state of a file; None where it cannot be had."""
        try:
            found = path.stat()
            return FileState(os.fsencode(os.path.realpath(path)), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        except OSError:
            return None


class FactsCache:
    """Facts by content, and contents by the state of their file, in one SQLite file that processes may share.

    A cache that cannot be read or written is as good as an empty one: nothing fails for it, pictures are decoded anew.
    """

    def __init__(self, folder: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._open(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, read-only or full: not ours to remove
                    raise
                self.close()
                path.unlink()
                self._open(path)
        except (OSError, sqlite3.Error):
            self.close()

    def _open(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=_WAIT_S)
        self._connection.executescript(_TABLES)
        with self._connection:
            self._connection.execute("DELETE FROM facts WHERE version != ?", (VERSION,))

    def content_of(self, state: FileState | None) -> str | None:
        """Return the sha256 that a file had in this state, or None."""
        if state is None:
            return None
        row = self._row("SELECT sha256 FROM files WHERE (path, size, mtime_ns, ctime_ns) = (?, ?, ?, ?)", state)
        return None if row is None else str(row[0])

    def facts_of(self, sha256: str | None) -> ImageFacts | None:
        """Return what is known of a content, or None."""
        if sha256 is None:
            return None
        row = self._row("SELECT line, likeness FROM facts WHERE (sha256, version) = (?, ?)", (sha256, VERSION))
        try:
            return None if row is None else ImageFacts.from_stored(str(row[0]), bytes(row[1]))  # type: ignore[call-overload]
        except (ValueError, KeyError, TypeError):
            return None

    def keep(self, found: list[tuple[FileState | None, ImageFacts]]) -> None:
        """Keep facts, and the states of the files they are of, for later."""
        if self._connection is None:
            return
        files = [(*state, facts.sha256) for state, facts in found if state is not None]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", files)
                self._connection.executemany(
                    "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)",
                    [(facts.sha256, VERSION, *facts.stored()) for _, facts in found],
                )
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        """Let go of the file; nothing is found or kept any more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _row(self, query: str, values: tuple[object, ...]) -> tuple[object, ...] | None:
        if self._connection is None:
            return None
        try:
            row: tuple[object, ...] | None = self._connection.execute(query, values).fetchone()
        except sqlite3.Error:
            self.close()
            return None
        return row
