"""Slice descriptors against drawn patterns with known answers, planted defects, and explicit loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import affine_transform, gaussian_filter, rotate
from scipy.stats import wasserstein_distance

from data.errors import DataError, SettingsError
from data.synthetic.weave import weave
from pipelines.metrics.distances import Estimate
from pipelines.metrics.slices import SliceComparison, SliceDescriptors, compare_slices
from pipelines.metrics.slices.descriptors import DESCRIPTORS, Unmeasured
from pipelines.metrics.slices.pooled import (
    axial_deviation_deg,
    axial_mean_deg,
    circular_wasserstein,
    log_spectral_distance_db,
    pitch_px,
    wasserstein,
)
from pipelines.metrics.slices.statistics import autocovariances, chord_histograms, radial_frequencies, radial_power

SIDE = 64
UM_PER_PX = 40.0


def gratings(period_px, angle_deg=0.0, num=24, seed=0, side=SIDE):
    """Sine gratings of random phase, (num, side, side); angle of their stripes, upwards from the horizontal."""
    rows, columns = np.mgrid[:side, :side]
    angle = math.radians(angle_deg)
    across = rows * math.cos(angle) + columns * math.sin(angle)
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, (num, 1, 1))
    return 0.5 + 0.4 * np.sin(2 * np.pi * across / period_px + phases)


def bars(tow_px, background_px, num=24, side=SIDE):
    """Horizontal bars of tow (0.8) and background (0.2), shifted from image to image."""
    position = (np.arange(side) + np.arange(num)[:, None]) % (tow_px + background_px)
    return np.repeat(np.where(position < tow_px, 0.8, 0.2)[:, :, None], side, axis=2)


def value(slices, name, um_per_px=UM_PER_PX):
    """A descriptor of one set of slices."""
    found = SliceDescriptors.measure(slices, um_per_px).values()[name]
    assert found is not None
    return found


@pytest.mark.parametrize("period_px", [6.0, 8.4, 13.7, 15.0, 24.3])
@pytest.mark.parametrize(("name", "angle_deg"), [("pitch_rows", 0.0), ("pitch_columns", 90.0)])
def test_a_grating_has_its_period_as_pitch_within_2_percent(period_px, name, angle_deg):
    assert value(gratings(period_px, angle_deg), name) == pytest.approx(UM_PER_PX * period_px, rel=0.02)


def test_stripes_repeat_across_and_not_along():
    found = compare_slices(*3 * [gratings(12)], UM_PER_PX)
    assert found["pitch_rows"].reason is None
    assert found["pitch_columns"].distance is None
    assert "no side peak up to a lag of two thirds" in found["pitch_columns"].reason


def test_a_period_beyond_two_thirds_of_the_slice_is_not_a_pitch():
    found = compare_slices(*3 * [gratings(50)], UM_PER_PX)["pitch_rows"]
    assert found.value_real is None
    assert found.ratio is None
    assert found.verdict == "not measured"


def test_lengths_follow_the_scale_and_ratios_do_not():
    sets = gratings(12, seed=1), gratings(12, seed=2), gratings(13, seed=3)
    small, large, in_px = (compare_slices(*sets, scale) for scale in (10.0, 20.0, None))
    for name, unit in (("pitch_rows", "um"), ("tow_chord", "um"), ("grey", "window"), ("angle", "deg")):
        factor = 2 if unit == "um" else 1
        assert small[name].unit == unit
        assert large[name].value_real == pytest.approx(factor * small[name].value_real)
        assert large[name].distance.value == pytest.approx(factor * small[name].distance.value)
        assert large[name].ratio == pytest.approx(small[name].ratio) == pytest.approx(in_px[name].ratio)
    assert in_px["pitch_rows"].unit == "px"
    assert in_px["pitch_rows"].value_real == pytest.approx(12, rel=0.02)


def test_a_chequerboard_is_half_tow_and_its_s2_is_a_triangle_wave():
    cell = 8
    position = (np.arange(SIDE) + np.arange(2 * cell)[:, None]) % (2 * cell) < cell
    board = np.where(position[:, :, None] ^ position[0][None, None, :], 0.8, 0.2)
    assert value(board, "tow_fraction") == pytest.approx(50, abs=0.1)
    assert value(board, "pitch_rows") == pytest.approx(2 * cell * UM_PER_PX, rel=0.001)
    curve = autocovariances(board, axis=1).sum(0)
    lags = np.arange(len(curve))
    assert len(curve) == 1 + 2 * SIDE // 3
    np.testing.assert_allclose(curve / curve[0], np.abs(2 - 2 * (lags / cell % 2)) - 1, atol=1e-12)


@pytest.mark.parametrize(("tow_px", "background_px"), [(5, 7), (9, 4), (6, 6)])
def test_bars_have_their_widths_as_chords_and_their_share_as_fraction(tow_px, background_px):
    pattern = bars(tow_px, background_px, num=tow_px + background_px)
    assert value(pattern, "tow_chord") == pytest.approx(UM_PER_PX * tow_px)
    assert value(pattern, "background_chord") == pytest.approx(UM_PER_PX * background_px)
    assert value(pattern, "tow_fraction") == pytest.approx(100 * tow_px / (tow_px + background_px), abs=0.1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4))), st.booleans())
def test_chords_equal_those_of_an_explicit_walk(tows, phase):
    num, rows, columns = tows.shape
    expected = np.zeros((num, rows + 1))
    for image in range(num):
        for column in range(columns):
            start = 0
            line = tows[image, :, column]
            for row in range(1, rows + 1):
                if row == rows or line[row] != line[start]:
                    if start > 0 and row < rows and line[start] == phase:
                        expected[image, row - start] += 1
                    start = row
    np.testing.assert_array_equal(chord_histograms(tows, phase), expected)


def test_the_autocovariance_equals_an_explicit_sum_over_pairs():
    slices = np.random.default_rng(0).random((2, 17, 20))
    for axis in (1, 2):
        found = autocovariances(slices, axis)
        centred = np.moveaxis(slices - slices.mean((1, 2), keepdims=True), axis, 1)
        for lag in (0, 1, 5, found.shape[1] - 1):
            pairs = centred[:, : centred.shape[1] - lag] * centred[:, lag:]
            np.testing.assert_allclose(found[:, lag], pairs.mean((1, 2)))


@pytest.mark.parametrize("angle_deg", [0, 15, 30, 45, 60, 90, 120, 165])
def test_a_turned_grating_has_its_angle(angle_deg):
    off = (value(gratings(9, angle_deg), "angle") - angle_deg + 90) % 180 - 90
    assert abs(off) < 1
    assert value(gratings(9, angle_deg), "waviness") < 3


def test_a_mean_of_directions_does_not_care_where_the_circle_begins():
    histogram = np.zeros((1, 180))
    histogram[0, [178, 179, 0, 1, 2]] = 1
    assert axial_mean_deg(histogram)[0] == pytest.approx(0, abs=1e-9)
    assert axial_deviation_deg(histogram)[0] == pytest.approx(math.sqrt(2), rel=0.01)
    assert axial_mean_deg(np.roll(histogram, 30))[0] == pytest.approx(30)
    assert np.isnan(axial_mean_deg(np.ones((1, 180)))[0])


@pytest.mark.parametrize("turn", [0, 1, 17, 45, 179])
def test_turning_directions_moves_them_by_the_shorter_way(turn):
    histogram = np.random.default_rng(1).random((1, 180)) ** 4
    histogram[0, 40:] = 0
    turned = np.roll(histogram, turn)
    shorter = min(turn, 180 - turn)
    assert circular_wasserstein(histogram, turned, 1.0)[0] == pytest.approx(shorter, abs=1e-9)
    rolled = circular_wasserstein(np.roll(histogram, 71), np.roll(turned, 71), 1.0)[0]
    assert rolled == pytest.approx(circular_wasserstein(turned, histogram, 1.0)[0])


def test_the_distance_of_histograms_is_that_of_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 9, (2, 3, 50))
    found = wasserstein(x.astype(float), 7.0 * y, 0.02)
    bins = 0.02 * np.arange(50)
    expected = [wasserstein_distance(bins, bins, a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, expected)


def test_white_noise_has_its_variance_at_all_frequencies():
    slices = 0.5 + 0.1 * np.random.default_rng(3).standard_normal((200, 48, 64))
    power = radial_power(slices).mean(0)
    assert len(power) == len(radial_frequencies((48, 64))) == 24
    assert power.mean() == pytest.approx(0.01, rel=0.01)
    np.testing.assert_allclose(power[1:], 0.01, rtol=0.1)  # the mean that is taken out is missing from the first


def test_the_spectral_distance_of_a_doubled_power_is_3_db():
    power = np.random.default_rng(4).random((1, 20)) + 1
    assert log_spectral_distance_db(2 * power, power)[0] == pytest.approx(10 * math.log10(2), rel=1e-5)


def test_the_number_of_slices_changes_neither_level_nor_distance():
    """White noise of variance 0.01 is at -20 dB, however many slices there are of it."""
    rng = np.random.default_rng(3)
    train, held_out, generated = (0.5 + 0.1 * rng.standard_normal((count, 32, 32)) for count in (24, 96, 12))
    for name in ("spectrum_weave", "spectrum_texture", "spectrum_noise"):
        found = compare_slices(train, held_out, generated, UM_PER_PX)[name]
        assert found.value_real == pytest.approx(-20, abs=0.5)
        assert found.value_generated == pytest.approx(-20, abs=1)
        assert found.distance.value < 2
        assert found.floor.value < 2
        same = compare_slices(held_out, held_out, np.concatenate(3 * [held_out]), UM_PER_PX)[name]
        assert same.distance.value == pytest.approx(0, abs=1e-9)


def test_an_image_without_noise_is_compared_at_the_level_of_8_bits():
    """Power that no picture file holds does not count: the distance of nothing to nothing is 0, not infinite."""
    nothing, next_to_nothing = np.zeros((1, 5)), np.full((1, 5), 1e-12)
    assert log_spectral_distance_db(nothing, next_to_nothing)[0] == pytest.approx(0, abs=1e-5)


def test_a_side_peak_is_found_between_pixels_and_noise_is_none():
    lags = np.arange(43)
    curve = np.exp(-lags / 60) * np.cos(2 * np.pi * lags / 14.6)
    assert pitch_px(np.stack([curve, 3 * curve])) == pytest.approx([14.6, 14.6], rel=0.02)
    ripple = np.exp(-lags / 8) + 0.01 * np.cos(2 * np.pi * lags / 6)
    assert np.isnan(pitch_px(ripple[None])[0])


def crops(volume, plane, num=64):
    """Crops of the training and the held-out end of a volume, each (num, 64, 64) in [0, 1] of its window."""
    low, high = np.percentile(volume[::2, ::2, ::2], (0.5, 99.5))
    unit = np.clip((volume.astype(np.float32) - low) / (high - low), 0, 1)
    axis = {"thickness": 0, "warp": 1, "weft": 2}[plane]
    found = []
    for start, stop in ((0, 240), (268, 336)):
        slices = np.moveaxis(unit[:, :, start:stop], axis, 0)
        rows, columns = (length - SIDE for length in slices.shape[1:])
        rng = np.random.default_rng(5)
        found.append(
            np.stack(
                [
                    slices[(2 * i + 1) * len(slices) // (2 * num), row : row + SIDE, column : column + SIDE]
                    for i in range(num)
                    for row, column in [(rng.integers(rows + 1), rng.integers(columns + 1))]
                ]
            )
        )
    return found


@pytest.fixture(scope="module")
def dry():
    return weave("dry", 0).grey


@pytest.fixture(scope="module")
def compacted():
    return weave("compacted", 0).grey


@pytest.fixture(scope="module")
def dry_warp(dry):
    """Training and held-out warp slices of the dry weave."""
    return crops(dry, "warp")


@pytest.fixture(scope="module")
def sound(dry_warp):
    train, held_out = dry_warp
    return compare_slices(train, held_out, train, UM_PER_PX)


def stretched(slices, factor):
    centre = (SIDE - 1) / 2
    matrix, offset = [1 / factor, 1], [centre - centre / factor, 0]
    return np.stack([affine_transform(image, matrix, offset, order=1, mode="reflect") for image in slices])


def turned(slices, angle):
    return np.clip(rotate(slices, angle, axes=(2, 1), reshape=False, order=1, mode="reflect"), 0, 1)


DEFECTS = {
    "blur": (lambda x: gaussian_filter(x, (0, 1, 1)), ("spectrum_texture", "spectrum_noise")),
    "noise": (
        lambda x: np.clip(x + np.random.default_rng(6).normal(0, 0.08, x.shape), 0, 1),
        ("spectrum_noise",),
    ),
    "gamma": (lambda x: x**1.6, ("grey", "tow_fraction")),
    "stretch": (lambda x: stretched(x, 1.3), ("s2_rows", "pitch_rows", "tow_chord", "background_chord", "waviness")),
    "rotation": (lambda x: turned(x, 15), ("angle", "s2_rows", "s2_columns")),
    "one slice for all": (lambda x: np.repeat(x[20:21], len(x), axis=0), ("tow_fraction", "s2_columns")),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_moves_the_descriptors_that_should_notice(name, dry_warp, sound):
    plant, noticed = DEFECTS[name]
    train, held_out = dry_warp
    found = compare_slices(train, held_out, plant(train), UM_PER_PX)
    for descriptor in noticed:
        assert found[descriptor].ratio > 2.5, descriptor
        assert found[descriptor].ratio > 2 * sound[descriptor].ratio, descriptor
    # the floor is that of the real slices, whatever was generated
    assert all(found[each].floor.value == sound[each].floor.value for each in noticed)


def test_another_state_of_the_weave_is_seen_by_most_descriptors(dry_warp, compacted):
    train, held_out = dry_warp
    found = compare_slices(train, held_out, crops(compacted, "warp")[0], UM_PER_PX)
    away = {name for name, each in found.items() if each.verdict in ("apart", "far")}
    assert {"grey", "tow_fraction", "s2_rows", "pitch_rows", "tow_chord", "waviness", "spectrum_weave"} <= away
    # layer pitch 15 voxels of 40 um, compacted to 0.56 of it
    assert found["pitch_rows"].value_real == pytest.approx(600, rel=0.02)
    assert found["pitch_rows"].value_generated == pytest.approx(0.56 * 600, rel=0.02)


def test_the_warp_spacing_of_a_wide_slice_is_that_of_the_weave(compacted):
    """Warps lie 40 voxels apart along Y."""
    slices = np.moveaxis(compacted / 65535, 2, 0)[::8]
    assert value(slices, "pitch_columns") == pytest.approx(40 * UM_PER_PX, rel=0.05)


@pytest.mark.parametrize("plane", ["thickness", "warp", "weft"])
def test_real_slices_are_near_each_other_and_so_are_mirrored_ones(plane, dry):
    train, held_out = crops(dry, plane)
    for generated in (train, train[:, :, ::-1]):
        found = compare_slices(train, held_out, generated, UM_PER_PX)
        assert all(each.ratio <= 2 for each in found.values() if each.ratio is not None)
        assert all(each.verdict in ("near", "inconclusive") for each in found.values() if each.ratio is not None)


def test_another_specimen_of_the_same_material_is_mostly_near(dry):
    other = weave("dry", 1).grey
    ratios = [
        each.ratio
        for plane in ("warp", "weft")
        for each in compare_slices(*crops(dry, plane), crops(other, plane)[0], UM_PER_PX).values()
        if each.ratio is not None
    ]
    assert len(ratios) >= 22
    assert np.mean(np.array(ratios) <= 2) >= 0.85
    assert max(ratios) < 6


def test_a_floor_takes_as_many_training_slices_as_there_are_generated_ones(dry_warp):
    train, held_out = dry_warp
    few = compare_slices(train, held_out, train[:12], UM_PER_PX)["grey"]
    assert few.floor.num_images == few.distance.num_images == 12
    assert few.floor.value > 0


def test_the_interval_holds_the_value_and_pairs_the_ratio(dry_warp):
    train, held_out = dry_warp
    for found in compare_slices(train, held_out, train, UM_PER_PX, seed=3).values():
        if found.distance is not None:
            assert found.distance.low <= found.distance.value <= found.distance.high
            assert found.ratio_high <= 1 + 1e-12  # the generated slices are the training ones, draw by draw
    assert found.distance.draws.shape == (1000,)


def test_the_threshold_is_that_of_the_training_slices():
    """A brighter picture has more tow: a threshold of its own would hide that."""
    train = gratings(12)
    brighter = compare_slices(train, train, np.clip(train + 0.2, 0, 1), UM_PER_PX)["tow_fraction"]
    assert brighter.value_real == pytest.approx(50, abs=2)
    assert brighter.value_generated > 60


@pytest.mark.parametrize(
    ("low", "high", "num_images", "verdict"),
    [
        (0.5, 1.9, 64, "near"),
        (1.5, 2.5, 64, "inconclusive"),
        (2.1, 9.0, 64, "apart"),
        (5.1, 9.0, 64, "far"),
        (5.1, 9.0, 9, "too few"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_ratio(low, high, num_images, verdict):
    estimate = Estimate(1.0, np.ones(3), num_images)
    found = SliceComparison(
        "grey", "", "window", distance=estimate, floor=estimate, ratio=1.0, ratio_low=low, ratio_high=high
    )
    assert found.verdict == verdict


def test_everything_is_json(dry_warp):
    train, held_out = dry_warp
    found = compare_slices(train, held_out, train[:12], UM_PER_PX)
    assert list(found) == [descriptor.name for descriptor in DESCRIPTORS]
    content = json.loads(json.dumps({name: each.to_json() for name, each in found.items()}, allow_nan=False))
    assert content["grey"]["distance"]["num_images"] == 12
    assert content["pitch_columns"]["reason"].startswith("generated and real training")
    assert content["pitch_columns"]["distance"] is None


def test_slices_without_contrast_have_a_grey_level_and_nothing_else():
    found = compare_slices(*3 * [np.full((12, 32, 32), 0.25)], UM_PER_PX)
    assert found["grey"].value_real == 0.25
    for name in ("tow_fraction", "s2_rows", "pitch_rows", "tow_chord", "angle", "waviness"):
        assert found[name].distance is None
        assert "no contrast" in found[name].reason
    assert found["spectrum_noise"].distance.value == 0


def test_generated_slices_without_contrast_are_told_apart_from_real_ones_without():
    found = compare_slices(gratings(9), gratings(9, seed=1), np.full((24, 64, 64), 0.5), UM_PER_PX)
    assert found["s2_rows"].reason == "generated slices: the slices have no contrast"
    assert found["spectrum_weave"].verdict == "far"
    assert found["tow_fraction"].distance.value == pytest.approx(50, abs=2)


def test_small_slices_say_what_they_are_too_small_for():
    rng = np.random.default_rng(8)
    found = compare_slices(*rng.random((3, 20, 12, 12)), UM_PER_PX)
    assert found["grey"].ratio is not None
    for name in ("s2_rows", "pitch_columns", "angle", "spectrum_weave"):
        assert found[name].reason == "real training slices: slices of 12 x 12 px, at least 16 px are needed"


def test_too_few_whole_chords_are_no_law_of_chords():
    wide = np.where(np.arange(64)[:, None] < 32, 0.2, 0.8) * np.ones((12, 64, 64))
    reason = compare_slices(wide, wide, wide, UM_PER_PX)["tow_chord"].reason
    assert "only 0 chords lie wholly inside" in reason


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (np.full((4, 32, 32), np.nan), "not finite"),
        (np.full((4, 32, 32), 1.5), r"values from 1.5 to 1.5, expected \[0, 1\]"),
        (np.full((4, 32, 32), -0.5), r"values from -0.5 to -0.5, expected \[0, 1\]"),
        (np.zeros((4, 32, 32), np.uint8), "found uint8, expected floats"),
        (np.zeros((32, 32)), r"found shape \(32, 32\)"),
        (np.zeros((4, 3, 32, 32)), r"found shape \(4, 3, 32, 32\)"),
        (np.zeros((0, 32, 32)), r"found shape \(0, 32, 32\)|found 0 slices"),
    ],
)
def test_slices_that_are_none_are_refused(slices, message):
    with pytest.raises(DataError, match=message):
        SliceDescriptors.measure(slices)
    sound = np.random.default_rng(9).random((4, 32, 32))
    with pytest.raises(DataError, match=message):
        compare_slices(sound, sound, slices)


def test_sets_of_other_sizes_or_of_one_slice_are_refused_together():
    rng = np.random.default_rng(10)
    large, small = rng.random((4, 64, 64)), rng.random((1, 32, 32))
    with pytest.raises(DataError, match="found 1 slices, expected at least two") as caught:
        compare_slices(large, large, small)
    assert "generated 32 x 32" in str(caught.value)


@pytest.mark.parametrize("um_per_px", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_no_size_is_refused(um_per_px):
    with pytest.raises(SettingsError, match="um_per_px"):
        SliceDescriptors.measure(gratings(9), um_per_px)


def test_a_measured_set_carries_its_scale_and_threshold():
    measured = SliceDescriptors.measure(bars(6, 6), UM_PER_PX)
    assert (measured.num_slices, measured.shape_px, measured.length_unit) == (24, (64, 64), "um")
    assert isinstance(measured.threshold, float)
    assert measured.threshold == pytest.approx(0.5, abs=0.2)
    blank = SliceDescriptors.measure(np.zeros((3, 20, 20)), threshold=measured.threshold)
    assert isinstance(blank.fractions, np.ndarray)
    assert isinstance(SliceDescriptors.measure(np.zeros((3, 20, 20))).threshold, Unmeasured)
