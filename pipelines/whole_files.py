"""Text files that a reader finds as they were or as they are now, never half written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> Path:
    """Write a text in UTF-8, with the folders above it, and return its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def write_json(content: Mapping[str, Any], path: Path) -> Path:
    """Write numbers and texts as JSON and return its file; a number that is not finite is a ValueError."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
