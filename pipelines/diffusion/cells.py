"""The cells of a table that takes long to fill: each is kept as it is done, and found again by the same command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from data.errors import OutputError
from data.json_files import read_table
from pipelines.whole_files import write_json


@dataclass(frozen=True, eq=False)
class Cell:
    """What a cell holds. record: as JSON can hold it. arrays: by name."""

    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Cells:
    """The cells of one folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """settings: what every cell depends on. Raises OutputError where the folder holds cells of other settings."""
        self._folder = folder / "cells"
        path = folder / "settings.json"
        if not path.exists():
            write_json(settings, path)
            return
        found = read_table(path, "the settings of the cells there. Remove the folder, or choose another --output_dir")
        changed = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        if changed:
            raise OutputError(
                str(folder),
                *[f"{key}: its cells have {found.get(key)!r}, asked for is {settings.get(key)!r}." for key in changed],
                "Ask for the same, or choose another --output_dir.",
            )

    def cell(self, name: str, make: Callable[[], Cell]) -> Cell:
        """Return the cell of a name, made and written where it is not there yet."""
        record, arrays = self._folder / f"{name}.json", self._folder / f"{name}.npz"
        if not record.exists():
            made = make()
            self._folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(arrays, allow_pickle=False, **made.arrays)
            write_json(made.record, record)  # last: a record without arrays would count as done
        said = read_table(record, "what its cell was found to be. Remove the file, and it is made again")
        try:
            with np.load(arrays, allow_pickle=False) as kept:
                return Cell(said, {each: kept[each] for each in kept.files})
        except (OSError, ValueError, BadZipFile) as error:
            raise OutputError(
                str(arrays), f"cannot be read ({error}). Remove {record.name}, and the cell is made again."
            ) from None
