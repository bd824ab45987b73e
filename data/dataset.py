"""Training samples as a pure function of their position in a run, and held-out crops to judge the run by."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from data.captions import is_dropped
from data.concepts import Cell, Concept
from data.errors import DataError, SettingsError
from data.randomness import permuted_index
from data.splits import Block, BlockSplit, slice_axes, split_volume, whole_block
from data.transforms import (
    allowed_flips,
    center_crop_origin,
    crop,
    flipped,
    random_crop_origin,
    rescaled,
    rescaled_shape,
    scale_factor,
    tile_origins,
    to_model_range,
)
from data.volumes import Volume, open_volume, read_volume_specs, window_to_unit

# A slice whose block means differ by less than this share of the window shows air, padding or plain resin. Noise as in
# a laboratory scan (0.1 of the window, correlated) gives 0.025; the faintest slice of the generated weaves has 0.049.
BLANK_CONTRAST = 0.03
BLANK_BLOCK_PX = 8


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
        """Return the number of images in an epoch."""

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs; a pure function of it."""

    def manifest(self) -> dict[str, object]:
        """Return what the samples are made from, as JSON can hold it."""


class ConceptDataset(Dataset, Protocol):
    """Data of a concept: what is trained on, and images kept out of training to judge the run by."""

    @property
    def resolution(self) -> int:
        """The side of every image in px."""

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


@dataclass(frozen=True)
class Slices:
    """Slices of one plane, cut to one block of a volume, as pixels of the run's scale.

    indices: their numbers in the whole volume. num_blank: slices of the block that were left out as blank.
    um_per_px: the scale; None where the voxel size is unknown and a pixel is a voxel.
    """

    volume: Volume
    block: Block
    plane: str
    um_per_px: float | None
    indices: tuple[int, ...]
    num_blank: int

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def factors(self) -> tuple[float, float]:
        """Pixels per voxel along (row, column)."""
        if self.um_per_px is None:
            return 1.0, 1.0
        voxel_size_um = self.volume.voxel_size_um
        assert voxel_size_um is not None, "a scale needs a voxel size"
        axes = slice_axes(self.volume, self.plane)
        row, column = (scale_factor(voxel_size_um[axis], self.um_per_px) for axis in axes)
        return row, column

    @property
    def shape_px(self) -> tuple[int, int]:
        """The (rows, columns) of each slice."""
        return rescaled_shape(self.block.slice_shape(self.volume, self.plane), self.factors)

    def pixels(self, item: int) -> np.ndarray:
        """Return one slice, item 0 to len - 1, as float32 (row, column) in [0, 1] of the volume's window."""
        return rescaled(_unit_plane(self.volume, self.block, self.plane, self.indices[item]), self.factors)

    def source(self, item: int, origin_px: tuple[int, int]) -> str:
        """Return where a crop was cut, as "dry.tif warp 87 @ (12, 40)": slice, and (row, column) in it, in voxels."""
        first = self.block.origin(self.volume, self.plane)
        row, column = (
            round(start + px / factor) for start, px, factor in zip(first, origin_px, self.factors, strict=True)
        )
        return f"{self.volume.spec.path.name} {self.plane} {self.indices[item]} @ ({row}, {column})"

    def limited(self, num_slices: int) -> Slices:
        """Return at most a number of these slices, evenly spaced."""
        chosen = tuple(self.indices[item] for item in evenly_spaced(len(self), min(num_slices, len(self))))
        return replace(self, indices=chosen)


@dataclass(frozen=True)
class CellImages:
    """The slices of one cell, from both sides of its volume's split."""

    cell: Cell
    split: BlockSplit
    training: Slices
    held_out: Slices


def find_slices(volume: Volume, block: Block, plane: str, um_per_px: float | None) -> Slices:
    """Return the slices of a plane in a block, without the blank ones.

    Blank: the standard deviation of the means over blocks of BLANK_BLOCK_PX is below BLANK_CONTRAST of the window.
    """
    everything = block.indices(volume, plane)
    indices = tuple(i for i in everything if _contrast(_unit_plane(volume, block, plane, i)) >= BLANK_CONTRAST)
    return Slices(volume, block, plane, um_per_px, indices, num_blank=len(everything) - len(indices))


class SliceDataset:
    """Square crops of the training blocks of volumes: each slice once in an epoch, in an order of the epoch's own.

    Cells with more slices are seen more often: nothing is balanced. Held-out slices are never sampled.
    """

    def __init__(
        self,
        cells: Sequence[CellImages],
        *,
        resolution: int,
        seed: int,
        random_flip: bool = False,
        center_crop: bool = False,
        proportion_empty_prompts: float = 0.0,
    ) -> None:
        """resolution: side of a crop in px. random_flip: mirror each image as its plane allows, or not, by chance.

        center_crop: crop the middle, not a random place. proportion_empty_prompts: of the samples lose their caption.
        Raises DataError for slices that are smaller than a crop, SettingsError for values out of range.
        """
        assert cells, "a dataset has at least one cell"
        assert len({cell.training.um_per_px for cell in cells}) == 1, "all cells have one pixel scale"
        _check_settings(resolution=resolution, proportion_empty_prompts=proportion_empty_prompts)
        problems = [
            problem
            for cell in cells
            for side in (cell.training, cell.held_out)
            for problem in _size_problems(side, resolution)
        ]
        if problems:
            raise DataError("slices smaller than a crop", *problems)
        self.cells = tuple(cells)
        self.resolution = resolution
        self.seed = seed
        self.random_flip = random_flip
        self.center_crop = center_crop
        self.proportion_empty_prompts = proportion_empty_prompts
        self._ends = list(accumulate(len(cell.training) for cell in cells))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, in the order of the cells; a dropped caption is none of them."""
        return tuple(dict.fromkeys(cell.cell.caption for cell in self.cells))

    @property
    def um_per_px(self) -> float | None:
        """The one pixel scale of all images; None where a pixel is a voxel of unknown size."""
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

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs."""
        index = permuted_index(self.seed, position, len(self))
        number = bisect_right(self._ends, index)
        cell = self.cells[number]
        item = index - (self._ends[number] - len(cell.training))
        pixels = cell.training.pixels(item)
        shape = cell.training.shape_px
        if self.center_crop:
            origin = center_crop_origin(shape, self.resolution)
        else:
            origin = random_crop_origin(shape, self.resolution, seed=self.seed, position=position)
        pixels = crop(pixels, origin, self.resolution)
        if self.random_flip:
            pixels = flipped(pixels, allowed_flips(cell.cell.plane), seed=self.seed, position=position)
        left_out = is_dropped(proportion=self.proportion_empty_prompts, seed=self.seed, position=position)
        return Sample(
            to_model_range(pixels),
            "" if left_out else cell.cell.caption,
            is_prior=False,
            source=cell.training.source(item, origin),
            is_dropped=left_out,
        )

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return crops of the held-out blocks at the run's scale, by caption: float32 (N, 3, H, W) in [-1, 1].

        Evenly spaced, neither overlapping nor mirrored; N is num_images, or as many as fit where that is less.
        """
        return {cell.cell.caption: _even_crops(cell.held_out, self.resolution, num_images) for cell in self.cells}

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return crops of the training blocks like those of `held_out_pixels`; their difference is a metric's floor."""
        return {cell.cell.caption: _even_crops(cell.training, self.resolution, num_images) for cell in self.cells}

    def manifest(self) -> dict[str, object]:
        """Return volumes, windows, splits, scale and counts, as JSON can hold them."""
        volumes = {cell.cell.state: (cell.training.volume, cell.split) for cell in self.cells}
        return {
            "resolution_px": self.resolution,
            "um_per_px": self.um_per_px,
            "scale": "1 px = 1 voxel of unknown size" if self.um_per_px is None else f"1 px = {self.um_per_px:g} um",
            "num_images": len(self),
            "seed": self.seed,
            "random_flip": self.random_flip,
            "center_crop": self.center_crop,
            "proportion_empty_prompts": self.proportion_empty_prompts,
            "blank_contrast": BLANK_CONTRAST,
            "cells": [
                {
                    "caption": cell.cell.caption,
                    "state": cell.cell.state,
                    "plane": cell.cell.plane,
                    "training": _slices_manifest(cell.training),
                    "held_out": _slices_manifest(cell.held_out),
                }
                for cell in self.cells
            ],
            "volumes": {state: _volume_manifest(volume, split) for state, (volume, split) in volumes.items()},
        }


def build_slice_dataset(
    concept: Concept,
    data_root: Path,
    *,
    resolution: int,
    seed: int,
    um_per_px: float | None = None,
    images_per_class: int | None = None,
    random_flip: bool = False,
    center_crop: bool = False,
    proportion_empty_prompts: float = 0.0,
    held_out_fraction: float = 0.2,
) -> SliceDataset:
    """Return the samples of a concept cut from the volumes of a folder.

    um_per_px: the one pixel scale of all images; by default the first volume's voxel size along the weft plane's
    axis, and a pixel is a voxel where no voxel size is known. images_per_class: at most so many slices of each cell,
    evenly spaced over its training block. held_out_fraction: see `splits.split_volume`. For the rest see
    `SliceDataset`.
    Raises DataError for volumes that cannot be used so, SettingsError for values out of range.
    """
    _check_settings(
        resolution=resolution,
        proportion_empty_prompts=proportion_empty_prompts,
        um_per_px=um_per_px,
        images_per_class=images_per_class,
    )
    volumes = _open_needed(concept, data_root)
    scale = _common_scale(list(volumes.values()), um_per_px)
    splits = _split_all(concept, volumes, scale, resolution, held_out_fraction)
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
    return SliceDataset(
        cells,
        resolution=resolution,
        seed=seed,
        random_flip=random_flip,
        center_crop=center_crop,
        proportion_empty_prompts=proportion_empty_prompts,
    )


def _check_settings(
    *,
    resolution: int,
    proportion_empty_prompts: float,
    um_per_px: float | None = None,
    images_per_class: int | None = None,
) -> None:
    problems = []
    if resolution < 1:
        problems.append(f"--resolution: found {resolution}, expected at least 1 px.")
    if not 0 <= proportion_empty_prompts <= 1:
        problems.append(f"--proportion_empty_prompts: found {proportion_empty_prompts}, expected 0 to 1.")
    if um_per_px is not None and not (math.isfinite(um_per_px) and um_per_px > 0):
        problems.append(f"--um_per_px: found {um_per_px}, expected a size in um above 0.")
    if images_per_class is not None and images_per_class < 1:
        problems.append(f"--images_per_class: found {images_per_class}, expected at least 1.")
    if problems:
        raise SettingsError("data settings", *problems)


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


def _common_scale(volumes: Sequence[Volume], um_per_px: float | None) -> float | None:
    """Return the um per px of all images, None where no voxel size is known and none is asked for."""
    unknown = [volume for volume in volumes if volume.voxel_size_um is None]
    if unknown and (um_per_px is not None or len(unknown) < len(volumes)):
        reason = "--um_per_px asks for a scale" if um_per_px is not None else "other volumes have one"
        raise DataError(
            str(unknown[0].spec.path.parent),
            *[
                f"{volume.spec.path.name}: the voxel size is unknown, and {reason}, so that its slices cannot be "
                "brought to one pixel scale. Say its voxel size in volumes.yaml."
                for volume in unknown
            ],
        )
    if um_per_px is not None or unknown:
        return um_per_px
    assert volumes[0].voxel_size_um is not None
    return float(volumes[0].voxel_size_um[volumes[0].spec.planes["weft"]])


def _split_all(
    concept: Concept,
    volumes: Mapping[str, Volume],
    um_per_px: float | None,
    resolution: int,
    held_out_fraction: float,
) -> dict[str, BlockSplit]:
    """Return the split of each volume; whatever is too small for a crop, in any of them, is reported together."""
    splits: dict[str, BlockSplit] = {}
    problems: list[str] = []
    for cell in concept.cells:
        volume = volumes[cell.state]
        everything = Slices(volume, whole_block(volume), cell.plane, um_per_px, indices=(), num_blank=0)
        problems.extend(_size_problems(everything, resolution))
    for state, volume in volumes.items():
        factor = 1.0
        if um_per_px is not None:
            assert volume.voxel_size_um is not None
            factor = scale_factor(volume.voxel_size_um[volume.spec.planes["weft"]], um_per_px)
        try:
            splits[state] = split_volume(
                volume, smallest_px=math.ceil(resolution / factor - 1e-6), held_out_fraction=held_out_fraction
            )
        except DataError as error:
            problems.extend(f"{error.where}: {problem}" for problem in error.problems)
    if problems:
        raise DataError("volumes too small for a crop", *problems)
    return splits


def _cell_images(cell: Cell, volume: Volume, split: BlockSplit, um_per_px: float | None) -> CellImages:
    return CellImages(
        cell,
        split,
        training=find_slices(volume, split.training, cell.plane, um_per_px),
        held_out=find_slices(volume, split.held_out, cell.plane, um_per_px),
    )


def _size_problems(slices: Slices, resolution: int) -> list[str]:
    """Return what to tell the user when a crop does not fit these slices: an image is never squashed to fit."""
    rows, columns = slices.shape_px
    if min(rows, columns) >= resolution:
        return []
    if slices.um_per_px is None:
        scale, finer = "1 voxel per px", "say the voxel size in volumes.yaml and choose a finer --um_per_px"
    else:
        scale = f"{slices.um_per_px:g} um per px"
        finer = f"a finer --um_per_px, at most {slices.um_per_px * min(rows, columns) / resolution:.4g}"
    return [
        f"{slices.volume.spec.path.name} {slices.plane}: slices have {rows} x {columns} px at {scale}, expected at "
        f"least {resolution} x {resolution} for --resolution {resolution}. Choose a smaller --resolution, at most "
        f"{min(rows, columns)}, or {finer}."
    ]


def _unit_plane(volume: Volume, block: Block, plane: str, index: int) -> np.ndarray:
    low, high = volume.window
    pixels, _ = window_to_unit(block.plane(volume, plane, index), low=low, high=high)
    return pixels


def _contrast(pixels: np.ndarray) -> float:
    """Return the standard deviation of the block means of an image; small images have blocks of half a side."""
    size = max(1, min(BLANK_BLOCK_PX, min(pixels.shape) // 2))
    rows, columns = (length // size for length in pixels.shape)
    blocks = pixels[: rows * size, : columns * size].reshape(rows, size, columns, size)
    return float(blocks.mean(axis=(1, 3)).std())


def _even_crops(slices: Slices, resolution: int, num_images: int) -> np.ndarray:
    """Return evenly spaced crops as float32 (N, 3, H, W) in [-1, 1], no two of them overlapping within a slice."""
    origins = tile_origins(slices.shape_px, resolution)
    items = evenly_spaced(len(slices), min(num_images, len(slices) * len(origins)))
    # tiles go round, so that neighbouring slices, near-duplicates, show different places
    crops = [
        to_model_range(crop(slices.pixels(item), origins[number % len(origins)], resolution))
        for number, item in enumerate(items)
    ]
    return np.stack(crops) if crops else np.zeros((0, 3, resolution, resolution), np.float32)


def evenly_spaced(num_items: int, num_chosen: int) -> list[int]:
    """Return items 0 to num_items - 1, evenly spaced and in order; each at most ceil(num_chosen / num_items) times."""
    return [(2 * number + 1) * num_items // (2 * num_chosen) for number in range(num_chosen)]


def _slices_manifest(slices: Slices) -> dict[str, object]:
    return {
        "num_images": len(slices),
        "num_blank": slices.num_blank,
        "size_px": list(slices.shape_px),
        "slices": list(slices.indices),
    }


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
