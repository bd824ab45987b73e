"""What the script of the page reads: pictures by number, the axes of the grid, the panels, the labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.result import Result
from pipelines.evaluation.store import ImageStore
from pipelines.report.labels import LABELS


def script_json(value: Any) -> Markup:
    """Return JSON that can stand in a script element, whatever texts are in it: none of them can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_data(
    result: Result, store: ImageStore, pictures: Mapping[str, str], panels: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return it as JSON can hold it.

    pictures: those in the page, as base64 WebP by key. panels: the drifted pairs and the copied ones.
    """
    numbers = {key: number for number, key in enumerate(pictures)}
    files: dict[str, str] = {}

    def reference(key: str) -> int | str:
        """The number of a picture in the page, or the name of its file beside it."""
        if key not in numbers:
            files[key] = store.path(key).relative_to(store.folder).as_posix()
        return numbers.get(key, key)

    flagged = {copy.key for copy in result.copied if copy.flagged}
    return {
        "id": _identity(result),
        "labels": LABELS,
        "pictures": list(pictures.values()),
        "names": [store.path(key).relative_to(store.folder).as_posix() for key in pictures],
        "models": [{"label": m.label, "isBase": m.is_base, "isReal": m.is_real} for m in result.models],
        "chosen": [verdict.model for verdict in result.verdicts],
        "prompts": [
            {
                "text": p.text,
                "base": p.base_text,
                "group": p.group,
                "ring": p.ring,
                "negative": p.negative,
                "cut": p.num_tokens_cut,
            }
            for p in result.prompts
        ],
        "samplings": list(result.samplings),
        "seeds": sorted({picture.seed for picture in result.pictures}),
        "cells": [
            [p.model, p.prompt, p.sampling, p.seed, reference(p.key), int(p.key in flagged)] for p in result.pictures
        ],
        "drifted": [
            {**pair, "base_key": reference(pair["base_key"]), "key": reference(pair["key"])}
            for pair in panels["drifted"]
        ],
        "copied": [
            {**pair, **{name: reference(pair[name]) for name in ("key", "training_key", "difference_key")}}
            for pair in panels["copied"]
        ],
        "files": files,
    }


def _identity(result: Result) -> str:
    """Return what no other evaluation has: under it the browser keeps the votes on these images."""
    keys = json.dumps([[model.label for model in result.models], [picture.key for picture in result.pictures]])
    return hashlib.sha256(keys.encode()).hexdigest()[:16]
