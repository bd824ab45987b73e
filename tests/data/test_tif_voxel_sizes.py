from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from data.tif.stacks import open_stack
from data.tif.voxel_sizes import tif_voxel_size_um
from tests.tif_variants import voxels_of


@pytest.mark.parametrize(
    ("unit", "spacing", "resolution", "expected"),
    [
        ("mm", 0.025, (50, 40), (25.0, 25.0, 20.0)),
        ("um", 20.2, (1 / 40, 1 / 30), (20.2, 30.0, 40.0)),
        ("micron", 20.0, (1 / 40, 1 / 40), (20.0, 40.0, 40.0)),
        ("\\u00B5m", 20.0, (1 / 40, 1 / 40), (20.0, 40.0, 40.0)),
        ("nm", 500.0, (1 / 250, 1 / 250), (0.5, 0.25, 0.25)),
        ("inch", 0.01, (100, 100), (254.0, 254.0, 254.0)),
        ("pixel", 1.0, (1, 1), None),
        ("um", 0.0, (1 / 40, 1 / 40), None),
        ("um", float("nan"), (1 / 40, 1 / 40), None),
    ],
)
def test_the_voxel_size_is_read_from_imagej_metadata(
    unit: str, spacing: float, resolution: tuple[float, float], expected: tuple[float, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "unit": unit, "spacing": spacing}
    tifffile.imwrite(path, voxels_of(), imagej=True, resolution=resolution, metadata=metadata)
    assert open_stack(path).voxel_size_um == (None if expected is None else pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize(
    ("version", "metadata", "voxels", "expected"),
    [
        ("1.54p", {"unit": "mm"}, voxels_of(), (1000.0, 1000.0, 1000.0)),
        ("1.54", {"unit": "micron"}, voxels_of(), (1.0, 1.0, 1.0)),
        ("1.54p", {"unit": "um", "spacing": 2.0}, voxels_of(), (2.0, 1.0, 1.0)),
        ("1.54p", {}, voxels_of(), None),  # in pixels
        ("1.54p", {"unit": "um"}, voxels_of()[0], None),  # a slice of a folder: ImageJ never writes its spacing
        ("1.11a", {"unit": "um"}, voxels_of(), None),  # tifffile, which was not told the spacing
    ],
)
def test_a_spacing_that_imagej_left_out_is_one(
    version: str,
    metadata: dict[str, object],
    voxels: np.ndarray,
    expected: tuple[float, ...] | None,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, voxels, imagej=True, resolution=(1, 1), metadata={"ImageJ": version, **metadata})
    with tifffile.TiffFile(path) as tif:
        assert ("spacing" in tif.imagej_metadata) == ("spacing" in metadata)
        assert str(tif.imagej_metadata["ImageJ"]) == version
        assert tif_voxel_size_um(tif) == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"PhysicalSizeX": 40.0, "PhysicalSizeY": 30.0, "PhysicalSizeZ": 20.0}, (20.0, 30.0, 40.0)),
        (
            {
                **{"PhysicalSizeX": 0.04, "PhysicalSizeY": 0.03, "PhysicalSizeZ": 20_000.0},
                **{"PhysicalSizeXUnit": "mm", "PhysicalSizeYUnit": "mm", "PhysicalSizeZUnit": "nm"},
            },
            (20.0, 30.0, 40.0),
        ),
        (
            {
                **{"PhysicalSizeX": 40.0, "PhysicalSizeY": 30.0, "PhysicalSizeZ": 20.0},
                **dict.fromkeys(("PhysicalSizeXUnit", "PhysicalSizeYUnit", "PhysicalSizeZUnit"), "µm"),
            },
            (20.0, 30.0, 40.0),
        ),
        ({"PhysicalSizeX": 40.0, "PhysicalSizeY": 30.0}, None),
        (
            {"PhysicalSizeX": 4.0, "PhysicalSizeY": 3.0, "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "pixel"},
            None,
        ),
        ({}, None),
    ],
)
def test_the_voxel_size_is_read_from_ome_metadata(
    metadata: dict[str, object], expected: tuple[float, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, voxels_of(), ome=True, metadata={"axes": "ZYX", **metadata})
    assert open_stack(path).voxel_size_um == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_the_voxel_size_is_unknown_where_only_a_screen_resolution_is_given(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", voxels_of(), resolution=(72, 72), resolutionunit="inch")
    assert open_stack(tmp_path / "a.tif").voxel_size_um is None
