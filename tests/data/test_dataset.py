import json
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.lib.stride_tricks import sliding_window_view

import data.dataset
from data.concepts import Cell, Concept
from data.crops import Crops
from data.dataset import SliceDataset, build_slice_dataset
from data.errors import DataError, SettingsError
from data.slices import BLANK_CONTRAST, CellImages, PixelScale, find_slices
from data.splits import manifest_hash, split_volume
from data.volume_specs import PLANES, VolumeSpec
from data.volumes import Volume
from data.windows import unit_to_native

SHAPE = (12, 20, 60)  # 14,400 voxels: each can have a 16-bit value of its own
CROP = 8
PLANE_AXES = {"thickness": 0, "warp": 1, "weft": 2}
FILES = {"dry": "dry.tif", "compacted": "dry_compacted.tif", "injected": "injected.tif"}
COMPOSITES = Concept("composites", tuple(Cell(s, p) for s in FILES for p in PLANES), "slice")
DRY = Concept("sf_dry", tuple(Cell("dry", p) for p in PLANES), "slice")
CROP_SETTINGS = {field.name for field in fields(Crops)}
Build = Callable[..., SliceDataset]


def volume_of(
    voxels: np.ndarray,
    state: str = "dry",
    voxel_size_um: tuple[float, float, float] | None = None,
    window: tuple[float, float] | None = None,
) -> Volume:
    spec = VolumeSpec(state, Path(FILES[state]), PLANE_AXES)
    return Volume(spec, voxels, voxel_size_um, window or (0.0, float(voxels.size - 1)))


def shuffled(state: str = "dry", shape: tuple[int, int, int] = SHAPE) -> Volume:
    """A volume in which every voxel has a value of its own: disordered, brighter along each axis, no slice blank."""
    brightness = sum(np.linspace(0, 1, size).reshape(np.roll([size, 1, 1], axis)) for axis, size in enumerate(shape))
    disorder = np.random.default_rng(len(state)).random(shape)
    values = np.empty(disorder.size, np.uint16)
    values[np.argsort((brightness + disorder).ravel())] = np.arange(disorder.size)
    return volume_of(values.reshape(shape), state)


def places(pixels: np.ndarray, volume: Volume) -> np.ndarray:
    """The (Z, Y, X) of every pixel (C, H, W) of a crop of a shuffled volume: (H, W, 3)."""
    values = np.rint((pixels[0].astype(np.float64) + 1) / 2 * (volume.voxels.size - 1)).astype(int)
    flat = np.argsort(volume.voxels.ravel())[values]
    return np.stack(np.unravel_index(flat, volume.shape), axis=-1)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build a dataset from volumes in memory."""

    def build(concept: Concept, volumes: Mapping[str, Volume], **settings: object) -> SliceDataset:
        monkeypatch.setattr(data.dataset, "read_volume_specs", lambda _: {s: v.spec for s, v in volumes.items()})
        monkeypatch.setattr(data.dataset, "open_volume", lambda spec: volumes[spec.state])
        of_crops = {"resolution": CROP, "seed": 1} | {k: v for k, v in settings.items() if k in CROP_SETTINGS}
        others = {k: v for k, v in settings.items() if k not in CROP_SETTINGS}
        return build_slice_dataset(concept, Path("scans"), Crops(**of_crops), **others)  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="module")
def volumes() -> dict[str, Volume]:
    return {state: shuffled(state) for state in FILES}


def drawn(dataset: SliceDataset, positions: list[int]) -> list[tuple[bytes, str, bool, str]]:
    samples = [dataset.sample(position) for position in positions]
    return [(s.pixels.tobytes(), s.caption, s.is_prior, s.source) for s in samples]


def test_a_sample_is_the_same_in_any_order_and_after_any_other(build: Build, volumes: dict[str, Volume]) -> None:
    settings = {"random_flip": True, "proportion_empty_prompts": 0.3}
    dataset, twin = (build(COMPOSITES, volumes, **settings) for _ in range(2))
    positions = [0, 5, 700, 3, 100_000]
    forwards = drawn(dataset, positions)
    assert forwards == drawn(dataset, positions[::-1])[::-1]
    assert forwards == drawn(twin, positions)
    assert forwards != drawn(build(COMPOSITES, volumes, seed=2, **settings), positions)


def test_everything_trained_on_is_a_window_of_a_whole_image_and_nothing_held_out_is(
    build: Build, volumes: dict[str, Volume]
) -> None:
    dataset = build(COMPOSITES, volumes)
    whole = dataset.whole_images()
    by_name = {image.name: image for image in whole}
    assert len(by_name) == len(whole) == len(dataset)
    for position in range(0, len(dataset), 7):
        sample = dataset.sample(position)
        image = by_name[sample.source.partition(" @ ")[0]]
        windows = sliding_window_view(image.pixels, sample.pixels.shape)[0]
        assert (windows == sample.pixels).all((2, 3, 4)).any()
        assert image.caption == sample.caption
    for caption, crops in dataset.held_out_pixels(1).items():
        of_caption = [image for image in whole if image.caption == caption]
        assert not any(
            (sliding_window_view(image.pixels, crops[0].shape)[0] == crops[0]).all((2, 3, 4)).any()
            for image in of_caption
        )


def test_a_sample_is_the_same_in_another_process(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(DRY, volumes, random_flip=True, proportion_empty_prompts=0.3)
    positions = list(range(12))
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(drawn, (dataset, positions)) == drawn(dataset, positions)


def test_each_epoch_shows_every_training_slice_once(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(DRY, volumes)
    width = SHAPE[2] - 12 - 16  # less the held-out fifth and the gap
    assert len(dataset) == SHAPE[0] + SHAPE[1] + width
    expected = {f"dry.tif {p} {i}" for p, n in (("thickness", 12), ("warp", 20), ("weft", width)) for i in range(n)}
    orders = []
    for epoch in range(2):
        sources = [dataset.sample(epoch * len(dataset) + offset).source for offset in range(len(dataset))]
        orders.append([source.split(" @ ")[0] for source in sources])
        assert Counter(orders[-1]) == Counter(expected)
    assert orders[0] != orders[1]


def test_captions_and_sources_say_what_was_really_cut(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(COMPOSITES, volumes)
    words = {"sf_dry": "dry", "sf_injected": "injected", "sf_dry sf_compacted": "compacted"}
    for position in range(len(dataset)):
        sample = dataset.sample(position)
        assert sample.pixels.shape == (3, CROP, CROP)
        assert sample.pixels.dtype == np.float32
        assert not sample.is_prior
        state, _, plane = sample.caption.rpartition(" sf_")
        volume = volumes[words[state]]
        where = places(sample.pixels, volume)
        axis = PLANE_AXES[plane]
        row_axis, column_axis = (a for a in range(3) if a != axis)
        assert np.ptp(where[..., axis]) == 0
        corner = where[0, 0]
        assert sample.source == (
            f"{FILES[words[state]]} {plane} {corner[axis]} @ ({corner[row_axis]}, {corner[column_axis]})"
        )
        np.testing.assert_array_equal(where[..., row_axis], corner[row_axis] + np.arange(CROP)[:, None].repeat(CROP, 1))
        np.testing.assert_array_equal(
            where[..., column_axis], corner[column_axis] + np.arange(CROP)[None].repeat(CROP, 0)
        )


def test_images_are_mirrored_only_as_their_plane_allows(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(DRY, volumes, random_flip=True)
    seen: dict[str, set[tuple[int, int]]] = {plane: set() for plane in PLANES}
    for position in range(4 * len(dataset)):
        sample = dataset.sample(position)
        plane = sample.caption.rpartition("sf_")[2]
        row_axis, column_axis = (a for a in range(3) if a != PLANE_AXES[plane])
        where = places(sample.pixels, volumes["dry"])
        down = where[1, 0] - where[0, 0]
        right = where[0, 1] - where[0, 0]
        assert down[column_axis] == right[row_axis] == 0  # never turned by 90 degrees
        seen[plane].add((int(down[row_axis]), int(right[column_axis])))
    assert seen["thickness"] == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    assert seen["warp"] == seen["weft"] == {(1, 1), (1, -1)}


def test_without_random_flip_nothing_is_mirrored_and_crops_stay(build: Build, volumes: dict[str, Volume]) -> None:
    plain, mirrored = build(DRY, volumes), build(DRY, volumes, random_flip=True)
    for position in range(len(plain)):
        one, other = plain.sample(position), mirrored.sample(position)
        assert one.source == other.source
        np.testing.assert_array_equal(np.sort(one.pixels, axis=None), np.sort(other.pixels, axis=None))


def test_a_slice_is_cropped_elsewhere_in_each_epoch(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(Concept("c", (Cell("dry", "thickness"),), "slice"), volumes, images_per_class=1)
    assert len({dataset.sample(epoch).source for epoch in range(50)}) > 40  # of 13 x 25 places


def test_a_source_is_in_voxels_of_the_whole_volume(build: Build) -> None:
    volume = replace(shuffled(), voxel_size_um=(40.0, 20.0, 10.0))
    dataset = build(Concept("c", (Cell("dry", "thickness"),), "slice"), {"dry": volume}, um_per_px=10, resolution=4)
    held_out = dataset.cells[0].held_out
    assert held_out.shape_px == (40, 12)
    assert held_out.source(5, (0, 0)) == "dry.tif thickness 5 @ (0, 48)"
    assert held_out.source(5, (30, 7)) == "dry.tif thickness 5 @ (15, 55)"


def test_coarser_pixels_hold_out_as_many_voxels_as_a_crop_needs(build: Build) -> None:
    volume = replace(shuffled(), voxel_size_um=(25.0, 25.0, 25.0))
    cell = Concept("c", (Cell("dry", "thickness"),), "slice")
    dataset = build(cell, {"dry": volume}, um_per_px=50)
    assert dataset.cells[0].split.held_out.bounds[2] == (44, 60)
    assert dataset.held_out_pixels(1)["sf_dry sf_thickness"].shape == (1, 3, CROP, CROP)


def test_center_crops_do_not_move(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(DRY, volumes, center_crop=True)
    origins = {dataset.sample(p).source.split(" @ ")[1] for p in range(len(dataset))}
    assert origins == {"(6, 12)", "(2, 12)", "(2, 6)"}  # thickness (20, 32), warp (12, 32), weft (12, 20)


def test_held_out_crops_share_no_voxel_with_anything_trained_on(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(COMPOSITES, volumes, random_flip=True)
    trained: dict[str, set[int]] = {state: set() for state in FILES}
    for position in range(2 * len(dataset)):
        sample = dataset.sample(position)
        state = next(s for s in FILES if FILES[s] == sample.source.split()[0])
        trained[state] |= set(places(sample.pixels, volumes[state])[..., 2].ravel().tolist())
    held_out = dataset.held_out_pixels(200)
    for cell in COMPOSITES.cells:
        columns = np.concatenate([places(p, volumes[cell.state])[..., 2].ravel() for p in held_out[cell.caption]])
        assert columns.min() - max(trained[cell.state]) - 1 >= 16
    assert trained["dry"] == set(range(32))  # every column of the training block was seen


@pytest.mark.parametrize("num_images", [1, 5, 12, 30, 10_000])
def test_evaluation_crops_are_distinct_evenly_spaced_and_inside_their_block(
    num_images: int, build: Build, volumes: dict[str, Volume]
) -> None:
    dataset = build(DRY, volumes)
    bounds = {"training": (0, 32), "held_out": (48, 60)}
    # slices x tiles of 8 px: thickness 12 x (2 x 1 or 4), warp 20 x (1 x 1 or 4), weft 12 or 32 x (1 x 2)
    available = {"training": (12 * 8, 20 * 4, 32 * 2), "held_out": (12 * 2, 20 * 1, 12 * 2)}
    for side, crops in (
        ("training", dataset.training_pixels(num_images)),
        ("held_out", dataset.held_out_pixels(num_images)),
    ):
        assert tuple(crops) == dataset.captions
        for plane, most, pixels in zip(PLANES, available[side], crops.values(), strict=True):
            assert pixels.shape == (min(num_images, most), 3, CROP, CROP)
            assert pixels.dtype == np.float32
            where = np.stack([places(p, volumes["dry"]) for p in pixels])
            assert where[..., 2].min() >= bounds[side][0]
            assert where[..., 2].max() < bounds[side][1]
            voxels = where.reshape(-1, 3)
            assert len(np.unique(voxels, axis=0)) == len(voxels)
            slices = where[:, 0, 0, PLANE_AXES[plane]]
            steps = np.diff(slices)
            assert (steps >= 0).all()
            assert not len(steps) or steps.max() - steps.min() <= 1


def test_neighbouring_evaluation_slices_show_different_places(build: Build, volumes: dict[str, Volume]) -> None:
    crops = build(DRY, volumes).held_out_pixels(12)["sf_dry sf_weft"]
    columns = [places(pixels, volumes["dry"])[0, 0, 1] for pixels in crops]
    assert columns == [0, 12] * 6


def test_images_per_class_are_evenly_spaced_over_the_training_block(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(DRY, volumes, images_per_class=3)
    assert len(dataset) == 9
    sources = {dataset.sample(p).source.split(" @ ")[0] for p in range(9)}
    expected = {"thickness": (2, 6, 10), "warp": (3, 10, 16), "weft": (5, 16, 26)}
    assert sources == {f"dry.tif {plane} {i}" for plane, indices in expected.items() for i in indices}
    assert len(build(DRY, volumes, images_per_class=15)) == 12 + 15 + 15


def test_the_window_is_that_of_the_volume_never_of_a_slice(build: Build) -> None:
    disorder = np.random.default_rng(0).integers(1000, 1400, SHAPE)
    voxels = (disorder + 50 * np.arange(SHAPE[0])[:, None, None]).astype(np.uint16)
    voxels[:, :, 5] += 1000
    window = (500.0, 3500.0)
    dataset = build(Concept("c", (Cell("dry", "weft"),), "slice"), {"dry": volume_of(voxels, window=window)})
    for position in range(len(dataset)):
        sample = dataset.sample(position)
        index = int(sample.source.split()[2])
        row, column = (int(n.strip("(,)")) for n in sample.source.split(" @ ")[1].split())
        native = voxels[row : row + CROP, column : column + CROP, index].astype(np.float64)
        np.testing.assert_allclose(sample.pixels[1], (native - 500) / 3000 * 2 - 1, atol=1e-6)


def test_a_16_bit_ramp_keeps_its_grey_levels(build: Build) -> None:
    ramp = np.broadcast_to(np.linspace(20_000, 21_000, 512).astype(np.uint16), (64, 64, 512))
    crops = build(
        Concept("c", (Cell("dry", "thickness"),), "slice"),
        {"dry": volume_of(ramp, window=(20_000.0, 21_000.0))},
        resolution=64,
    )
    pixels = crops.training_pixels(6)["sf_dry sf_thickness"]
    levels = np.unique(np.rint((pixels + 1) / 2 * 1000))
    assert len(levels) >= 250
    assert len(np.unique(pixels)) == len(levels)


def test_the_proportion_of_empty_captions_reaches_the_samples(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(DRY, volumes, proportion_empty_prompts=0.25)
    empty = np.mean([dataset.sample(p).caption == "" for p in range(1200)])
    assert abs(empty - 0.25) < 0.05
    assert dataset.captions == DRY.captions


def test_blank_slices_are_left_out_and_counted(build: Build) -> None:
    volume = shuffled()
    voxels = volume.voxels.copy()
    voxels[:2] = 7  # air above the fabric
    voxels[-1] = 9_000 + np.random.default_rng(1).normal(0, 1_440, SHAPE[1:])  # noise of a tenth of the window
    noisy = volume_of(voxels)
    dataset = build(DRY, {"dry": noisy})
    cell = dataset.cells[0]
    assert cell.training.indices == cell.held_out.indices == tuple(range(2, 11))
    assert cell.training.num_blank == cell.held_out.num_blank == 3
    assert [c.training.num_blank for c in dataset.cells[1:]] == [0, 0]
    assert len(dataset) == 9 + 20 + 32
    manifest: dict = dataset.manifest()
    assert manifest["cells"][0]["training"]["num_blank"] == 3
    assert manifest["blank_contrast"] == BLANK_CONTRAST


def test_a_plane_that_is_blank_throughout_is_refused(build: Build) -> None:
    layers = np.repeat(np.arange(12, dtype=np.uint16), 20 * 60).reshape(SHAPE)  # flat along the fabric
    with pytest.raises(
        DataError, match=r"dry\.tif thickness: all 12 slices of the training block are blank"
    ) as refusal:
        build(DRY, {"dry": volume_of(layers, window=(0.0, 11.0))})
    assert len(refusal.value.problems) == 2


def test_slices_smaller_than_a_crop_are_refused_with_what_would_fit(build: Build, volumes: dict[str, Volume]) -> None:
    with pytest.raises(DataError) as refusal:
        build(DRY, volumes, resolution=16)
    text = str(refusal.value)
    assert "dry.tif warp: slices have 12 x 60 px at 1 px = 1 voxel of unknown size, expected at least 16 x 16" in text
    assert "dry.tif weft: slices have 12 x 20 px" in text
    assert "dry.tif thickness" not in text
    assert "at most 12, or a larger --px_per_voxel, at least 1.333" in text
    assert build(DRY, volumes, resolution=12).sample(0).pixels.shape == (3, 12, 12)


def test_everything_too_small_is_reported_at_once(build: Build, volumes: dict[str, Volume]) -> None:
    with pytest.raises(DataError) as refusal:
        build(COMPOSITES, volumes, resolution=64)
    assert len(refusal.value.problems) == 9 + 3  # each cell's slices, each volume's split


def test_a_dataset_put_together_by_hand_refuses_small_slices_too() -> None:
    volume = shuffled()
    split = split_volume(volume, smallest_px=4)
    sides = [find_slices(volume, block, "weft", PixelScale(None)) for block in (split.training, split.held_out)]
    with pytest.raises(DataError, match="slices smaller than a crop: 2 problems"):
        SliceDataset([CellImages(Cell("dry", "weft"), split, *sides)], Crops(13, 0))


def test_volumes_of_different_voxel_size_come_to_one_scale(build: Build) -> None:
    # the same ramp of 1 grey per um along X, scanned at 40 and at 25 um, and an anisotropic Z
    def ramp(state: str, size_um: tuple[float, float, float], shape: tuple[int, int, int]) -> Volume:
        x_um = (np.arange(shape[2]) + 0.5) * size_um[2]
        return volume_of(np.broadcast_to(x_um, shape).astype(np.float32), state, size_um, window=(0.0, 8000.0))

    ramps = {"dry": ramp("dry", (40, 40, 40), (20, 24, 160)), "injected": ramp("injected", (20, 25, 25), (48, 40, 256))}
    cells = tuple(Cell(state, plane) for state in ramps for plane in ("thickness", "warp"))
    dataset = build(Concept("c", cells, "slice"), ramps)
    assert dataset.um_per_px == 40
    assert [cell.training.shape_px for cell in dataset.cells[::2]] == [(24, 112), (25, 118)]
    assert dataset.cells[3].training.shape_px == (24, 118)  # 48 x 20 um, 189 x 25 um
    for pixels in dataset.training_pixels(4).values():
        np.testing.assert_allclose(np.diff(pixels.astype(np.float64), axis=3), 2 * 40 / 8000, atol=2e-4)


def test_a_finer_scale_makes_room_for_a_larger_crop(build: Build) -> None:
    volume = replace(shuffled(), voxel_size_um=(40.0, 40.0, 40.0))
    with pytest.raises(DataError, match=r"12 x 20 px at 1 px = 40 um.*finer --um_per_px, at most 30"):
        build(Concept("c", (Cell("dry", "weft"),), "slice"), {"dry": volume}, resolution=16)
    dataset = build(Concept("c", (Cell("dry", "weft"),), "slice"), {"dry": volume}, resolution=16, um_per_px=30)
    assert dataset.sample(0).pixels.shape == (3, 16, 16)
    assert dataset.cells[0].training.shape_px == (16, 26)
    manifest: dict = dataset.manifest()
    assert manifest["um_per_px"] == 30


@pytest.mark.parametrize(
    ("sizes", "um_per_px", "problem"),
    [
        ({"dry": None, "injected": (40.0, 40.0, 40.0)}, None, "dry.tif: the voxel size is unknown, and other volumes"),
        ({"dry": None, "injected": None}, 30.0, "2 problems"),
    ],
)
def test_a_voxel_size_that_is_needed_and_unknown_is_refused(
    sizes: dict[str, tuple[float, float, float] | None], um_per_px: float | None, problem: str, build: Build
) -> None:
    volumes = {state: replace(shuffled(state), voxel_size_um=size) for state, size in sizes.items()}
    cells = tuple(Cell(state, "warp") for state in sizes)
    with pytest.raises(DataError, match=r"volumes\.yaml") as refusal:
        build(Concept("c", cells, "slice"), volumes, um_per_px=um_per_px)
    assert problem in str(refusal.value)


def test_without_any_voxel_size_a_pixel_is_a_voxel_and_the_manifest_says_so(
    build: Build, volumes: dict[str, Volume]
) -> None:
    dataset = build(COMPOSITES, volumes)
    assert dataset.um_per_px is None
    assert dataset.manifest()["scale"] == "1 px = 1 voxel of unknown size"


def test_a_pixel_factor_scales_volumes_of_unknown_voxel_size(build: Build, volumes: dict[str, Volume]) -> None:
    with pytest.raises(DataError, match=r"a larger --px_per_voxel, at least 1\.333"):
        build(DRY, volumes, resolution=16)
    dataset = build(DRY, volumes, resolution=16, px_per_voxel=1.5)
    assert [cell.training.shape_px for cell in dataset.cells] == [(30, 48), (18, 48), (18, 30)]
    assert dataset.um_per_px is None
    assert dataset.manifest()["scale"] == "1 px = 0.666667 voxels of unknown size"
    assert dataset.notes[0] == "scale       1 px = 0.666667 voxels of unknown size, for every plane and state"
    # twice as many px as voxels, half as many voxels for a crop
    assert build(DRY, volumes, px_per_voxel=2).cells[0].split == build(DRY, volumes, resolution=4).cells[0].split


def test_a_pixel_factor_is_refused_where_a_voxel_size_is_known(build: Build) -> None:
    volume = replace(shuffled(), voxel_size_um=(40.0, 40.0, 40.0))
    with pytest.raises(DataError, match=r"dry\.tif: has voxels of \(40.0, 40.0, 40.0\) um.*Give --um_per_px instead"):
        build(DRY, {"dry": volume}, px_per_voxel=2)


@pytest.mark.parametrize(
    ("depth_um", "rows"),
    [(40.0, 12), (40.7, 12), (39.3, 12), (40.9, 12), (39.1, 11), (60.0, 18), (20.0, 6)],
)
def test_voxels_are_made_cubes_where_a_side_differs_by_more_than_two_percent(
    build: Build, depth_um: float, rows: int
) -> None:
    volume = replace(shuffled(), voxel_size_um=(depth_um, 40.0, 40.0))
    dataset = build(Concept("c", (Cell("dry", "weft"),), "slice"), {"dry": volume}, resolution=6)
    slices = dataset.cells[0].training
    assert slices.shape_px == (rows, 20)
    untouched = np.array_equal(slices.pixels(0), find_slices(volume, slices.block, "weft", PixelScale(None)).pixels(0))
    assert untouched == (abs(depth_um / 40 - 1) <= 0.02)
    assert dataset.um_per_px == 40


def test_the_window_inverts_within_half_a_grey_level(build: Build, volumes: dict[str, Volume]) -> None:
    dataset = build(COMPOSITES, volumes)
    for position in range(0, len(dataset), 11):
        sample = dataset.sample(position)
        grey = dataset.grey_values[sample.caption]
        low, high = grey["window"]  # type: ignore[misc]
        native = unit_to_native((sample.pixels[0] + 1) / 2, low=low, high=high, dtype=str(grey["dtype"]))
        file, plane, index, _, row, column = sample.source.replace("(", "").replace(")", "").replace(",", "").split()
        volume = next(v for v in volumes.values() if v.spec.path.name == file)
        whole = volume.plane(plane, int(index))
        expected = whole[int(row) : int(row) + CROP, int(column) : int(column) + CROP]
        np.testing.assert_array_equal(native, expected)
        assert native.dtype == volume.voxels.dtype


def fabric() -> Volume:
    """A volume as flat as a compacted fabric: 26 x 36 x 70 voxels, brighter along each axis and disordered."""
    return shuffled(shape=(26, 36, 70))


def test_windows_of_slices_keep_the_full_height_at_the_one_scale(build: Build) -> None:
    volume = fabric()
    with pytest.raises(DataError, match=r"slices have 26 x 70 px .* at least 32 x 32 for --resolution 32\."):
        build(DRY, {"dry": volume}, resolution=32)
    dataset = build(DRY, {"dry": volume}, resolution=32, bucket_batch=4, random_flip=True)
    assert dataset.resolution == 24  # squares to judge by: the largest in units of 8 that fit every slice
    seen: dict[str, set[tuple[int, ...]]] = {}
    sources = set()
    for start in range(0, len(dataset), 4):
        batch = [dataset.sample(position) for position in range(start, start + 4)]
        assert len({sample.pixels.shape for sample in batch}) == 1
        for sample in batch:
            seen.setdefault(sample.caption.rpartition("sf_")[2], set()).add(sample.pixels.shape[1:])
            sources.add(sample.source.split(" @ ")[0])
            where = places(sample.pixels, volume)
            axes = [axis for axis in range(3) if axis != PLANE_AXES[sample.source.split()[1]]]
            assert (np.abs(np.diff(where[..., axes[0]], axis=0)) == 1).all()  # voxel by voxel: no rescaling, no squash
            assert (np.abs(np.diff(where[..., axes[1]], axis=1)) == 1).all()
    assert seen == {"thickness": {(32, 24)}, "warp": {(24, 24)}, "weft": {(24, 32)}}
    assert len(sources) == sum(len(cell.training) for cell in dataset.cells)
    held_out = dataset.held_out_pixels(3)
    assert {pixels.shape for pixels in held_out.values()} == {(3, 3, 24, 24)}
    manifest: dict = dataset.manifest()
    assert (manifest["resolution_px"], manifest["judged_px"]) == (32, 24)
    assert manifest["num_images"] == len(sources)
    assert manifest["aspect_buckets"]["epoch_positions"] == len(dataset)
    assert "judged as squares of 24 px" in dataset.notes[-1]
    assert build(DRY, {"dry": volume}, resolution=16).manifest()["aspect_buckets"] is None


def test_a_slice_too_flat_for_any_window_is_refused_with_a_resolution_that_fits(build: Build) -> None:
    with pytest.raises(DataError) as refusal:
        build(DRY, {"dry": fabric()}, resolution=56, bucket_batch=4)
    assert "slices have 26 x 70 px" in str(refusal.value)
    assert "for --resolution 56 with --aspect_buckets. Choose a smaller --resolution, at most 48" in str(refusal.value)
    assert build(DRY, {"dry": fabric()}, resolution=48, bucket_batch=4, held_out_fraction=0.3).resolution == 24


def test_what_was_skipped_and_split_is_told_in_lines(build: Build) -> None:
    volume = shuffled()
    voxels = volume.voxels.copy()
    voxels[:2] = 7
    dataset = build(DRY, {"dry": volume_of(voxels)})
    _, blank, split = dataset.notes
    rule = "the means of their 8 px blocks vary by less than 0.03 of the window"
    found = "dry.tif thickness 2 of 12 (training), dry.tif thickness 2 of 12 (held out)"
    assert blank == f"blank       slices left out, as {rule}: {found}"
    assert split.startswith("split       dry.tif: voxels 0 to 32 of X are trained on, 48 to 60 held out;")
    assert not [note for note in build(DRY, {"dry": volume}).notes if note.startswith("blank")]


def test_the_manifest_says_how_many_independent_slices_there_are(build: Build) -> None:
    # along the weft axis every slice is shown five times, along the others all differ
    detail = np.random.default_rng(3).random((12, 20, 12))
    voxels = np.repeat(detail, 5, axis=2)
    dataset = build(DRY, {"dry": volume_of(voxels, window=(0.0, 1.0))}, resolution=4)
    cells: list[dict] = dataset.manifest()["cells"]  # type: ignore[assignment]
    sizes = [cell["training"]["effective_size"] for cell in cells]
    counts = [cell["training"]["num_images"] for cell in cells]
    assert counts == [12, 20, 32]
    assert sizes[0] == pytest.approx(12, rel=0.25)
    assert sizes[1] == pytest.approx(20, rel=0.25)
    assert sizes[2] == pytest.approx(32 / 5, rel=0.25)  # 1 + 2 (.8 + .6 + .4 + .2) = 5
    few = build(DRY, {"dry": volume_of(voxels, window=(0.0, 1.0))}, resolution=4, images_per_class=5)
    assert few.cells[2].training.effective_size == pytest.approx(5, rel=0.25)  # more than five apart
    assert f"weft 32 ({sizes[2]:.0f})" in dataset.notes[-1]


def test_settings_out_of_range_are_reported_together(build: Build, volumes: dict[str, Volume]) -> None:
    with pytest.raises(SettingsError) as refusal:
        build(DRY, volumes, resolution=0, um_per_px=float("nan"), images_per_class=0, proportion_empty_prompts=1.5)
    assert [problem.split(":")[0] for problem in refusal.value.problems] == [
        "--resolution",
        "--proportion_empty_prompts",
        "--um_per_px",
        "--images_per_class",
    ]


def test_the_manifest_is_plain_json_and_counts_the_images_of_each_caption(
    build: Build, volumes: dict[str, Volume]
) -> None:
    dataset = build(COMPOSITES, volumes)
    manifest: dict = dataset.manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    counts = {cell["caption"]: cell["training"]["num_images"] for cell in manifest["cells"]}
    drawn_counts = Counter(dataset.sample(position).caption for position in range(len(dataset)))
    assert counts == drawn_counts
    assert manifest["num_images"] == sum(counts.values()) == len(dataset)
    dry = manifest["volumes"]["dry"]
    assert dry["file"] == "dry.tif"
    assert dry["content_hash"] == volumes["dry"].content_hash()
    assert dry["window"] == [0.0, 14_399.0]
    assert dry["split"]["held_out"] == [[0, 12], [0, 20], [48, 60]]
    assert manifest_hash(manifest) == manifest_hash(build(COMPOSITES, volumes).manifest())
    assert manifest_hash(manifest) != manifest_hash(build(COMPOSITES, volumes, resolution=9).manifest())


def test_volumes_are_opened_once_and_only_where_needed(build: Build, volumes: dict[str, Volume]) -> None:
    only_needed = {state: volumes[state] for state in ("dry", "injected")}
    cells = tuple(Cell(state, plane) for state in only_needed for plane in PLANES)
    dataset = build(Concept("two", cells, "slice"), only_needed)
    assert len({id(cell.training.volume) for cell in dataset.cells}) == 2


def test_files_become_samples(tmp_path: Path) -> None:
    for state in ("dry", "injected"):
        values = np.ascontiguousarray(shuffled(state).voxels)
        tifffile.imwrite(tmp_path / FILES[state], values, imagej=True, metadata={"axes": "ZYX"})
    dataset = build_slice_dataset(DRY, tmp_path, Crops(CROP, 4))
    assert {dataset.sample(p).caption for p in range(len(dataset))} == set(DRY.captions)
    assert -1 <= dataset.sample(0).pixels.min() < dataset.sample(0).pixels.max() <= 1
    assert pickle.loads(pickle.dumps(dataset)).sample(3).source == dataset.sample(3).source


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        build_slice_dataset(COMPOSITES, tmp_path, Crops(CROP, 4))
    for file in FILES.values():
        assert f"{file}: the file is missing" in str(refusal.value)
