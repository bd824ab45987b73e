"""Captions in text files beside pictures: one line of UTF-8 in NAME.txt (or NAME.caption) for NAME.jpg."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.faults import Fault
from data.images import read_content
from data.texts import says_nothing, text_problems

CAPTION_SUFFIXES = (".txt", ".caption")
MOST_BYTES = 1 << 16  # of one caption


@dataclass(frozen=True)
class FileCaption:
    """What the text file beside a picture says.

    text: "" where it says nothing; lacks then tells so. is_faulty: what is wrong is among the faults already.
    """

    file: Path
    text: str = ""
    lacks: Fault | None = None
    is_faulty: bool = False


@dataclass(frozen=True)
class CaptionFiles:
    """The captions beside pictures, by picture, and everything that is wrong with them.

    nearly: of pictures without one, the text file that was probably meant for it.
    """

    of: dict[Path, FileCaption]
    nearly: dict[Path, Path]
    faults: tuple[Fault, ...]


def read_caption_files(folder: Path, images: Sequence[Path], others: Sequence[Path]) -> CaptionFiles:
    """Return the captions beside pictures. images, others: what lies in a folder, as paths inside it."""
    files: dict[Path, list[Path]] = {}
    for path in others:
        if path.suffix.lower() in CAPTION_SUFFIXES:
            files.setdefault(path.with_suffix(""), []).append(path)
    pictures: dict[Path, list[Path]] = {}
    for image in images:
        pictures.setdefault(image.with_suffix(""), []).append(image)
    found: dict[Path, FileCaption] = {}
    faults: list[Fault] = []
    for stem, sharing in pictures.items():
        beside = files.get(stem, [])
        if not beside:
            continue
        told = _doubts(sharing, beside)
        if told:
            found |= {image: FileCaption(beside[0], is_faulty=True) for image in sharing}
        else:
            found[sharing[0]], told = _read(folder, beside[0])
        faults += told
    return CaptionFiles(found, _nearly(images, files, found), tuple(faults))


def _doubts(pictures: Sequence[Path], texts: Sequence[Path]) -> list[Fault]:
    """Return why it is not known which text belongs to which picture, of those that share a name."""
    if len(texts) > 1:
        names = ", ".join(path.as_posix() for path in texts)
        return [
            Fault(image.as_posix(), f"has the captions {names}. Keep one of them.", of_one=True) for image in pictures
        ]
    if len(pictures) > 1:
        names = ", ".join(picture.as_posix() for picture in pictures)
        told = (
            f"lies beside {names}, and which of them it describes is not known. Give each picture a name and a text of "
            "its own, or remove the copies."
        )
        return [Fault(texts[0].as_posix(), told, of_one=True)]
    return []


def _read(folder: Path, path: Path) -> tuple[FileCaption, list[Fault]]:
    name = path.as_posix()
    try:
        text = _one_line(folder / path)
    except DataError as error:
        return FileCaption(path, is_faulty=True), [Fault(name, problem, of_one=True) for problem in error.problems]
    if text is None:
        return FileCaption(path, lacks=Fault(name, "is empty. Write a caption.", of_one=True)), []
    return FileCaption(path, text), []


def _one_line(path: Path) -> str | None:
    """Return the one line of a text file; None where it says nothing. Raises DataError for any other file."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:
        size = None  # told when it is read
    if size == 0:
        return None
    if size is not None and size > MOST_BYTES:
        raise DataError(str(path), f"has {size:,} bytes, expected one caption. Write one line.")
    content = text_bytes(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            str(path), f"is not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}). Save it as UTF-8."
        ) from error
    faults = text_problems(text, "the text")
    lines = [line.strip() for line in re.split("[\r\n]+", text) if not says_nothing(line)]
    if len(lines) > 1:
        faults.append(f"holds {len(lines)} lines, expected one caption. Join them.")
    if faults:
        raise DataError(str(path), *faults)
    return lines[0] if lines else None


def text_bytes(path: Path) -> bytes:
    """Return the bytes of a file of UTF-8 without its byte order mark. Raises DataError for one of UTF-16."""
    content = read_content(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(str(path), "is UTF-16, expected UTF-8. Save it as UTF-8.")
    return content.removeprefix(b"\xef\xbb\xbf")


def _nearly(images: Sequence[Path], files: dict[Path, list[Path]], found: dict[Path, FileCaption]) -> dict[Path, Path]:
    """Return for pictures without a text the file that differs in the spelling of the name only, or names.jpg.txt."""
    meant = {spelling(stem): paths[0] for stem, paths in files.items()}
    nearly = {}
    for image in images:
        if image not in found:
            near = meant.get(spelling(image.with_suffix(""))) or meant.get(spelling(image))
            if near is not None:
                nearly[image] = near
    return nearly


def spelling(path: Path) -> str:
    """Return what a path shares with others that differ in case or in how accents are encoded."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()
