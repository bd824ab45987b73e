"""What a run writes of itself while it trains, each with one reader: manifest.json, metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import FilrougeError, OutputError
from data.json_files import parsed, read_table

MANIFEST_NAME = "manifest.json"
METRICS_NAME = "metrics.jsonl"
_TABLES = ("settings", "data", "source", "base_prompts")  # what a manifest holds as objects


def read_manifest(
    folder: Path,
    expected: str = "the folder of a run that has ended",
    *,
    needs: Sequence[str] = (),
    error: type[FilrougeError] = OutputError,
) -> dict[str, Any]:
    """Return the manifest of a run. Raises the error as `read_table` does, also for an entry of another kind."""
    manifest = read_table(folder / MANIFEST_NAME, expected, needs=needs, error=error)
    wrong = [key for key in _TABLES if not isinstance(manifest.get(key, {}), dict)]
    if wrong:
        raise error(str(folder / MANIFEST_NAME), f"holds no object as {', '.join(wrong)}; expected {expected}.")
    return manifest


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the records of metrics.jsonl, each {"step": number, name: number, ...}, in the order of the file.

    A last line that was torn by a crash is left out. Raises OutputError for a file that cannot be read, and for one
    that has another line which is no record, by its number.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise OutputError(str(path), "is missing; expected the metrics of a run.") from None
    except OSError as error:
        raise OutputError(str(path), f"cannot be read ({error.strerror}); expected the metrics of a run.") from None
    records, problems = [], []
    *lines, torn = raw.split(b"\n")  # what follows the last line's end is empty, or torn
    for number, line in enumerate(lines, start=1):
        record = metrics_record(line)
        if record is None:
            shown = line[:60].decode("utf-8", errors="backslashreplace")
            problems.append(f'line {number}: found {shown!r}, expected {{"step": number, name: number, ...}}.')
        else:
            records.append(record)
    if problems:
        raise OutputError(str(path), *problems)
    last = metrics_record(torn)
    return records if last is None else [*records, last]


def metrics_record(line: bytes) -> dict[str, float] | None:
    """Return what a line of metrics.jsonl says; None where it says nothing of the kind."""
    try:
        record = parsed(line.decode("utf-8"))
    except ValueError:
        return None
    numbers = isinstance(record, dict) and all(type(value) in (int, float) for value in record.values())
    return record if numbers and math.isfinite(record.get("step", math.nan)) else None
