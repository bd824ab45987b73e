"""Which pictures a folder holds, under which words: every caption is found, or everything that is in doubt is told.

Layouts: pictures in the folder itself; one folder for each class, whose name is the label; either of them with
`name.txt` beside `name.jpg`; or a metadata.jsonl of rows {"file_name": ..., "text": ...}, in the folder or in train/.
A row may have a "group" too: pictures of one specimen, say, which must not be split.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import DataError
from data.images import read_content

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
UNREADABLE_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd")
METADATA_FILE = "metadata.jsonl"
OTHER_METADATA_FILES = ("metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class ImageFile:
    """One picture with its words: the caption, and the name of its class ("" where there is none).

    folder: where it was found; its name counts from there. group: what pictures that must not be split have in common;
    "" for none.
    """

    path: Path
    caption: str
    label: str
    folder: Path = Path()
    group: str = ""

    @property
    def name(self) -> str:
        """The path inside the folder, with "/" on every system; the whole path where it lies elsewhere."""
        inside = self.path.is_relative_to(self.folder)
        return (self.path.relative_to(self.folder) if inside else self.path).as_posix()

    def content(self) -> bytes:
        """Return the bytes of the file. Raises DataError for one that is missing, empty or cannot be read."""
        return read_content(self.path)


@dataclass(frozen=True)
class ImageFolder:
    """The pictures of a folder in natural order, and what was left out: hidden files and folders, other files."""

    images: tuple[ImageFile, ...]
    skipped: tuple[Path, ...]


def find_images(folder: Path) -> list[ImageFile]:
    """Return the pictures of a folder with their captions; see `read_folder`."""
    return list(read_folder(folder).images)


def read_folder(folder: Path) -> ImageFolder:
    """Return the pictures of a folder with their captions, in natural order (2 before 10).

    A caption is the text of metadata.jsonl, else of the .txt file, else the label, else "". No picture is decoded.
    Raises DataError with everything that is wrong: no pictures, a caption that is missing, empty, given twice or not
    UTF-8 (with or without a byte order mark), a row that cannot be read, a layout that could mean two things.
    """
    if not folder.is_dir():
        raise DataError(str(folder), "is not a folder. Give the folder that holds the images.")
    listing = _Listing.of(folder)
    problems = list(listing.problems)
    metadata, found = _find_metadata(listing)
    problems += found
    if not listing.images and not problems:
        raise DataError(str(folder), _nothing_found(listing))
    if metadata is None:
        problems += _depth_problems(listing)
        rows: Mapping[Path, _Row] = {}
    else:
        rows, found = _metadata_captions(listing, metadata)
        problems += found
    texts, found = _text_captions(listing)
    problems += found
    problems += [
        f"{path.as_posix()}: its caption stands in {metadata.as_posix()} and in {texts[path].file.as_posix()}. "
        "Remove one of them."
        for path in texts
        if metadata is not None and path in rows
    ]
    root = Path() if metadata is None else metadata.parent
    images = []
    for path in listing.images:
        label = _label(path, root)
        row = rows.get(path)
        text = row.text if row is not None else texts[path].text if path in texts else label
        images.append(ImageFile(folder / path, text, label, folder, row.group if row is not None else ""))
    labels = dict.fromkeys(image.label for image in images)
    problems += [problem for label in labels for problem in text_problems(label, "the name of a folder")]
    if problems:
        raise DataError(str(folder), *problems)
    used = {text.file for text in texts.values()} | ({metadata} if metadata else set())
    skipped = [folder / path for path in (*listing.hidden, *listing.others) if path not in used]
    return ImageFolder(tuple(images), tuple(sorted(skipped, key=_natural)))


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder, as paths inside it, in natural order. hidden: files and folders that begin with a dot."""

    folder: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]
    hidden: tuple[Path, ...]
    problems: tuple[str, ...]

    @staticmethod
    def of(folder: Path) -> _Listing:
        images, others, hidden, problems = [], [], [], []
        for path, problem in _walk(folder, Path(), ()):
            suffix = path.suffix.lower()
            if path.name.startswith("."):
                hidden.append(path)
            elif problem:
                problems.append(f"{path.as_posix()}: {problem}")
            elif suffix in UNREADABLE_SUFFIXES:
                problems.append(
                    f"{path.as_posix()}: pictures of this format are not read. Save it as PNG, or move it away."
                )
            elif suffix in SUFFIXES:
                images.append(path)
            else:
                others.append(path)
        return _Listing(folder, tuple(images), tuple(others), tuple(hidden), tuple(problems))


def _walk(folder: Path, inside: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """Yield each file below a folder, and each hidden folder, with what is wrong about it or ""; links are followed."""
    here = folder / inside
    real = here.resolve()
    if real in above:
        yield inside, "a link that leads back to a folder above it. Remove it."
        return
    try:
        entries = [(path.name, path.is_dir(), path.exists()) for path in here.iterdir()]
    except OSError as error:
        yield inside, f"cannot be listed: {error.strerror}."
        return
    for name, is_folder, exists in sorted(entries, key=lambda entry: _natural(Path(entry[0]))):
        if name.startswith("."):
            yield inside / name, ""
        elif is_folder:
            yield from _walk(folder, inside / name, (*above, real))
        else:
            yield inside / name, "" if exists else "a link to a file that is missing. Bring it, or remove the link."


def _natural(path: Path) -> tuple[tuple[tuple[tuple[int, int, str], ...], str], ...]:
    """Return a key that sorts paths folder by folder, numbers by their value, letters of either case together."""
    return tuple(
        (
            tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split("([0-9]+)", name)),
            original,
        )
        for original in path.parts
        for name in (original.casefold(),)
    )


def _label(path: Path, root: Path) -> str:
    """Return the name of the folder just below the root in which a picture lies, or ""."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else path.parts
    return parts[0] if len(parts) > 1 else ""


def _nothing_found(listing: _Listing) -> str:
    kinds = Counter(path.suffix.lower() or "files without a suffix" for path in listing.others)
    found = [f"{number} {kind}" for kind, number in kinds.most_common()]
    if listing.hidden:
        found.append(f"{len(listing.hidden)} hidden")
    return (
        f"found no images ({', '.join(found) or 'the folder is empty'}), expected files that end in "
        f"{', '.join(SUFFIXES)}, in the folder itself or in one folder for each class."
    )


def _depth_problems(listing: _Listing) -> list[str]:
    """Return what is wrong with where pictures lie when no metadata names them."""
    deep = [path for path in listing.images if len(path.parts) > 2]
    flat = [path for path in listing.images if len(path.parts) == 1]
    classes = list(dict.fromkeys(path.parts[0] for path in listing.images if len(path.parts) == 2))
    problems = [
        f"{path.as_posix()}: lies {len(path.parts) - 1} folders deep, expected at most one, which is its class. Move "
        f"it, give a folder further down, or name all images in {METADATA_FILE}."
        for path in deep
    ]
    if flat and classes:
        problems.append(
            f"{_some(flat)} in the folder itself, and images in the class folders {', '.join(classes)}: give every "
            "image a class, or none."
        )
    return problems


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(path.as_posix() for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _find_metadata(listing: _Listing) -> tuple[Path | None, list[str]]:
    """Return the metadata file, or None, and what stands in the way of using it."""
    allowed = (Path(METADATA_FILE), Path("train", METADATA_FILE))
    files = [path for path in listing.others if path.name == METADATA_FILE]
    problems = [
        f"{path.as_posix()}: captions of this format are not read. Write them as {METADATA_FILE}, one line "
        '{"file_name": "a.png", "text": "its caption"} for each image, or move the file away.'
        for path in listing.others
        if path.name in OTHER_METADATA_FILES
    ]
    problems += [
        f"{path.as_posix()}: expected in the folder itself or in train/. Move it, or give the folder it lies in."
        for path in files
        if path not in allowed
    ]
    usable = [path for path in files if path in allowed]
    if len(usable) > 1:
        problems.append(f"found {' and '.join(path.as_posix() for path in usable)}. Keep one of them.")
    if not usable:
        return None, problems
    outside = [path for path in listing.images if not path.is_relative_to(usable[0].parent)]
    if outside:
        problems.append(
            f"{_some(outside)} outside train/, whose {METADATA_FILE} names the images. Give the train folder itself "
            "to leave them out."
        )
    return usable[0], problems


@dataclass(frozen=True)
class _Row:
    """One row of a metadata file."""

    name: PurePosixPath
    text: str
    group: str


def _metadata_captions(listing: _Listing, metadata: Path) -> tuple[dict[Path, _Row], list[str]]:
    """Return the rows of the pictures that a metadata file names, and everything that is wrong with it."""
    where = metadata.as_posix()
    try:
        content = _text_bytes(listing.folder / metadata)
    except DataError as error:
        return {}, [f"{where}: {problem}" for problem in error.problems]
    images = set(listing.images)
    spellings = {_spelling(path): path for path in listing.images}
    rows: dict[Path, _Row] = {}
    lines: dict[Path, int] = {}
    problems = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _row(line)
            path = metadata.parent / row.name
            if path in lines:
                same = rows[path].text == row.text
                found = "is named a second time" if same else "has a second caption"
                raise _RowError(f"{row.name} {found}, after line {lines[path]}. Keep one row for each image.")
            lines[path] = number
            rows[path] = row
            if path not in images:
                raise _RowError(_absent(listing.folder, path, row.name, spellings))
        except _RowError as error:
            problems.append(f"{where}:{number}: {error}")
    if not lines and not problems:
        problems.append(f"{where}: has no rows. Name every image in it, or remove it.")
    problems += [
        f"{path.as_posix()}: is not named in {where}. Add a row, or move the image away."
        for path in listing.images
        if path not in lines and path.is_relative_to(metadata.parent)
    ]
    return {path: row for path, row in rows.items() if path in images}, problems


class _RowError(Exception):
    """What is wrong with one row of a metadata file."""


def _row(line: bytes) -> _Row:
    """Return what one line of a metadata file says; keys that are not known are left alone."""
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise _RowError(f"is not UTF-8 (byte {error.start} of the line). Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise _RowError(f'is no JSON: {error}. Write {{"file_name": "a.png", "text": "its caption"}}.') from error
    if not isinstance(row, dict):
        raise _RowError(f'found {_brief(row)}, expected {{"file_name": "a.png", "text": "its caption"}}.')
    faults = [
        f"found {key} {_brief(row[key])}, expected text" if key in row else f"has no {key}"
        for key in ("file_name", "text")
        if not isinstance(row.get(key), str)
    ]
    group = row.get("group", "")
    if isinstance(group, bool) or not isinstance(group, str | int):
        faults.append(f"found group {_brief(group)}, expected text or a whole number")
    if faults:
        raise _RowError(f"{'; '.join(faults)}.")
    name = PurePosixPath(row["file_name"].replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.parts or ":" in name.parts[0]:
        raise _RowError(f"found file_name {_brief(row['file_name'])}, expected a path inside the folder.")
    text = row["text"].strip()
    faults = text_problems(row["file_name"], "file_name") + text_problems(text, "text")
    if not text:
        faults.append("the text is empty. Write a caption.")
    if faults:
        raise _RowError(" ".join(faults))
    return _Row(name, text, str(group))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
    if repeated:
        raise _RowError(f"gives {', '.join(repeated)} twice. Keep one.")
    return dict(pairs)


def _absent(folder: Path, path: Path, name: PurePosixPath, spellings: Mapping[str, Path]) -> str:
    near = spellings.get(_spelling(path))
    if near is not None:
        return f"{name} is missing. Did you mean {near.name}?"
    if (folder / path).is_file():
        return f"{name} is not an image that is read ({', '.join(SUFFIXES)}, not hidden). Remove the row."
    return f"{name} is missing. Bring the image, or remove the row."


def _spelling(path: Path) -> str:
    """Return what a path shares with others that differ in case or in how accents are encoded."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


@dataclass(frozen=True)
class _Text:
    """A caption, and the file it stands in."""

    text: str
    file: Path


def _text_captions(listing: _Listing) -> tuple[dict[Path, _Text], list[str]]:
    """Return the captions of the .txt files beside pictures, and everything that is wrong with them."""
    files: dict[Path, list[Path]] = {}
    for path in listing.others:
        if path.suffix.lower() == ".txt":
            files.setdefault(path.with_suffix(""), []).append(path)
    captions, problems, told = {}, [], set()
    for image in listing.images:
        beside = files.get(image.with_suffix(""), [])
        if len(beside) > 1:
            problems.append(f"{image.as_posix()}: has the captions {_some(beside)}. Keep one of them.")
        for path in beside[:1]:
            try:
                captions[image] = _Text(_one_caption(listing.folder / path), path)
            except DataError as error:
                captions[image] = _Text("", path)
                if path not in told:  # two pictures may share a .txt
                    problems += [f"{path.as_posix()}: {problem}" for problem in error.problems]
                told.add(path)
    return captions, problems


def _one_caption(path: Path) -> str:
    """Return the one line of a text file."""
    content = _text_bytes(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            str(path), f"is not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}). Save it as UTF-8."
        ) from error
    lines = [line.strip() for line in re.split("[\r\n]+", text) if line.strip()]
    faults = text_problems(text, "the text")
    if len(lines) != 1:
        faults.append(
            f"holds {len(lines)} lines, expected one caption. Join them." if lines else "is empty. Write a caption."
        )
    if faults:
        raise DataError(str(path), *faults)
    return lines[0]


def _text_bytes(path: Path) -> bytes:
    """Return the bytes of a file of UTF-8 without its byte order mark."""
    content = read_content(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(str(path), "is UTF-16, expected UTF-8. Save it as UTF-8.")
    return content.removeprefix(b"\xef\xbb\xbf")


def text_problems(text: str, what: str) -> list[str]:
    """Return what makes a text unfit for a tokenizer or a file of UTF-8. what: how a sentence about it begins."""
    if "\0" in text:
        return [f"{what} holds a NUL character. Remove it."]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return [f"{what} {text!a} is no valid Unicode. Write it anew as UTF-8."]
    return []


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
