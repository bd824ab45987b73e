"""The data of a run, opened again from its manifest, and refused where it is no longer what the run was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.dataset import ConceptDataset
from data.errors import DataError
from data.sources import ImageSource
from data.wording import RewordedDataset, Wording
from pipelines.run_records import MANIFEST_NAME


def reopened(folder: Path, manifest: Mapping[str, Any]) -> ConceptDataset:
    """Return the dataset of the run in a folder, under the words it was trained with.

    Raises DataError that names what has changed since, as "dry.tif", and for a manifest that does not say it.
    """
    missing = [key for key in ("source", "data", "seed") if key not in manifest]
    if missing:
        raise DataError(str(folder / MANIFEST_NAME), f"lacks {', '.join(missing)}; expected that of a run with images.")
    dataset: ConceptDataset = ImageSource.from_manifest(manifest["source"]).open()
    words = manifest["data"].get("wording")
    if words is not None:
        wording = Wording({caption: tuple(prompts) for caption, prompts in words.items()})
        dataset = RewordedDataset(dataset, wording, seed=manifest["seed"])
    refuse_changed(folder, dataset, manifest["data"])
    return dataset


def refuse_changed(folder: Path, dataset: ConceptDataset, before: Mapping[str, Any]) -> None:
    """Raise DataError where a dataset is not the one that `before` describes, the "data" of a run's manifest."""
    now = json.loads(json.dumps(dataset.manifest()))
    changed = [_said(key, now, before) for key in now if now[key] != before.get(key)]
    if changed:
        raise DataError(
            str(folder),
            *[
                f"{what}: not that of the run; its content has changed, or its window, planes or split."
                for what in changed
            ],
            "Bring back the files.",
        )


def _said(key: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    if key != "volumes" or not isinstance(before.get(key), dict):
        return key
    return ", ".join(volume["file"] for state, volume in now[key].items() if before[key].get(state) != volume)
