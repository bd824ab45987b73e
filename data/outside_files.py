"""Files that a folder of data only points to: links and rows that lead out of it are refused unless they are allowed.

What was fetched from elsewhere could otherwise bring any file of this machine into a run and all that it publishes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.errors import DataError

OPTION = "allow_outside_files"
_NUM_NAMED = 10
_ADVICE = f"Copy the file into the folder, or write --{OPTION} where you trust what it points to."


def is_inside(path: Path, folders: Iterable[Path]) -> bool:
    """Return whether a path, all links followed, is one of some folders or lies below one."""
    try:
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that cannot be one
        return False


def refuse_links_out(folder: Path, places: Sequence[Path] | None = None) -> None:
    """Raise DataError naming the links that lead out of a folder, without following any of them.

    places: files and folders in it that are looked through; None for all of it. Hidden ones are no data and are left
    out, and what is missing is for others to tell.
    """
    found = sorted({link for place in (places or [folder]) for link in _links(place) if not is_inside(link, [folder])})
    if found:
        told = [f"{_named(link, folder)}: a link that leads out of the folder." for link in found[:_NUM_NAMED]]
        more = [f"and {len(found) - _NUM_NAMED:,} more."] if len(found) > _NUM_NAMED else []
        raise DataError(str(folder), *told, *more, _ADVICE)


def refuse_row_outside(where: str, path: Path, folders: Sequence[Path]) -> None:
    """Raise DataError for a file that a row names and that lies in none of the folders in which its dataset is kept."""
    if not is_inside(path, folders):
        raise DataError(where, f"names the file {path}, which is no part of the dataset. {_ADVICE}")


def _links(place: Path) -> Iterator[Path]:
    """Yield each link at or below a place, but for hidden ones; none of them is followed."""
    if place.is_symlink():
        yield place
        return
    for here, folders, files in os.walk(place, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            path = Path(here, name)
            if not name.startswith(".") and path.is_symlink():
                yield path


def _named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
