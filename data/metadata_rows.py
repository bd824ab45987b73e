"""The rows of a metadata.jsonl: which picture has which caption, and which group it belongs to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.caption_files import spelling, text_bytes
from data.errors import DataError
from data.faults import Fault
from data.texts import says_nothing, text_problems

METADATA_FILE = "metadata.jsonl"
CAPTION_KEY = "text"


@dataclass(frozen=True)
class Row:
    """One row. text: "" where it says nothing; lacks then tells so."""

    name: PurePosixPath
    text: str
    group: str
    lacks: Fault | None = None


def read_rows(
    folder: Path, metadata: Path, images: Sequence[Path], caption_key: str, unread: str
) -> tuple[dict[Path, Row], list[Fault]]:
    """Return the rows of the pictures that a metadata file names, and everything that is wrong with it.

    metadata, images: paths inside the folder. caption_key: the key of the caption. unread: what to say of a
    file that exists and is none of the images.
    """
    where = metadata.as_posix()
    try:
        content = text_bytes(folder / metadata)
    except DataError as error:
        return {}, [Fault(where, problem) for problem in error.problems]
    reader = _Reader(folder, metadata, images, caption_key, unread)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            reader.take(number, line)
    return reader.rows, reader.faults()


class _Reader:
    """Takes one row after the other, and keeps what is wrong with any of them."""

    def __init__(self, folder: Path, metadata: Path, images: Sequence[Path], caption_key: str, unread: str) -> None:
        self.rows: dict[Path, Row] = {}
        self._folder, self._metadata, self._images, self._unread = folder, metadata, images, unread
        self._key = caption_key
        self._known, self._spellings = set(images), {spelling(path): path for path in images}
        self._texts: dict[Path, tuple[int, object]] = {}  # line and caption of each row that names a picture
        self._wrong: list[Fault] = []
        self._other_keys: list[dict[str, Any]] = []  # rows that have a file_name and not the key of the caption
        self._num_rows = 0

    def take(self, number: int, line: bytes) -> None:
        """Read one row. number: of its line."""
        self._num_rows += 1
        where = f"{self._metadata.as_posix()}:{number}"
        try:
            found = _parsed(line)
            if self._key not in found and isinstance(found.get("file_name"), str):
                self._other_keys.append(found)
            self._wrong += [Fault(where, problem, of_one=True) for problem in self._kept(number, found, where)]
        except _RowError as error:
            self._wrong.append(Fault(where, str(error), of_one=True))

    def _kept(self, number: int, found: Mapping[str, Any], where: str) -> list[str]:
        """Keep the row where it is right; return what is wrong with it."""
        name = _name(found.get("file_name"))
        problems = _problems(found, self._key)
        if name is not None:
            path = self._metadata.parent / name
            if path in self._texts:
                before, text = self._texts[path]
                is_same = text == found.get(self._key)
                if not is_same:
                    self.rows.pop(path, None)  # which of the two is meant is not known
                said = "is named a second time" if is_same else "has a second caption"
                problems.append(f"{name} {said}, after line {before}. Keep one row for each image.")
            elif path not in self._known:
                problems.append(_absent(self._folder, path, name, self._spellings, self._unread))
            elif not problems:
                self.rows[path] = _row(found, self._key, name, where)
            self._texts.setdefault(path, (number, found.get(self._key)))
        return [" ".join(problems)] if problems else []

    def faults(self) -> list[Fault]:
        """Return what is wrong with the file, its rows, and the pictures it should have named."""
        where = self._metadata.as_posix()
        if len(self._other_keys) == self._num_rows > 1:  # one thing to mend, not one for each row
            keys = dict.fromkeys(str(key) for row in self._other_keys for key in row)
            return [Fault(where, f"no row has {self._key}{_keys_found(list(keys))}")]
        faults = list(self._wrong)
        if not self._num_rows:
            faults.append(Fault(where, "has no rows. Name every image in it, or remove it."))
        told = f"is not named in {where}. Add a row, or move the image away."
        return faults + [
            Fault(path.as_posix(), told, of_one=True)
            for path in self._images
            if path not in self._texts and path.is_relative_to(self._metadata.parent)
        ]


class _RowError(Exception):
    """What is wrong with one row of a metadata file."""


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise _RowError(f"is not UTF-8 (byte {error.start} of the line). Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise _RowError(f'is no JSON: {error}. Write {{"file_name": "a.png", "text": "its caption"}}.') from error
    if not isinstance(row, dict):
        raise _RowError(f'found {_brief(row)}, expected {{"file_name": "a.png", "text": "its caption"}}.')
    return row


def _name(found: object) -> PurePosixPath | None:
    """Return the path that a row names; None for what is no path inside the folder."""
    if not isinstance(found, str):
        return None
    name = PurePosixPath(found.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts or ":" in name.parts[0]:
        return None
    return None if text_problems(found, "") else name


def _problems(row: Mapping[str, Any], caption_key: str) -> list[str]:
    """Return what is wrong with a row by itself; keys that are not known are left alone."""
    problems = []
    for key in ("file_name", caption_key):
        if key not in row:
            problems.append(f"has no {key}{_keys_found(list(row), of_caption=key == caption_key)}")
        elif not isinstance(row[key], str) and not (key == caption_key and row[key] is None):
            problems.append(f"found {key} {_brief(row[key])}, expected text.")
        elif isinstance(row[key], str):
            problems += text_problems(row[key], key)
    name = row.get("file_name")
    if isinstance(name, str) and not text_problems(name, "") and _name(name) is None:
        problems.append(f"found file_name {_brief(name)}, expected a path inside the folder.")
    group = row.get("group", "")
    if isinstance(group, bool) or not isinstance(group, str | int):
        problems.append(f"found group {_brief(group)}, expected text or a whole number.")
    else:
        problems += text_problems(str(group), "group")
    return problems


def _row(row: Mapping[str, Any], caption_key: str, name: PurePosixPath, where: str) -> Row:
    """Return what a row says in which nothing is wrong."""
    text, group = (row[caption_key] or "").strip(), str(row.get("group", ""))
    if says_nothing(text):
        told = f"the {caption_key} of {name} is empty. Write a caption."
        return Row(name, "", group, Fault(where, told, of_one=True))
    return Row(name, text, group)


def _keys_found(keys: Sequence[str], *, of_caption: bool = True) -> str:
    """Return the end of a sentence on a key that is not there: those that are, and how to name the right one."""
    found = f" (found {', '.join(_brief(key).strip(chr(39)) for key in keys[:8]) or 'no keys'})"
    return f"{found}. Give the key of the captions as --caption_column." if of_caption else f"{found}."


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
    if repeated:
        raise _RowError(f"gives {', '.join(map(ascii, repeated))} twice. Keep one.")
    return dict(pairs)


def _absent(folder: Path, path: Path, name: PurePosixPath, spellings: Mapping[str, Path], unread: str) -> str:
    near = spellings.get(spelling(path))
    if near is not None:
        return f"{name} is missing. Did you mean {near.name}?"
    with suppress(OSError):  # a name that is too long
        if (folder / path).is_file():
            return f"{name} {unread} Remove the row."
    return f"{name} is missing. Bring the image, or remove the row."


def _brief(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
