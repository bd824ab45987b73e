"""From a tif file to the tensor of a batch: grey levels survive, and what is held out reaches no training sample."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.concepts import Cell, Concept
from data.crops import Crops
from data.dataset import CellImages, SliceDataset, build_slice_dataset
from data.errors import DataError
from data.slices import PixelScale, find_slices
from data.splits import SMALLEST_GAP_PX, split_volume
from data.tif.writer import write_stack
from data.transforms import scale_factor
from data.volume_specs import PLANES, VolumeSpec
from data.volumes import Volume

MAPS = [dict(zip(PLANES, axes, strict=True)) for axes in permutations(range(3))]
DRY = Concept("sf_dry", tuple(Cell("dry", plane) for plane in PLANES), "slice")


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("encoding", [None, "zlib"])
def test_a_16_bit_ramp_keeps_its_grey_levels_and_their_order_to_the_tensor(
    dtype: str, encoding: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    levels = np.linspace(1, 65_535, 1024).astype(np.uint16)
    ramp = np.broadcast_to(levels, (20, 300, 1024)).astype(np.int32)
    ramp = (ramp - (32_768 if dtype == "int16" else 0)).astype(dtype)
    tifffile.imwrite(
        tmp_path / "dry.tif", ramp, photometric="minisblack", compression=None if encoding == "plain" else "zlib"
    )
    dataset = build_slice_dataset(
        Concept("c", (Cell("dry", "thickness"),), "slice"), tmp_path, Crops(resolution=280, seed=3)
    )
    low, high = dataset.grey_values["sf_dry sf_thickness"]["window"]  # type: ignore[misc]
    seen: dict[int, float] = {}
    for position in range(12):
        sample = dataset.sample(position)
        column = int(sample.source.split(", ")[1].rstrip(")"))
        tensor = torch.from_numpy(sample.pixels)
        assert tensor.dtype == torch.float32
        row = tensor[0, 0]
        assert torch.equal(tensor, row.expand(3, 280, 280))
        inside = (ramp[0, 0, column : column + 280] >= low) & (ramp[0, 0, column : column + 280] <= high)
        assert inside.sum() >= 250
        assert bool((row[1:] > row[:-1])[torch.from_numpy(inside[1:] & inside[:-1])].all())  # order is kept
        assert len(torch.unique(row)) >= 250
        seen |= dict(zip(range(column, column + 280), row.tolist(), strict=True))
    values = np.array(sorted(seen.items()))
    grey = low + (values[:, 1] + 1) / 2 * (high - low)
    native = np.clip(ramp[0, 0, values[:, 0].astype(int)], low, high)
    np.testing.assert_allclose(grey, native, atol=0.5)  # half a grey level of the scan, not of 8 bits


def numbered(shape: tuple[int, int, int]) -> np.ndarray:
    """Every voxel has a value of its own: disordered, brighter along each axis, so that no slice is blank."""
    brightness = sum(np.linspace(0, 1, size).reshape(np.roll([size, 1, 1], axis)) for axis, size in enumerate(shape))
    disorder = np.random.default_rng(5).random(shape)
    values = np.empty(disorder.size, np.uint16)
    values[np.argsort((brightness + disorder).ravel())] = np.arange(disorder.size)
    return values.reshape(shape)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    thin=st.tuples(st.integers(6, 14), st.integers(6, 24)),
    length=st.integers(34, 110),
    planes=st.sampled_from(MAPS),
    fraction=st.floats(0.05, 0.6),
    crop_px=st.integers(3, 6),
    seed=st.integers(0, 9),
)
def test_no_training_crop_shares_a_voxel_with_a_held_out_crop(
    tmp_path_factory: pytest.TempPathFactory,
    thin: tuple[int, int],
    length: int,
    planes: dict[str, int],
    fraction: float,
    crop_px: int,
    seed: int,
) -> None:
    shape = [0, 0, 0]
    for plane, size in zip(PLANES, (*thin, length), strict=True):
        shape[planes[plane]] = size
    voxels = numbered((shape[0], shape[1], shape[2]))
    folder = tmp_path_factory.mktemp("scan")
    write_stack(folder / "dry.tif", voxels, None)
    declared = {"planes": planes, "window": [0, int(voxels.max())], "shape": shape}
    (folder / "volumes.yaml").write_text(yaml.safe_dump({"dry": declared}))
    crops = Crops(resolution=crop_px, seed=seed, random_flip=True)
    if length - max(crop_px, round(length * fraction)) - max(SMALLEST_GAP_PX, length // 8) < crop_px:
        with suppress(DataError):  # it may be too short for two blocks and a gap, and must be told, not squeezed
            build_slice_dataset(DRY, folder, crops, held_out_fraction=fraction)
        return
    dataset = build_slice_dataset(DRY, folder, crops, held_out_fraction=fraction)
    order = np.argsort(voxels.ravel())

    def places(pixels: np.ndarray) -> np.ndarray:
        """Where in the volume the pixels of crops come from, as flat indices."""
        return order[np.rint((pixels[..., 0, :, :].astype(np.float64) + 1) / 2 * int(voxels.max())).astype(int).ravel()]

    trained = np.unique([places(dataset.sample(position).pixels) for position in range(len(dataset))])
    held_out = np.unique(np.concatenate([places(pixels) for pixels in dataset.held_out_pixels(10_000).values()]))
    assert not np.intersect1d(trained, held_out).size
    along = planes["weft"]
    last, first = (np.unravel_index(found, shape)[along] for found in (trained, held_out))
    assert first.min() - last.max() - 1 >= dataset.cells[0].split.gap_px >= SMALLEST_GAP_PX


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    sides_um=st.tuples(*[st.floats(10, 60)] * 3),
    um_per_px=st.floats(10, 60),
    planes=st.sampled_from(MAPS),
    fraction=st.floats(0.1, 0.5),
)
def test_what_lies_outside_the_training_block_changes_no_training_sample_at_any_scale(
    sides_um: tuple[float, float, float], um_per_px: float, planes: dict[str, int], fraction: float
) -> None:
    """Rescaling looks at neighbours: of the training block alone, and so for the held-out block."""
    shape = [18, 18, 18]
    shape[planes["weft"]] = 90
    spec = VolumeSpec("dry", Path("dry.tif"), planes)
    voxels = numbered((shape[0], shape[1], shape[2]))
    volume = Volume(spec, voxels, sides_um, (0.0, float(voxels.max())))
    crop_px = 3
    factors = [scale_factor(side, um_per_px) for side in sides_um]
    assume(all(factor * 18 >= crop_px + 1 for factor in factors))
    smallest = int(np.ceil(crop_px / factors[planes["weft"]])) + 1
    split = split_volume(volume, smallest_px=smallest, held_out_fraction=fraction)

    def dataset_of(changed: Volume) -> SliceDataset:
        scale = PixelScale(um_per_px)
        cells = [
            CellImages(
                Cell("dry", plane),
                split,
                replace(find_slices(volume, split.training, plane, scale), volume=changed),
                replace(find_slices(volume, split.held_out, plane, scale), volume=changed),
            )
            for plane in PLANES
        ]
        return SliceDataset(cells, Crops(resolution=crop_px, seed=1))

    def without(kept: str) -> Volume:
        """The volume in which everything but one block has other values."""
        block = {"training": split.training, "held_out": split.held_out}[kept]
        other = voxels[::-1, ::-1, ::-1].copy()
        inside = tuple(slice(*bounds) for bounds in block.bounds)
        other[inside] = voxels[inside]
        assert (other != voxels).mean() > 0.1
        return replace(volume, voxels=other)

    plain, only_training, only_held_out = map(dataset_of, (volume, without("training"), without("held_out")))
    for position in range(0, len(plain), 5):
        np.testing.assert_array_equal(plain.sample(position).pixels, only_training.sample(position).pixels)
    for caption, pixels in plain.held_out_pixels(20).items():
        np.testing.assert_array_equal(pixels, only_held_out.held_out_pixels(20)[caption])
        assert not np.array_equal(pixels, only_training.held_out_pixels(20)[caption])
