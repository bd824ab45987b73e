"""What the cache holds that runs share, how large it is, and when it was last used; all of it can be made again.

python data/cache.py
python data/cache.py --clear encodings
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.environment import CACHE_VARIABLE, cache_folder
from data.errors import SettingsError, nearest
from data.exits import Parser, exit_code

_KINDS = (  # by the first letters of the name
    ("encodings", "what frozen parts of a model made of pictures and captions"),
    ("class-images", "images of a class, drawn by a base"),
    ("fingerprints", "hashes of the weights of bases"),
    ("volumes-v", "generated volumes"),
    ("volumes", "decoded tif stacks"),
    ("dtd-v", "generated textures"),
)


class Kept(NamedTuple):
    """An entry of the cache folder: files, bytes, and when it was last used, in seconds since the epoch."""

    name: str
    num_files: int
    num_bytes: int
    last_used: float


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    folder = cache_folder()
    found = kept(folder)
    if arguments.clear:
        names = [each.name for each in found]
        wrong = [name for name in arguments.clear if name not in (*names, "all")]
        if wrong:
            raise SettingsError(
                "--clear", *[f"found {name!r}, which {folder} lacks.{nearest(name, names)}" for name in wrong]
            )
        for name in names if "all" in arguments.clear else arguments.clear:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        found = kept(folder)
    print("\n".join(table(folder, found)))


def kept(folder: Path) -> list[Kept]:
    """Return the entries of the cache folder, the largest first."""
    entries = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        stats = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        used = max((max(each.st_mtime, each.st_atime) for each in stats), default=path.stat().st_mtime)
        entries.append(Kept(path.name, len(stats), sum(each.st_size for each in stats), used))
    return sorted(entries, key=lambda entry: -entry.num_bytes)


def table(folder: Path, found: Sequence[Kept]) -> list[str]:
    """Return the lines of a table of the cache."""
    if not found:
        return [f"{folder}: empty"]
    width = max(len(each.name) for each in found)
    lines = [
        f"  {each.name:{width}}  {each.num_bytes / 2**20:10,.1f} MiB  {each.num_files:8,} files  last used "
        f"{time.strftime('%Y-%m-%d', time.localtime(each.last_used))}  {_kind(each.name)}".rstrip()
        for each in found
    ]
    total = sum(each.num_bytes for each in found)
    return [f"{folder} ({CACHE_VARIABLE} sets another): {total / 2**20:,.1f} MiB", *lines]


def _kind(name: str) -> str:
    return next((kind for first_letters, kind in _KINDS if name.startswith(first_letters)), "")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--clear", nargs="+", metavar="NAME", help="remove these entries; all: every one of them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "cache"))
