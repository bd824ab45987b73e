"""At which size a result is drawn: that of its training, unless another one is asked for. Known without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.base_folders import read_shape

FACTS_KEY = "filrouge"  # our own entry in the header of a file: JSON
FACTS_NAME = "filrouge.json"  # of a whole model; other results have their facts in the headers of their files
_LARGEST_HEADER = 100 * 2**20  # safetensors' own limit


def drawing_size(paths: Sequence[Path], asked: int | None, base: str | None = None) -> int | None:
    """Return the side in px at which results are drawn together; None is the base's own.

    paths: run folders, whole models, or files with adapters or embeddings. asked: the side that a user gave. base: the
    base model that a user gave, in place of the one that the results name.
    Raises SettingsError for results of several sizes where none is asked for, and for a side that the base cannot draw.
    """
    said = {path: _facts(path) for path in paths}
    sizes = {path: facts.get("resolution_px") for path, facts in said.items()}
    trained = {path: side for path, side in sizes.items() if isinstance(side, int)}
    if asked is None and len(set(trained.values())) > 1:
        told = ", ".join(f"{side} px ({path})" for path, side in trained.items())
        raise SettingsError("--resolution", f"missing, and the runs were trained at several: {told}. Give one of them.")
    side = next(iter(trained.values()), None) if asked is None else asked
    if side is None:
        return None
    first = said[paths[0]] if paths else {}
    problem = read_shape(base or first.get("base") or "swatch", first.get("revision")).size_problem(side)
    if problem is not None:
        raise SettingsError("--resolution", problem)
    return side


def _facts(path: Path) -> dict[str, Any]:
    """Return what a result says of its base and size; {} where nothing does, and where it cannot be read."""
    try:
        if path.is_file():
            return _facts_in_header(path)
        if (path / FACTS_NAME).exists():
            return {**_table(parsed((path / FACTS_NAME).read_bytes())), "base": str(path), "revision": None}
        headers = [_facts_in_header(file) for file in sorted(path.glob("*.safetensors"))]
    except (OSError, ValueError):
        return {}  # opening the result says what is wrong with it
    return next((facts for facts in headers if facts), {})


def _facts_in_header(file: Path) -> dict[str, Any]:
    """Return our entry in the header of a safetensors file: 8 bytes of its length, then JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = parsed(opened.read(length)) if length <= _LARGEST_HEADER else {}
    return _table(parsed(_table(_table(header).get("__metadata__")).get(FACTS_KEY, "{}")))


def _table(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}
