"""Slices of a volume as grey images of one pixel scale: rescaled, without the blank ones, never turned or squashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data.concepts import Cell
from data.splits import Block, BlockSplit, effective_sample_size, slice_autocorrelation, slice_axes
from data.transforms import cubic, rescaled, rescaled_shape, scale_factor
from data.volumes import Volume
from data.windows import window_to_unit

# A slice whose block means differ by less than this share of the window shows air, padding or plain resin. Noise as in
# a laboratory scan (0.1 of the window, correlated) gives 0.025; the faintest slice of the generated weaves has 0.049.
BLANK_CONTRAST = 0.03
BLANK_BLOCK_PX = 8


@dataclass(frozen=True)
class PixelScale:
    """The one pixel scale of all slices of a run.

    um_per_px: None where no voxel size is known; px_per_voxel says the scale then, and is 1 otherwise.
    """

    um_per_px: float | None
    px_per_voxel: float = 1.0

    def __post_init__(self) -> None:
        assert self.um_per_px is None or self.px_per_voxel == 1, "a scale in um leaves no factor to choose"

    def __str__(self) -> str:
        if self.um_per_px is not None:
            return f"1 px = {self.um_per_px:g} um"
        number = 1 / self.px_per_voxel
        return f"1 px = {number:g} {'voxel' if number == 1 else 'voxels'} of unknown size"

    def factors(self, volume: Volume) -> tuple[float, float, float]:
        """Return the pixels per voxel along (Z, Y, X); voxels that are nearly cubes count as such, see `cubic`."""
        if self.um_per_px is None:
            return self.px_per_voxel, self.px_per_voxel, self.px_per_voxel
        assert volume.voxel_size_um is not None, "a scale in um needs a voxel size"
        sides = cubic(volume.voxel_size_um, volume.spec.planes["weft"])
        z, y, x = (scale_factor(side, self.um_per_px) for side in sides)
        return z, y, x


@dataclass(frozen=True)
class Slices:
    """Slices of one plane, cut to one block of a volume, as pixels of the run's scale.

    indices: their numbers in the whole volume. num_blank: slices of the block that were left out as blank.
    """

    volume: Volume
    block: Block
    plane: str
    scale: PixelScale
    indices: tuple[int, ...]
    num_blank: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def um_per_px(self) -> float | None:
        """The pixel scale; None where the voxel size is unknown."""
        return self.scale.um_per_px

    @cached_property
    def factors(self) -> tuple[float, float]:
        """Pixels per voxel along (row, column)."""
        factors = self.scale.factors(self.volume)
        row, column = (factors[axis] for axis in slice_axes(self.volume, self.plane))
        return row, column

    @property
    def shape_px(self) -> tuple[int, int]:
        """The (rows, columns) of each slice."""
        return rescaled_shape(self.block.slice_shape(self.volume, self.plane), self.factors)

    @cached_property
    def effective_size(self) -> float:
        """How many independent slices say as much as these; see `effective_sample_size`. Measured on the voxels."""
        if len(self) < 2:
            return float(len(self))
        axis = self.volume.spec.planes[self.plane]
        curve = slice_autocorrelation(self.block.voxels(self.volume), axis)
        step = round((self.indices[-1] - self.indices[0]) / (len(self) - 1))
        return effective_sample_size(curve[step - 1 :: step], len(self))

    def pixels(self, item: int) -> np.ndarray:
        """Return one slice, item 0 to len - 1, as float32 (row, column) in [0, 1] of the volume's window."""
        return rescaled(_unit_plane(self.volume, self.block, self.plane, self.indices[item]), self.factors)

    def name(self, item: int) -> str:
        """Return which slice an item is, as "dry.tif warp 87"."""
        return f"{self.volume.spec.path.name} {self.plane} {self.indices[item]}"

    def source(self, item: int, origin_px: tuple[int, int]) -> str:
        """Return where a crop was cut, as "dry.tif warp 87 @ (12, 40)": slice, and (row, column) in it, in voxels."""
        first = self.block.origin(self.volume, self.plane)
        row, column = (
            round(start + px / factor) for start, px, factor in zip(first, origin_px, self.factors, strict=True)
        )
        return f"{self.name(item)} @ ({row}, {column})"

    def limited(self, num_slices: int) -> Slices:
        """Return at most a number of these slices, evenly spaced."""
        chosen = tuple(self.indices[item] for item in evenly_spaced(len(self), min(num_slices, len(self))))
        return replace(self, indices=chosen)

    def manifest(self) -> dict[str, object]:
        """Return counts, sizes and the numbers of the slices, as JSON can hold them."""
        return {
            "num_images": len(self),
            "num_blank": self.num_blank,
            "effective_size": round(self.effective_size, 1),
            "size_px": list(self.shape_px),
            "slices": list(self.indices),
        }


@dataclass(frozen=True)
class CellImages:
    """The slices of one cell, from both sides of its volume's split."""

    cell: Cell
    split: BlockSplit
    training: Slices
    held_out: Slices


def find_slices(volume: Volume, block: Block, plane: str, scale: PixelScale) -> Slices:
    """Return the slices of a plane in a block, without the blank ones.

    Blank: the standard deviation of the means over blocks of BLANK_BLOCK_PX is below BLANK_CONTRAST of the window.
    """
    everything = block.indices(volume, plane)
    indices = tuple(i for i in everything if _contrast(_unit_plane(volume, block, plane, i)) >= BLANK_CONTRAST)
    return Slices(volume, block, plane, scale, indices, num_blank=len(everything) - len(indices))


def blank_notes(cells: Sequence[CellImages]) -> list[str]:
    """Return how many slices were left out as blank and by which rule, in a line; none where there are none."""
    found = [
        f"{side.volume.spec.path.name} {side.plane} {side.num_blank} of "
        f"{len(side.block.indices(side.volume, side.plane))} ({name})"
        for cell in cells
        for name, side in (("training", cell.training), ("held out", cell.held_out))
        if side.num_blank
    ]
    rule = f"the means of their {BLANK_BLOCK_PX} px blocks vary by less than {BLANK_CONTRAST} of the window"
    return [f"blank       slices left out, as {rule}: {', '.join(found)}"] if found else []


def split_notes(cells: Sequence[CellImages]) -> list[str]:
    """Return the split of each volume, and its training slices beside the number of independent ones, in lines."""
    of_volume: dict[str, list[CellImages]] = {}
    for cell in cells:
        of_volume.setdefault(cell.training.volume.spec.path.name, []).append(cell)
    notes = []
    for name, group in of_volume.items():
        split = group[0].split
        (_, end), (start, stop) = split.training.bounds[split.axis], split.held_out.bounds[split.axis]
        sizes = [f"{cell.cell.plane} {len(cell.training)} ({cell.training.effective_size:.0f})" for cell in group]
        notes.append(
            f"split       {name}: voxels 0 to {end} of {'ZYX'[split.axis]} are trained on, {start} to {stop} held out; "
            f"slices (and how many independent ones they are worth): {', '.join(sizes)}"
        )
    return notes


def evenly_spaced(num_items: int, num_chosen: int) -> list[int]:
    """Return items 0 to num_items - 1, evenly spaced and in order; each at most ceil(num_chosen / num_items) times."""
    return [(2 * number + 1) * num_items // (2 * num_chosen) for number in range(num_chosen)]


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
