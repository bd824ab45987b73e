"""JSON that was written by somebody: read into values, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import FilrougeError, OutputError


def parsed(content: bytes | str) -> Any:
    """Return what JSON in UTF-8 says; all that is none is a ValueError, brackets without end too."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("its brackets stand too deep in each other") from error


def read_table(
    path: Path, expected: str, *, needs: Sequence[str] = (), error: type[FilrougeError] = OutputError
) -> dict[str, Any]:
    """Return the object in a JSON file.

    expected: what was expected there, as "the folder of a run", or what to do. needs: keys that it must have.
    Raises the error, in words, for a file that is missing or cannot be read, that holds something else, or lacks a key.
    """
    try:
        content = parsed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise error(str(path), f"is missing; expected {expected}.") from None
    except OSError as refused:
        raise error(str(path), f"cannot be read ({refused.strerror}); expected {expected}.") from None
    except ValueError as found:
        raise error(str(path), f"is not JSON ({_reason(found)}); expected {expected}.") from None
    if not isinstance(content, dict):
        raise error(str(path), f"holds {_kind(content)} in place of an object; expected {expected}.")
    missing = [key for key in needs if key not in content]
    if missing:
        raise error(str(path), f"lacks {', '.join(missing)}; expected {expected}.")
    return content


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error).partition("\n")[0]


def _kind(content: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(content), "null")
