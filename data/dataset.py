"""Training samples as a pure function of their position in a run, and held-out crops to judge the run by."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from data.aspect_buckets import BucketedOrder, Shape, next_resolution, shortest_side, unit_px, window_shape
from data.concepts import Cell, Concept
from data.crops import Crops, bucket_note, count_problems, refuse_settings
from data.errors import DataError
from data.slices import (
    BLANK_CONTRAST,
    CellImages,
    PixelScale,
    Slices,
    blank_notes,
    evenly_spaced,
    find_slices,
    split_notes,
)
from data.splits import BlockSplit, split_volume, whole_block
from data.transforms import allowed_flips, crop, tile_origins, to_model_range
from data.volume_specs import read_volume_specs
from data.volumes import Volume, open_volume, plane_notes
from data.whole_images import WholeImage, WholeImages


@dataclass(frozen=True)
class Sample:
    """One training image: pixels float32 (3, H, W) in [-1, 1], its words, and where it was cut, for error reports.

    is_prior: True for an image of the class that a method preserves, False for one of the concept. is_dropped: its
    words were left out on purpose, and are "" for that reason.
    """

    pixels: np.ndarray
    caption: str
    is_prior: bool
    source: str
    is_dropped: bool = False


class Dataset(Protocol):
    """What the training loop asks of data."""

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions of the images."""

    def __len__(self) -> int:
        """Return the number of positions in an epoch: its images, and those of them that it shows again."""

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs; a pure function of it."""

    def manifest(self) -> dict[str, object]:
        """Return what the samples are made from, as JSON can hold it."""


class ConceptDataset(Dataset, Protocol):
    """Data of a concept: what is trained on, and images kept out of training to judge the run by."""

    @property
    def resolution(self) -> int:
        """The side, in px, of the square images that a run is judged by."""

    @property
    def um_per_px(self) -> float | None:
        """The pixel scale of all images; None where it is unknown, or where there is none."""

    @property
    def grey_values(self) -> dict[str, dict[str, object]]:
        """By caption: window (low, high) and dtype in which -1 to 1 stands for grey values; {} where nothing does."""

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return at most num_images held-out images by caption, float32 (N, 3, H, W) in [-1, 1]."""

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return training images like those of `held_out_pixels`; their difference is a metric's floor."""

    def whole_images(self) -> WholeImages:
        """Return all training images before they are cut."""


class SliceDataset:
    """Crops of the training blocks of volumes: each slice once in an epoch, in an order of the epoch's own.

    Square crops; with aspect buckets, windows of the full height where it fits, in batches of one size. Cells with more
    slices are seen more often: nothing is balanced. Held-out slices are never sampled.
    """

    def __init__(self, cells: Sequence[CellImages], crops: Crops) -> None:
        """Raises DataError for slices that are smaller than a crop, SettingsError for values out of range."""
        assert cells, "a dataset has at least one cell"
        assert len({cell.training.scale for cell in cells}) == 1, "all cells have one pixel scale"
        refuse_settings(crops)
        self.cells, self.crops = tuple(cells), crops
        sides = [side for cell in cells for side in (cell.training, cell.held_out)]
        self.resolution = crops.resolution if crops.bucket_batch is None else judged_px(sides, crops.resolution)
        if problems := [problem for side in sides for problem in _size_problems(side, self.resolution, crops)]:
            raise DataError("slices smaller than a crop", *problems)
        self._shapes = [_crop_shape(cell.training, crops) for cell in cells]
        self._order = crops.order(
            [shape for cell, shape in zip(cells, self._shapes, strict=True) for _ in range(len(cell.training))]
        )
        self._ends = list(accumulate(len(cell.training) for cell in cells))

    def __len__(self) -> int:
        return len(self._order)

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, in the order of the cells; a dropped caption is none of them."""
        return tuple(dict.fromkeys(cell.cell.caption for cell in self.cells))

    @property
    def um_per_px(self) -> float | None:
        """The one pixel scale of all images; None where the voxel size is unknown."""
        return self.cells[0].training.um_per_px

    @property
    def grey_values(self) -> dict[str, dict[str, object]]:
        """By caption: the window of its volume and the dtype of its voxels."""
        return {
            cell.cell.caption: {
                "window": [float(edge) for edge in cell.training.volume.window],
                "dtype": str(cell.training.volume.voxels.dtype),
            }
            for cell in self.cells
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Scale, undeclared planes, blank slices, splits, how many independent slices there are, buckets, in lines."""
        return (
            f"scale       {self.cells[0].training.scale}, for every plane and state",
            *(f"planes      {note}" for note in plane_notes(self._volumes)),
            *blank_notes(self.cells),
            *split_notes(self.cells),
            *filter(None, [bucket_note(self._order, self._ends[-1], self.resolution)]),
        )

    @property
    def _volumes(self) -> list[Volume]:
        return list({cell.cell.state: cell.training.volume for cell in self.cells}.values())

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs."""
        index = self._order.item(position)
        number, item = self._located(index)
        cell = self.cells[number]
        pixels, origin = self.crops.cut(
            cell.training.pixels(item), self._shapes[number], allowed_flips(cell.cell.plane), position
        )
        left_out = self.crops.is_dropped(position)
        return Sample(
            to_model_range(pixels),
            "" if left_out else cell.cell.caption,
            is_prior=False,
            source=cell.training.source(item, origin),
            is_dropped=left_out,
        )

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return square crops of the held-out blocks at the run's scale, by caption: float32 (N, 3, H, W) in [-1, 1].

        Evenly spaced, neither overlapping nor mirrored; N is num_images, or as many as fit where that is less.
        """
        return {cell.cell.caption: _even_crops(cell.held_out, self.resolution, num_images) for cell in self.cells}

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return crops of the training blocks like those of `held_out_pixels`; their difference is a metric's floor."""
        return {cell.cell.caption: _even_crops(cell.training, self.resolution, num_images) for cell in self.cells}

    def whole_images(self) -> WholeImages:
        """Return all training slices whole, cell by cell."""
        return WholeImages(self._ends[-1], self._whole)

    def _whole(self, place: int) -> WholeImage:
        number, item = self._located(place)
        cell = self.cells[number]
        return WholeImage(to_model_range(cell.training.pixels(item)), cell.cell.caption, cell.training.name(item))

    def _located(self, index: int) -> tuple[int, int]:
        """Return the cell of an image, by its place among all of them, and its place in the cell."""
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number] - len(self.cells[number].training))

    def manifest(self) -> dict[str, object]:
        """Return volumes, windows, splits, scale and counts, as JSON can hold them."""
        volumes = {cell.cell.state: (cell.training.volume, cell.split) for cell in self.cells}
        return {
            **self.crops.manifest(),
            "judged_px": self.resolution,
            "um_per_px": self.um_per_px,
            "scale": str(self.cells[0].training.scale),
            "num_images": self._ends[-1],
            "aspect_buckets": self._order.manifest() if isinstance(self._order, BucketedOrder) else None,
            "blank_contrast": BLANK_CONTRAST,
            "cells": [
                {
                    "caption": cell.cell.caption,
                    "state": cell.cell.state,
                    "plane": cell.cell.plane,
                    "training": cell.training.manifest(),
                    "held_out": cell.held_out.manifest(),
                }
                for cell in self.cells
            ],
            "volumes": {state: _volume_manifest(volume, split) for state, (volume, split) in volumes.items()},
        }


def build_slice_dataset(
    concept: Concept,
    data_root: Path,
    crops: Crops,
    *,
    um_per_px: float | None = None,
    px_per_voxel: float | None = None,
    images_per_class: int | None = None,
    held_out_fraction: float = 0.2,
) -> SliceDataset:
    """Return the samples of a concept cut from the volumes of a folder.

    um_per_px: the one pixel scale of all images; by default the first volume's voxel size along the weft plane's
    axis. px_per_voxel: the scale where no voxel size is known; by default a pixel is a voxel. images_per_class: at most
    so many slices of each cell, evenly spaced over its training block. held_out_fraction: see `splits.split_volume`.
    Raises DataError for volumes that cannot be used so, SettingsError for values out of range.
    """
    refuse_settings(
        crops,
        *_scale_problems("um_per_px", um_per_px, "a size in um"),
        *_scale_problems("px_per_voxel", px_per_voxel, "a factor"),
        *count_problems(images_per_class),
    )
    volumes = _open_needed(concept, data_root)
    scale = _common_scale(list(volumes.values()), um_per_px, px_per_voxel)
    splits = _split_all(concept, volumes, scale, crops, held_out_fraction)
    cells = [_cell_images(cell, volumes[cell.state], splits[cell.state], scale) for cell in concept.cells]
    empty = [
        f"{side.volume.spec.path.name} {side.plane}: all {side.num_blank} slices of the {name} block are blank "
        f"(contrast below {BLANK_CONTRAST} of the window). Check the volume and its window, or leave this plane out."
        for cell in cells
        for name, side in (("training", cell.training), ("held-out", cell.held_out))
        if not len(side)
    ]
    if empty:
        raise DataError(str(data_root), *empty)
    if images_per_class is not None:
        cells = [replace(cell, training=cell.training.limited(images_per_class)) for cell in cells]
    return SliceDataset(cells, crops)


def _scale_problems(name: str, value: float | None, expected: str) -> list[str]:
    if value is None or (math.isfinite(value) and value > 0):
        return []
    return [f"--{name}: found {value}, expected {expected} above 0."]


def _open_needed(concept: Concept, data_root: Path) -> dict[str, Volume]:
    """Return the volume of each state of a concept, each opened once; what is wrong with any is reported together."""
    specs = read_volume_specs(data_root)
    volumes: dict[str, Volume] = {}
    problems: list[str] = []
    for state in dict.fromkeys(cell.state for cell in concept.cells):
        try:
            volumes[state] = open_volume(specs[state])
        except DataError as error:
            problems.extend(f"{error.where}: {problem}" for problem in error.problems)
    if problems:
        raise DataError(f"volumes of the concept {concept.name}", *problems)
    return volumes


def _common_scale(volumes: Sequence[Volume], um_per_px: float | None, px_per_voxel: float | None) -> PixelScale:
    """Return the one scale of all images: in um where every voxel size is known, in voxels where none is."""
    unknown = [volume for volume in volumes if volume.voxel_size_um is None]
    known = [volume for volume in volumes if volume.voxel_size_um is not None]
    where = str(volumes[0].spec.path.parent)
    if px_per_voxel is not None and known:
        raise DataError(
            where,
            *[
                f"{volume.spec.path.name}: has voxels of {volume.voxel_size_um} um, and --px_per_voxel is for volumes "
                "whose voxel size nobody knows. Give --um_per_px instead."
                for volume in known
            ],
        )
    if unknown and (um_per_px is not None or known):
        reason = "--um_per_px asks for a scale" if um_per_px is not None else "other volumes have one"
        raise DataError(
            where,
            *[
                f"{volume.spec.path.name}: the voxel size is unknown, and {reason}, so that its slices cannot be "
                "brought to one pixel scale. Say its voxel size in volumes.yaml."
                for volume in unknown
            ],
        )
    if unknown:
        return PixelScale(None, px_per_voxel or 1.0)
    assert volumes[0].voxel_size_um is not None
    return PixelScale(um_per_px or float(volumes[0].voxel_size_um[volumes[0].spec.planes["weft"]]))


def _split_all(
    concept: Concept, volumes: Mapping[str, Volume], scale: PixelScale, crops: Crops, held_out_fraction: float
) -> dict[str, BlockSplit]:
    """Return the split of each volume; whatever is too small for a crop, in any of them, is reported together."""
    splits: dict[str, BlockSplit] = {}
    whole = [
        Slices(volumes[cell.state], whole_block(volumes[cell.state]), cell.plane, scale, indices=(), num_blank=0)
        for cell in concept.cells
    ]
    needed_px = crops.resolution if crops.bucket_batch is None else judged_px(whole, crops.resolution)
    problems = [problem for slices in whole for problem in _size_problems(slices, needed_px, crops)]
    for state, volume in volumes.items():
        factor = scale.factors(volume)[volume.spec.planes["weft"]]
        try:
            splits[state] = split_volume(
                volume, smallest_px=math.ceil(needed_px / factor - 1e-6), held_out_fraction=held_out_fraction
            )
        except DataError as error:
            problems.extend(f"{error.where}: {problem}" for problem in error.problems)
    if problems:
        raise DataError("volumes too small for a crop", *problems)
    return splits


def judged_px(sides: Sequence[Slices], resolution: int) -> int:
    """Return the side of the squares by which windows of slices are judged: the largest that fits all, in units.

    At most the resolution, and at least the shortest side that a window may have.
    """
    unit = unit_px(resolution)
    shortest = min(min(side.shape_px) for side in sides)
    return max(min(shortest, resolution) // unit * unit, shortest_side(resolution))


def _crop_shape(slices: Slices, crops: Crops) -> Shape:
    if crops.bucket_batch is None:
        return crops.square
    shape = window_shape(slices.shape_px, crops.resolution)
    assert shape is not None, "slices that are too small were refused"
    return shape


def _cell_images(cell: Cell, volume: Volume, split: BlockSplit, scale: PixelScale) -> CellImages:
    return CellImages(
        cell,
        split,
        training=find_slices(volume, split.training, cell.plane, scale),
        held_out=find_slices(volume, split.held_out, cell.plane, scale),
    )


def _size_problems(slices: Slices, smallest_px: int, crops: Crops) -> list[str]:
    """Return what to tell the user when a crop does not fit these slices: an image is never squashed to fit."""
    rows, columns = slices.shape_px
    if min(rows, columns) >= smallest_px:
        return []
    if slices.um_per_px is not None:
        finer = f"a finer --um_per_px, at most {slices.um_per_px * min(rows, columns) / smallest_px:.4g}"
    else:
        finer = f"a larger --px_per_voxel, at least {slices.scale.px_per_voxel * smallest_px / min(rows, columns):.4g}"
    if crops.bucket_batch is None:
        buckets, largest = "", min(rows, columns)
    else:
        buckets, largest = " with --aspect_buckets", next_resolution(min(rows, columns), crops.resolution)
    return [
        f"{slices.volume.spec.path.name} {slices.plane}: slices have {rows} x {columns} px at {slices.scale}, expected "
        f"at least {smallest_px} x {smallest_px} for --resolution {crops.resolution}{buckets}. Choose a smaller "
        f"--resolution, at most {largest}, or {finer}."
    ]


def _even_crops(slices: Slices, resolution: int, num_images: int) -> np.ndarray:
    """Return evenly spaced crops as float32 (N, 3, H, W) in [-1, 1], no two of them overlapping within a slice."""
    origins = tile_origins(slices.shape_px, resolution)
    items = evenly_spaced(len(slices), min(num_images, len(slices) * len(origins)))
    # tiles go round, so that neighbouring slices, near-duplicates, show different places
    crops = [
        to_model_range(crop(slices.pixels(item), origins[number % len(origins)], (resolution, resolution)))
        for number, item in enumerate(items)
    ]
    return np.stack(crops) if crops else np.zeros((0, 3, resolution, resolution), np.float32)


def _volume_manifest(volume: Volume, split: BlockSplit) -> dict[str, object]:
    size = volume.voxel_size_um
    return {
        "file": volume.spec.path.name,
        "content_hash": volume.content_hash(),
        "shape": [int(length) for length in volume.shape],
        "planes": dict(volume.spec.planes),
        "voxel_size_um": None if size is None else [float(length) for length in size],
        "window": [float(edge) for edge in volume.window],
        "split": split.manifest(),
    }
