from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.volume_specs import VolumeError
from data.windows import WINDOW_PERCENTILES, find_window, unit_to_native, window_to_unit


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    plane=hnp.arrays(np.uint16, (5, 7), elements=st.integers(0, 65535)),
    edges=st.lists(st.integers(0, 65535), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_window_inverts_within_half_a_grey_level(plane: np.ndarray, edges: list[int]) -> None:
    low, high = edges
    unit, clipped = window_to_unit(plane, low=low, high=high)
    assert unit.dtype == np.float32
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert clipped == np.count_nonzero((plane < low) | (plane > high))
    back = unit_to_native(unit, low=low, high=high, dtype=np.uint16)
    np.testing.assert_array_equal(back, np.clip(plane, low, high))
    eight_bits = np.rint(unit * 255) / 255
    error = np.abs(unit_to_native(eight_bits, low=low, high=high, dtype=np.float32) - np.clip(plane, low, high))
    assert error.max() <= 0.5 * (high - low) / 255 + 0.01


EDGES = st.floats(-30_000, 60_000, allow_nan=False, width=32)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    data=st.data(), dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]), low=EDGES, span=st.floats(1, 9e4)
)
def test_every_type_comes_back_from_any_window_within_half_a_grey_level(
    data: st.DataObject, dtype: str, low: float, span: float
) -> None:
    high = low + span
    if dtype == "float32":
        plane = data.draw(hnp.arrays(np.float32, (4, 5), elements=st.floats(-9e4, 9e4, width=32)))
    else:
        limits = np.iinfo(dtype)
        plane = data.draw(hnp.arrays(dtype, (4, 5), elements=st.integers(int(limits.min), int(limits.max))))
    unit, _ = window_to_unit(plane, low=low, high=high)
    inside = (plane >= low) & (plane <= high)
    back = unit_to_native(unit, low=low, high=high, dtype=dtype)
    assert back.dtype == plane.dtype
    # float32 holds a unit value to 2**-24: far below half a grey level of an integer type
    allowed = 0 if plane.dtype.kind in "iu" else span * 2.0**-23 + np.abs(plane[inside]) * 2.0**-23
    assert np.all(np.abs(back.astype(np.float64) - plane)[inside] <= allowed)


def test_a_16_bit_ramp_keeps_its_order_and_its_levels() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    unit, clipped = window_to_unit(ramp, low=0, high=65535)
    assert clipped == 0
    assert np.all(np.diff(unit.ravel()) > 0)
    assert np.unique(np.rint(unit * 255)).size >= 250


def test_nan_is_counted_and_leaves_no_nan() -> None:
    unit, clipped = window_to_unit(np.array([[np.nan, np.inf, 0.5, -1.0]], np.float32), low=0, high=1)
    np.testing.assert_array_equal(unit, [[0, 1, 0.5, 0]])
    assert clipped == 3


def test_native_values_are_clipped_to_the_dtype() -> None:
    unit = np.array([-1.0, 0.0, 1.0, 9.0])
    np.testing.assert_array_equal(unit_to_native(unit, low=10, high=250, dtype=np.uint8), [0, 10, 250, 255])
    np.testing.assert_array_equal(unit_to_native(unit, low=-5, high=5, dtype="int16"), [-15, -5, 5, 85])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)])
def test_an_empty_window_is_refused(low: float, high: float) -> None:
    with pytest.raises(VolumeError, match="low < high"):
        window_to_unit(np.zeros((2, 2)), low=low, high=high)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2", ">f4"])
@pytest.mark.parametrize("shape", [(9, 14, 12), (2, 2, 5), (40, 33, 27)])
def test_the_window_is_that_of_numpys_percentiles(dtype: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(11)
    voxels = (rng.gamma(3, 20, shape) - (40 if dtype in ("int16", "float32", ">f4") else 0)).astype(dtype)
    sample = voxels[::2, ::2, ::2].ravel().astype(np.float64)
    if np.dtype(dtype).newbyteorder("=").name in ("uint16", "float32"):
        sample = sample[sample != 0]
    expected = (0.0, 255.0) if dtype == "uint8" else tuple(np.percentile(sample, WINDOW_PERCENTILES))
    assert find_window(voxels, None, "a.tif") == pytest.approx(expected, rel=1e-12)


def test_window_leaves_out_nan_and_padding() -> None:
    voxels = np.zeros((16, 24, 20), np.float32)
    voxels[4:12] = np.linspace(5.0, 6.0, 8 * 24 * 20).reshape(8, 24, 20)
    voxels[10:, :6] = np.nan
    low, high = find_window(voxels, None, "a.tif")
    valid = voxels[::2, ::2, ::2]
    valid = valid[~np.isnan(valid) & (valid != 0)]
    assert (low, high) == pytest.approx(tuple(np.percentile(valid, [0.5, 99.5])))
    assert 5.0 < low < 5.02


def test_zero_is_a_grey_value_where_dtypes_are_signed_and_uint8_keeps_its_range() -> None:
    signed = np.zeros((8, 12, 10), np.int16)
    signed[:4] = 100
    assert find_window(signed, None, "a.tif") == (0.0, 100.0)
    rng = np.random.default_rng(7)
    assert find_window(rng.integers(9, 90, (8, 12, 10)).astype(np.uint8), None, "a.tif") == (0.0, 255.0)


def test_declared_window_is_kept_and_refused_where_it_holds_no_voxel() -> None:
    voxels = np.random.default_rng(7).integers(1, 65535, (8, 12, 10)).astype(np.uint16)
    assert find_window(voxels, (1200.0, 52000.0), "a.tif") == (1200.0, 52000.0)
    with pytest.raises(VolumeError, match=r"a\.tif: the window .* holds no grey value"):
        find_window(voxels, (-1.0, 0.5), "a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_volume_without_contrast_is_refused(dtype: str) -> None:
    with pytest.raises(VolumeError, match=r"a\.tif: .*no contrast"):
        find_window(np.full((8, 12, 10), 9, dtype), None, "a.tif")


@pytest.mark.parametrize("voxels", [np.zeros((8, 12, 10), np.uint16), np.full((8, 12, 10), np.nan, np.float32)])
def test_a_volume_of_nothing_is_refused(voxels: np.ndarray) -> None:
    with pytest.raises(VolumeError, match="nothing but 0 and NaN"):
        find_window(voxels, None, "a.tif")
