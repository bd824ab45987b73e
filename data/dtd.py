"""The Describable Textures Dataset: which images of a class are trained on and which are held out, by its own splits.

The layout of its archive (Cimpoi et al. 2014, "Describing textures in the wild"):

    dtd/images/<class>/<class>_0001.jpg        120 images of each class, with gaps in the numbers
    dtd/labels/{train,val,test}{1..10}.txt     ten splits, a line "<class>/<class>_0001.jpg" for each image
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data.errors import DataError, nearest

CLASSES: tuple[str, ...] = (
    *("banded", "blotchy", "braided", "bubbly", "bumpy", "chequered", "cobwebbed", "cracked", "crosshatched"),
    *("crystalline", "dotted", "fibrous", "flecked", "freckled", "frilly", "gauzy", "grid", "grooved", "honeycombed"),
    *("interlaced", "knitted", "lacelike", "lined", "marbled", "matted", "meshed", "paisley", "perforated", "pitted"),
    *("pleated", "polka-dotted", "porous", "potholed", "scaly", "smeared", "spiralled", "sprinkled", "stained"),
    *("stratified", "striped", "studded", "swirly", "veined", "waffled", "woven", "wrinkled", "zigzagged"),
)
NUM_SPLITS = 10
TRAINING_PARTS, HELD_OUT_PARTS = ("train", "val"), ("test",)
_SUFFIXES = (".jpg", ".jpeg")
_NUM_NAMED = 10  # files of one problem that a message names; it counts the others


@dataclass(frozen=True)
class DtdSplit:
    """One official split, as (image, class) in the order of its label files.

    ignored: what stands in the class folders without being an image; the archive itself has images/waffled/.directory.
    """

    training: list[tuple[Path, str]]
    held_out: list[tuple[Path, str]]
    ignored: list[Path] = field(default_factory=list)


def read_dtd(root: Path, classes: Sequence[str], split: int = 1) -> DtdSplit:
    """Return the images of some classes in one of the ten official splits: train and val to train on, test held out.

    root: the folder `dtd`, or the one that it stands in. split: 1 to 10. Only the folders of these classes are looked
    at, and the images are not decoded. Raises DataError, with all that is wrong, for a class or split that is none of
    DTD's, folders or label files that are missing, labels without image, images without label, and images that a
    split names twice.
    """
    assert classes, "a split is read for one class at least"
    problems = [f"unknown class {name!r}.{nearest(name, CLASSES)}" for name in classes if name not in CLASSES]
    if split not in range(1, NUM_SPLITS + 1):
        problems.append(f"found split {split}, expected 1 to {NUM_SPLITS}. Choose one of DTD's own splits.")
    if problems:
        raise DataError("DTD", *problems)
    folder = _dtd_folder(root)
    images, ignored = _images(folder, classes, problems)
    labels = _labels(folder, split, problems)
    present = {name for name in classes if (folder / "images" / name).is_dir()}
    wanted = {part: [name for name in names if name.parts[0] in present] for part, names in labels.items()}
    problems += _disagreements(images, wanted, split)
    if problems:
        raise DataError(str(folder), *problems)

    def members(parts: Iterable[str]) -> list[tuple[Path, str]]:
        return [(images[name], name.parts[0]) for part in parts for name in wanted[part]]

    return DtdSplit(members(TRAINING_PARTS), members(HELD_OUT_PARTS), ignored)


def _dtd_folder(root: Path) -> Path:
    """Return the folder that holds images/ and labels/: the root or root/dtd."""
    for folder in (root, root / "dtd"):
        if (folder / "images").is_dir() and (folder / "labels").is_dir():
            return folder
    found = "no such folder" if not root.is_dir() else "found neither there nor in its folder dtd images/ and labels/"
    raise DataError(str(root), f"{found}, expected DTD as its archive unpacks. Give the folder dtd or its parent.")


def _images(folder: Path, classes: Sequence[str], problems: list[str]) -> tuple[dict[PurePosixPath, Path], list[Path]]:
    """Return the images of the classes by their name in the label files, and what is no image."""
    images: dict[PurePosixPath, Path] = {}
    ignored = []
    missing = []
    for name in dict.fromkeys(classes):
        place = folder / "images" / name
        if not place.is_dir():
            missing.append(f"images/{name}")
            continue
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file():
                images[PurePosixPath(name, path.name)] = path
            else:
                ignored.append(path)
    if missing:
        problems.append(f"no folder for {_named(missing)}. Unpack the archive again.")
    return images, ignored


def _labels(folder: Path, split: int, problems: list[str]) -> dict[str, list[PurePosixPath]]:
    """Return the images that the label files of a split name, by part; without the parts that cannot be read."""
    labels: dict[str, list[PurePosixPath]] = {}
    for part in TRAINING_PARTS + HELD_OUT_PARTS:
        file = f"labels/{part}{split}.txt"
        try:
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            problems.append(f"{file}: cannot be read: {error.strerror}. Unpack the archive again.")
            continue
        except UnicodeDecodeError as error:
            problems.append(f"{file}: byte {error.start} is not UTF-8 text. Unpack the archive again.")
            continue
        labels[part] = []
        wrong = []
        for number, line in enumerate(lines, 1):
            name = PurePosixPath(line.strip())
            if len(name.parts) == 2 and name.parts[0] in CLASSES and name.parts[1] != "..":
                labels[part].append(name)
            elif line.strip():
                wrong.append(f"line {number} {line.strip()!r}")
        if wrong:
            problems.append(f"{file}: found {_named(wrong)}, expected lines as banded/banded_0002.jpg.")
    return labels


def _disagreements(
    images: Mapping[PurePosixPath, Path], labels: Mapping[str, Sequence[PurePosixPath]], split: int
) -> list[str]:
    """Say where label files and image folders disagree: files that are missing, unlabelled, or named twice."""
    problems = []
    parts: dict[PurePosixPath, list[str]] = {}
    for part, names in labels.items():
        for name in names:
            parts.setdefault(name, []).append(part)
    for part, names in labels.items():
        if missing := [str(name) for name in dict.fromkeys(names) if name not in images]:
            problems.append(
                f"labels/{part}{split}.txt: names {len(missing)} files that images/ does not hold: {_named(missing)}. "
                "Unpack the archive again."
            )
    unlabelled = [str(name) for name in images if name not in parts]
    if unlabelled and len(labels) == len(TRAINING_PARTS + HELD_OUT_PARTS):
        problems.append(
            f"{len(unlabelled)} images in no label file of split {split}: {_named(unlabelled)}. "
            "Keep images of your own in another folder and give it as --train_data_dir."
        )
    if repeated := [f"{name} ({_times(found)})" for name, found in parts.items() if len(found) > 1]:
        problems.append(
            f"split {split} names {len(repeated)} images more than once: {_named(repeated)}. "
            "Keep one line, or training sees what it is judged on."
        )
    return problems


def _times(parts: Sequence[str]) -> str:
    return ", ".join(part if count == 1 else f"{count} times in {part}" for part, count in Counter(parts).items())


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMED])
    return shown if len(names) <= _NUM_NAMED else f"{shown} and {len(names) - _NUM_NAMED} more"
