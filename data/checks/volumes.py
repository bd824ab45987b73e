"""The check of volumes: what each of them holds, how like its neighbours a slice is, and what a run would cut of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.checks.pictures import picture
from data.checks.report import Chart, Gallery, Mark, Report, Section, Table, counted
from data.checks.verdict import verdict
from data.concepts import CONCEPTS, load_concept
from data.dataset import CellImages, SliceDataset
from data.errors import DataError
from data.faults import Fault, faults_of
from data.progress import Progress
from data.sources import ImageSource
from data.splits import BlockSplit, slice_correlation
from data.volume_specs import read_volume_specs
from data.volumes import Volume, open_volume, plane_notes

_BINS = 96
_LONGEST_LAG = 200  # of the curves that are shown
_SHOWN = 4  # slices of each side of a cell


def examine_volumes(source: ImageSource, subject: str) -> Report:
    """Return what is in the volumes of a concept and what is wrong with them.

    Raises SettingsError for settings and files of settings that are wrong, as training does.
    """
    faults: list[Fault] = []
    cells: Sequence[CellImages] = ()
    try:
        dataset = source.open()
        assert isinstance(dataset, SliceDataset), "a concept of cells is cut from volumes"
        cells = dataset.cells
        volumes = {cell.cell.state: cell.training.volume for cell in cells}
    except DataError as error:
        faults = list(faults_of(error, source.data_root))
        volumes = _that_open(source)
    splits = {cell.cell.state: cell.split for cell in cells}
    findings = {}
    for state, volume in Progress(volumes.items(), desc="measuring", unit="volume", delay=0.5):
        findings[state] = _volume(
            state, volume, splits.get(state), [cell for cell in cells if cell.cell.state == state]
        )
    sections = [section for section, _ in findings.values()]
    numbers = {state: figures for state, (_, figures) in findings.items()}
    return Report(
        subject=subject,
        verdict=verdict(faults),
        refused=bool(faults),
        overview=_overview(source.data_root, volumes, cells),
        faults=faults,
        warnings=_warnings(volumes, numbers),
        sections=[*([_cells(cells)] if cells else []), *sections],
        numbers={"num_images": sum(len(cell.training) for cell in cells), "volumes": numbers},
    )


def _that_open(source: ImageSource) -> dict[str, Volume]:
    """Return those volumes of a concept that can be opened; what is wrong with the others is told already."""
    assert source.concept is not None, "volumes belong to a concept"
    assert source.data_root is not None, "volumes lie in a folder"
    volumes: dict[str, Volume] = {}
    try:
        specs = read_volume_specs(source.data_root)
    except DataError:
        return volumes
    for state in dict.fromkeys(cell.state for cell in load_concept(source.concept, CONCEPTS).cells):
        try:
            volumes[state] = open_volume(specs[state])
        except DataError:
            continue
    return volumes


def _overview(folder: Path | None, volumes: dict[str, Volume], cells: Sequence[CellImages]) -> list[tuple[str, str]]:
    overview = [
        ("folder", str(folder)),
        ("volumes", ", ".join(f"{state} {_by(volume.shape)}" for state, volume in volumes.items()) or "none"),
    ]
    if cells:
        sides = [[cell.training for cell in cells], [cell.held_out for cell in cells]]
        training, held_out = (sum(map(len, side)) for side in sides)
        blank = sum(slices.num_blank for side in sides for slices in side)
        effective = sum(cell.training.effective_size for cell in cells)
        overview += [
            ("slices", f"{training:,} training, {held_out:,} held out, {blank:,} blank and left out"),
            ("effective", f"{effective:,.0f} independent slices among the {training:,} that are trained on"),
            ("scale", str(cells[0].training.scale)),
        ]
    return overview


def _warnings(volumes: dict[str, Volume], numbers: dict[str, Any]) -> list[str]:
    warnings = []
    for state, figures in numbers.items():
        if figures["equal_neighbours"]:
            shown = ", ".join(map(str, figures["equal_neighbours"][:5]))
            warnings.append(
                f"{volumes[state].spec.path.name}: {counted(len(figures['equal_neighbours']), 'slice')} along Z "
                f"{'repeats' if len(figures['equal_neighbours']) == 1 else 'repeat'} the one before ({shown})."
            )
        if figures["voxel_size_um"] is None:
            warnings.append(f"{volumes[state].spec.path.name}: the voxel size is unknown; say it in volumes.yaml.")
    warnings += [f"{note}." for note in plane_notes(list(volumes.values()))]
    warnings += [
        f"{volume.spec.path.name}: {note.rstrip('.')}." for volume in volumes.values() for note in volume.notes
    ]
    by_content: dict[str, list[str]] = {}
    for volume in volumes.values():
        by_content.setdefault(volume.content_hash(), []).append(volume.spec.path.name)
    warnings += [f"{' and '.join(names)} hold the same voxels." for names in by_content.values() if len(names) > 1]
    return warnings


def _cells(cells: Sequence[CellImages]) -> Section:
    """Return the counts of every state and plane, and an even sample of each."""
    rows, galleries = [], []
    for cell in Progress(cells, desc="looking at slices", unit="cell", delay=0.5):
        sides = cell.training, cell.held_out
        rows.append(
            (
                cell.cell.caption,
                *(f"{len(side):,}" for side in sides),
                f"{sum(side.num_blank for side in sides):,}",
                f"{cell.training.effective_size:,.0f}",
                *(_by(side.shape_px) for side in sides),
            )
        )
        for name, side in zip(("", ", held out"), sides, strict=True):
            shown = side.limited(_SHOWN)
            pictures = [picture(shown.pixels(item), f"slice {shown.indices[item]}") for item in range(len(shown))]
            galleries.append(Gallery(f"{cell.cell.caption}{name}", tuple(pictures)))
    columns = ("caption", "training", "held out", "blank", "effective", "px (rows x columns)", "held-out px")
    return Section(
        "Slices",
        (
            "Effective: how many independent slices say as much as the training slices, which resemble their "
            "neighbours: n / (1 + 2 x the sum of the autocorrelation over its initial positive run); Geyer 1992.",
        ),
        (Table(columns, tuple(rows)),),
        galleries=tuple(galleries),
    )


def _volume(
    state: str, volume: Volume, split: BlockSplit | None, cells: Sequence[CellImages]
) -> tuple[Section, dict[str, Any]]:
    """Return a section on one volume and its figures."""
    low, high = volume.window
    sample = volume.voxels[::2, ::2, ::2].ravel()
    sample = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
    outside = float(np.mean(sample < low)), float(np.mean(sample > high))
    curves = {
        plane: slice_correlation(volume.voxels, axis, max_lag=min(_LONGEST_LAG, volume.shape[axis] - 1))
        for plane, axis in volume.spec.planes.items()
    }
    charts = [_grey_chart(sample, low, high)]
    charts += [_curve(plane, curve, volume, split) for plane, curve in curves.items()]
    section = Section(f"Volume: {state}", (), (_volume_table(volume, split, outside),), tuple(charts))
    return section, {
        "file": volume.spec.path.name,
        "shape": list(volume.shape),
        "dtype": volume.voxels.dtype.name,
        "voxel_size_um": None if volume.voxel_size_um is None else list(volume.voxel_size_um),
        "window": [low, high],
        "share_below_window": outside[0],
        "share_above_window": outside[1],
        "equal_neighbours": _equal_neighbours(volume.voxels),
        "slice_correlation": {plane: [round(value, 4) for value in curve] for plane, curve in curves.items()},
        "gap_px": split.gap_px if split else None,
        "cells": {cell.cell.plane: _cell_numbers(cell) for cell in cells},
    }


def _volume_table(volume: Volume, split: BlockSplit | None, outside: tuple[float, float]) -> Table:
    """Return what is known of a volume. outside: the shares of its voxels below and above the window."""
    size, (low, high) = volume.voxel_size_um, volume.window
    rows = [
        ("file", volume.spec.path.name),
        ("voxels (Z, Y, X)", f"{_by(volume.shape)} {volume.voxels.dtype.name}"),
        ("voxel size", "unknown" if size is None else f"{' x '.join(f'{side:g}' for side in size)} um"),
        ("planes", ", ".join(f"{plane} along {'ZYX'[axis]}" for plane, axis in volume.spec.planes.items())),
        ("window", f"{low:g} to {high:g}"),
        ("outside the window", f"{outside[0]:.2%} below, {outside[1]:.2%} above"),
    ]
    if split is not None:
        rows.append(("gap", f"{split.gap_px} voxels along {'ZYX'[split.axis]}: {split.gap_reason}"))
    return Table(("", ""), tuple(rows))


def _cell_numbers(cell: CellImages) -> dict[str, Any]:
    return {
        "caption": cell.cell.caption,
        "training": len(cell.training),
        "held_out": len(cell.held_out),
        "blank": cell.training.num_blank + cell.held_out.num_blank,
        "effective": round(cell.training.effective_size, 1),
        "size_px": list(cell.training.shape_px),
    }


def _grey_chart(sample: np.ndarray, low: float, high: float) -> Chart:
    """Return the histogram of the grey values, somewhat beyond the window; what lies further out counts at its ends."""
    margin = 0.25 * (high - low)
    first, last = max(float(sample.min()), low - margin), min(float(sample.max()), high + margin)
    heights, _ = np.histogram(np.clip(sample, first, last), _BINS, (first, last))
    share = tuple(float(height) for height in 100 * heights / sample.size)
    marks = (Mark(low, f"{low:g}"), Mark(high, f"{high:g}"))
    return Chart("Grey values and window", share, (first, last), "native grey value", "% of the voxels", marks=marks)


def _curve(plane: str, curve: Sequence[float], volume: Volume, split: BlockSplit | None) -> Chart:
    """Return the curve of the correlation of slices, with the gap where it is measured along this plane's axis."""
    on_axis = split is not None and volume.spec.planes[plane] == split.axis
    gap = (Mark(split.gap_px, f"gap {split.gap_px}"),) if split is not None and on_axis else ()
    return Chart(
        f"Slice correlation, {plane}",
        (1.0, *curve),
        (0.0, float(len(curve))),
        "slices apart",
        "mean correlation",
        bars=False,
        y_range=(min(0.0, *curve, 0.0), 1.0),
        marks=(*gap, Mark(0.0, "", across=True)),
    )


def _equal_neighbours(voxels: np.ndarray) -> list[int]:
    """Return the slices along Z that repeat the one before them voxel for voxel, and are not of one grey value."""
    repeats, before = [], b""
    for index, plane in enumerate(voxels):
        here = hashlib.blake2b(np.ascontiguousarray(plane).tobytes(), digest_size=16).digest()
        if here == before and plane.min() != plane.max():
            repeats.append(index)
        before = here
    return repeats


def _by(lengths: Iterable[int]) -> str:
    return " x ".join(str(length) for length in lengths)
