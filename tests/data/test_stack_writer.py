from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import OutputError
from data.tif.stacks import map_voxels, open_stack
from data.tif.writer import write_stack
from tests.tif_variants import voxels_of


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_written_stack_reads_back_with_its_voxel_size(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "slices.tif"
    write_stack(path, voxels_of(dtype), (20.2, 40.0, 47.0))
    stack = open_stack(path)
    assert stack.offset is not None
    np.testing.assert_array_equal(map_voxels(path, stack.offset, stack.dtype, stack.shape), voxels_of(dtype))
    assert stack.voxel_size_um == (20.2, 40.0, 47.0)
    assert [file.name for file in path.parent.iterdir()] == ["slices.tif"]


def test_three_slices_are_written_as_three_slices_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "slices.tif"
    write_stack(path, voxels_of("uint8")[:3], None)
    before = path.read_bytes()
    assert open_stack(path).shape == (3, 12, 10)
    with pytest.raises(OutputError, match="exists"):
        write_stack(path, voxels_of("uint8"), None)
    assert path.read_bytes() == before
    write_stack(path, voxels_of("uint8"), None, overwrite=True)
    assert open_stack(path).shape == (8, 12, 10)
