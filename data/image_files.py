"""Which pictures a folder holds, under which words: every caption is found, or everything that is in doubt is told.

Layouts: pictures in the folder itself; one folder for each class, whose name is the label; either of them with
`name.txt` beside `name.jpg`; or a metadata.jsonl of rows {"file_name": ..., "text": ...}, in the folder or in train/.
A row may have a "group" too: pictures of one specimen, say, which must not be split.
Captions come from one place: where some pictures have a text beside them, no other is called by its folder's name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from data.caption_files import CAPTION_SUFFIXES, CaptionFiles, read_caption_files
from data.errors import DataError
from data.faults import Fault, sentences
from data.gathered_images import GatheredImages
from data.images import read_picture
from data.metadata_rows import CAPTION_KEY, METADATA_FILE, Row, read_rows
from data.texts import says_nothing, text_problems

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
UNREADABLE_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd")
OTHER_METADATA_FILES = ("metadata.csv", "metadata.parquet")
_UNREAD = f"is not an image that is read ({', '.join(SUFFIXES)}, not hidden)."
_REPEATS = re.compile(r"([0-9]{1,4})_(.+)")  # kohya's trainers: "10_name" is seen ten times in an epoch


@dataclass(frozen=True)
class ImageFile:
    """One picture with its words: the caption, and the name of its class ("" where there is none).

    folder: where it was found; its name counts from there. group: what pictures that must not be split have in common;
    "" for none. lacks: why it has no caption although others have one.
    """

    path: Path
    caption: str
    label: str
    folder: Path = Path()
    group: str = ""
    lacks: Fault | None = None

    @property
    def name(self) -> str:
        """The path inside the folder, with "/" on every system; the whole path where it lies elsewhere."""
        inside = self.path.is_relative_to(self.folder)
        return (self.path.relative_to(self.folder) if inside else self.path).as_posix()

    def content(self) -> bytes:
        """Return the bytes of the file. Raises DataError for one that is missing, empty or cannot be read."""
        return read_picture(self.path)

    def captioned(self, caption: str) -> Self:
        """Return the same picture under other words."""
        return replace(self, caption=caption, lacks=None)


def find_images(folder: Path) -> list[ImageFile]:
    """Return the pictures of a folder with their captions; a folder without any caption is one too.

    See `survey_folder` for the layouts. Raises DataError with everything that is wrong.
    """
    found = survey_folder(folder)
    lacking = [image.lacks for image in found.images if image.lacks is not None]
    if problems := sentences([*found.faults, *lacking], str(folder)):
        raise DataError(str(folder), *problems)
    return [image for image in found.images if isinstance(image, ImageFile)]


def survey_folder(folder: Path, caption_key: str = CAPTION_KEY) -> GatheredImages:
    """Return the pictures of a folder with their captions, in natural order (2 before 10), whatever is wrong.

    A caption is the text of metadata.jsonl (under caption_key), else of the .txt file, else, where no picture has a
    .txt file, the label, else "". No picture is decoded. Faults are: a caption that is given twice, shared or not
    UTF-8 (with or without a byte order mark), a row that cannot be read, a layout that could mean two things, a format
    that is not read. Raises DataError for what is no folder, and for one without any picture.
    """
    if not folder.is_dir():
        raise DataError(str(folder), "is not a folder. Give the folder that holds the images.")
    listing = _Listing.of(folder)
    where = str(folder)
    metadata, found = _find_metadata(listing, where)
    faults = [*listing.faults, *found]
    if not listing.images and not faults:
        raise DataError(where, _nothing_found(listing))
    rows: Mapping[Path, Row] = {}
    if metadata is None:
        faults += _depth_faults(listing, where)
        if caption_key != CAPTION_KEY:
            told = (
                f"--caption_column {caption_key} names a key of {METADATA_FILE}, and there is none here. Leave it out."
            )
            faults.append(Fault(where, told))
    else:
        rows, found = read_rows(folder, metadata, listing.images, caption_key, _UNREAD)
        faults += found
    texts = read_caption_files(folder, listing.images, listing.others)
    faults += texts.faults
    if metadata is not None:
        faults += [
            Fault(
                path.as_posix(),
                f"its caption stands in {metadata.as_posix()} and in {beside.file.as_posix()}. Remove one of them.",
                of_one=True,
            )
            for path, beside in texts.of.items()
            if path in rows
        ]
    words = _Words(metadata, rows, texts, frozenset() if metadata is not None else _repeated_classes(listing))
    images = [words.image(folder, path) for path in listing.images]
    faults += _label_faults(dict.fromkeys(image.label for image in images), where)
    used = {text.file for text in texts.of.values()} | ({metadata} if metadata else set())
    ignored = [folder / path for path in (*listing.hidden, *listing.others) if path not in used]
    return GatheredImages(
        tuple(images),
        tuple(faults),
        frozenset(path.as_posix() for path in listing.images if words.are_faulty(path)),
        tuple(sorted(ignored, key=_natural)),
        tuple(_repeat_note(words.repeated)),
    )


@dataclass(frozen=True)
class _Words:
    """Where the captions of a folder stand. repeated: classes whose names begin with a number of repeats."""

    metadata: Path | None
    rows: Mapping[Path, Row]
    texts: CaptionFiles
    repeated: frozenset[str]

    def image(self, folder: Path, path: Path) -> ImageFile:
        """Return a picture with the words that stand for it."""
        label = _label(path, Path() if self.metadata is None else self.metadata.parent)
        text, lacks, group = label, None, ""
        if path in self.rows:
            row = self.rows[path]
            text, lacks, group = row.text, row.lacks, row.group
        elif path in self.texts.of:
            text, lacks = self.texts.of[path].text, self.texts.of[path].lacks
        elif self.metadata is not None or self.texts.of or self.texts.nearly:
            text, lacks = "", None if self.metadata is not None else self._without(path)
        elif label in self.repeated:
            text, lacks = "", _repeats_fault(label)
        return ImageFile(folder / path, text, label, folder, group, lacks)

    def are_faulty(self, path: Path) -> bool:
        """Return whether what is wrong with a picture's words is told already."""
        beside = self.texts.of.get(path)
        if self.metadata is not None:
            return path not in self.rows or beside is not None
        return beside is not None and beside.is_faulty

    def _without(self, path: Path) -> Fault:
        """Return that a picture has no caption where others have one."""
        nearly, expected = self.texts.nearly.get(path), path.with_suffix(CAPTION_SUFFIXES[0]).name
        if nearly is not None:
            told = f"has no caption; found {nearly.as_posix()}, expected {expected}. Rename it."
        else:
            told = f"has no caption, and other images have one. Write {expected} beside it."
        return Fault(path.as_posix(), told, of_one=True)


def _repeated_classes(listing: _Listing) -> frozenset[str]:
    classes = dict.fromkeys(path.parts[0] for path in listing.images if len(path.parts) > 1)
    return frozenset(name for name in classes if _REPEATS.fullmatch(name))


def _repeats_fault(name: str) -> Fault:
    """Return that a name of a folder is no caption, as other trainers read its number."""
    match = _REPEATS.fullmatch(name)
    assert match is not None, "a name that begins with a number of repeats"
    return Fault(
        name,
        f"is named as some trainers name a folder whose images are seen {int(match[1])} times in an epoch. Repeats are "
        f"not read here, and a folder's name is the caption: rename it to {match[2]}, or, where the number is a part "
        f"of the name, to {match[2]}_{match[1]}; or write captions beside the images.",
        of_one=True,
    )


def _repeat_note(names: frozenset[str]) -> list[str]:
    if not names:
        return []
    return [f"repeats     {', '.join(sorted(names))}: the number is not applied; each image is seen once in an epoch"]


def _label_faults(labels: Mapping[str, None], where: str) -> list[Fault]:
    """Return what is wrong with the names of class folders."""
    faults = [Fault(where, problem) for label in labels for problem in text_problems(label, "the name of a folder")]
    told = "the name of this folder shows nothing. Rename it."
    return faults + [Fault(ascii(label), told) for label in labels if label and says_nothing(label)]


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder, as paths inside it, in natural order. hidden: files and folders that begin with a dot."""

    folder: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]
    hidden: tuple[Path, ...]
    faults: tuple[Fault, ...]

    @staticmethod
    def of(folder: Path) -> _Listing:
        images, others, hidden, faults = [], [], [], []
        for path, problem in _walk(folder, Path(), ()):
            suffix = path.suffix.lower()
            if path.name.startswith("."):
                hidden.append(path)
            elif problem:
                faults.append(Fault(path.as_posix(), problem, of_one=suffix in SUFFIXES))
            elif suffix in UNREADABLE_SUFFIXES:
                told = "pictures of this format are not read. Save it as PNG, or move it away."
                faults.append(Fault(path.as_posix(), told, of_one=True))
            elif suffix in SUFFIXES:
                images.append(path)
            else:
                others.append(path)
        return _Listing(folder, tuple(images), tuple(others), tuple(hidden), tuple(faults))


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


def _depth_faults(listing: _Listing, where: str) -> list[Fault]:
    """Return what is wrong with where pictures lie when no metadata names them."""
    deep = [path for path in listing.images if len(path.parts) > 2]
    flat = [path for path in listing.images if len(path.parts) == 1]
    classes = list(dict.fromkeys(path.parts[0] for path in listing.images if len(path.parts) == 2))
    faults = [
        Fault(
            path.as_posix(),
            f"lies {len(path.parts) - 1} folders deep, expected at most one, which is its class. Move it, give a "
            f"folder further down, or name all images in {METADATA_FILE}.",
        )
        for path in deep
    ]
    if flat and classes:
        told = (
            f"{_some(flat)} in the folder itself, and images in the class folders {', '.join(classes)}: give every "
            "image a class, or none."
        )
        faults.append(Fault(where, told))
    return faults


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(path.as_posix() for path in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _find_metadata(listing: _Listing, where: str) -> tuple[Path | None, list[Fault]]:
    """Return the metadata file, or None, and what stands in the way of using it."""
    allowed = (Path(METADATA_FILE), Path("train", METADATA_FILE))
    files = [path for path in listing.others if path.name == METADATA_FILE]
    told = (
        f"captions of this format are not read. Write them as {METADATA_FILE}, one line "
        '{"file_name": "a.png", "text": "its caption"} for each image, or move the file away.'
    )
    faults = [Fault(path.as_posix(), told) for path in listing.others if path.name in OTHER_METADATA_FILES]
    told = "expected in the folder itself or in train/. Move it, or give the folder it lies in."
    faults += [Fault(path.as_posix(), told) for path in files if path not in allowed]
    usable = [path for path in files if path in allowed]
    if len(usable) > 1:
        faults.append(Fault(where, f"found {' and '.join(path.as_posix() for path in usable)}. Keep one of them."))
    if not usable:
        return None, faults
    outside = [path for path in listing.images if not path.is_relative_to(usable[0].parent)]
    if outside:
        told = (
            f"{_some(outside)} outside train/, whose {METADATA_FILE} names the images. Give the train folder itself "
            "to leave them out."
        )
        faults.append(Fault(where, told))
    return usable[0], faults
