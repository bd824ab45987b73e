"""Pictures of a Hugging Face dataset, as they are encoded: by name on the hub, or from a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from data.errors import DataError, SettingsError
from data.exits import DISK_ERRORS
from data.faults import Fault
from data.gathered_images import GatheredImages
from data.images import read_picture
from data.outside_files import refuse_row_outside
from data.texts import says_nothing, text_problems


@dataclass(frozen=True, eq=False)
class HubImage:
    """One row of a Hugging Face dataset whose image column is not decoded by it.

    folders: in which a file that the row names must lie; None for anywhere.
    """

    rows: Any
    index: int
    column: str
    name: str
    caption: str
    label: str
    group: str = ""
    folders: tuple[Path, ...] | None = None
    lacks: Fault | None = None

    def captioned(self, caption: str) -> Self:
        """Return the same row under other words."""
        return replace(self, caption=caption, lacks=None)

    def content(self) -> bytes:
        """Return the bytes that the row holds, or those of the file it names."""
        image = self.rows[self.index][self.column]
        if image is None or not (image["bytes"] or image["path"]):
            raise DataError(self.name, f"has no image in the column {self.column}. Fill it, or leave the row out.")
        if not image["bytes"] and self.folders is not None:
            refuse_row_outside(self.name, Path(image["path"]), self.folders)
        return image["bytes"] or read_picture(Path(image["path"]))


def survey_rows(
    name: str,
    config: str | None,
    split: str,
    image_column: str,
    caption_column: str,
    group_column: str | None,
    *,
    allow_outside_files: bool = False,
) -> GatheredImages:
    """Return the rows of a dataset as pictures, whatever is wrong with their words; none is decoded.

    allow_outside_files: whether a row may name a file that is no part of the dataset.
    group_column: text, a class or a whole number, equal in rows that stay on one side of a split; None for none.
    Raises SettingsError for a dataset, split or column that is not there and for a hub that cannot be reached,
    DataError for a split without rows.
    """
    import datasets

    rows = _load(name, config, split)
    folders = None if allow_outside_files else _folders(name)
    _check_columns(name, rows.features, image_column, caption_column, group_column)
    if not len(rows):
        raise DataError(name, f"the split {split} has no rows. Choose another split.")
    groups = [None] * len(rows) if group_column is None else rows[group_column]
    rows = rows.select_columns([image_column, caption_column])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    kind = rows.features[caption_column]
    is_class = isinstance(kind, datasets.ClassLabel)
    images: list[HubImage] = []
    faults: list[Fault] = []
    for index, (caption, group) in enumerate(zip(rows[caption_column], groups, strict=True)):
        where = f"{split}[{index}]"
        of_group = "" if group is None else str(group)
        image = HubImage(rows, index, image_column, where, "", "", of_group, folders)
        if caption is None or (is_class and caption < 0) or (not is_class and says_nothing(caption)):
            images.append(
                replace(
                    image, lacks=Fault(where, f"has no {caption_column}. Fill it, or leave the row out.", of_one=True)
                )
            )
            continue
        text = kind.int2str(caption) if is_class else caption.strip()
        faults += [Fault(where, problem, of_one=True) for problem in text_problems(text, caption_column)]
        images.append(replace(image, caption=text, label=text if is_class else ""))
    if all(image.lacks is not None for image in images):  # a dataset without captions, as a folder may be
        images = [replace(image, lacks=None) for image in images]
    return GatheredImages(tuple(images), tuple(faults), frozenset(fault.where for fault in faults))


def _folders(name: str) -> tuple[Path, ...]:
    """Return where the files of a dataset lie: its own folder, or the caches that it was fetched into."""
    import datasets
    from huggingface_hub import constants

    own = Path(name).expanduser()
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return (own,) if own.is_dir() else tuple(map(Path, caches))


def _load(name: str, config: str | None, split: str) -> Any:
    import datasets

    where = f"{name} (configuration {config}, split {split})"
    try:
        return datasets.load_dataset(name, config, split=split)
    except MemoryError:
        raise
    except (ConnectionError, TimeoutError) as error:
        raise SettingsError(
            where,
            f"could not be fetched: {_first_line(error)}. Check its name, the network and HF_HUB_OFFLINE, or give a "
            "folder on this machine.",
        ) from error
    except Exception as error:  # of the library, of the hub's client and of every reader below them
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise SettingsError(where, f"cannot be used: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _check_columns(name: str, features: Any, image_column: str, caption_column: str, group_column: str | None) -> None:
    import datasets

    problems = []
    wanted = [
        ("--image_column", image_column, (datasets.Image,), "images"),
        ("--caption_column", caption_column, (datasets.ClassLabel, datasets.Value), "text or a class"),
    ]
    if group_column is not None:
        wanted.append(("--group_column", group_column, (datasets.ClassLabel, datasets.Value), "text or whole numbers"))
    for option, column, kinds, expected in wanted:
        columns = f"Its columns: {', '.join(features)}."
        if column not in features:
            problems.append(f"{option}: {name} has no column {column!r}. {columns}")
        elif not isinstance(features[column], kinds) or _holds_other(features[column], option == "--group_column"):
            problems.append(f"{option}: the column {column!r} holds {features[column]}, expected {expected}. {columns}")
    if problems:
        raise SettingsError("dataset columns", *problems)


def _holds_other(kind: Any, or_whole_numbers: bool) -> bool:
    """Return whether a column holds plain values that are no text; a class has a number too, but also a name."""
    import datasets

    if not isinstance(kind, datasets.Value):
        return False
    return "string" not in kind.dtype and not (or_whole_numbers and "int" in kind.dtype)
