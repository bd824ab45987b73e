from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data.image_dataset
from data.crops import Crops
from data.errors import DataError, SettingsError
from data.image_dataset import (
    CheckedImage,
    ImageDataset,
    build_hub_dataset,
    build_image_dataset,
    check_images,
    split_images,
)
from data.image_files import ImageFile
from data.images import read_image, resized
from data.splits import manifest_hash

RESOLUTION = 8


def write(path: Path, number: int, shape: tuple[int, int] = (RESOLUTION, 12)) -> Path:
    """Write a picture of which every pixel has a colour of its own, and no other number has the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)).save(path)
    return path


def some_files(folder: Path, number: int, label: str = "") -> list[ImageFile]:
    return [ImageFile(write(folder / label / f"{i}.png", i), f"number {i}", label, folder) for i in range(number)]


def expected_crop(path: Path, origin: tuple[int, int]) -> np.ndarray:
    pixels = resized(read_image(path), RESOLUTION)[origin[0] :, origin[1] :][:RESOLUTION, :RESOLUTION]
    return np.moveaxis(pixels * 2 - 1, -1, 0)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    images = some_files(tmp_path, 7)
    return ImageDataset(images[:5], images[5:], Crops(RESOLUTION, 1))


CROP_SETTINGS = {field.name for field in fields(Crops)}


def from_folder(folder: Path, **settings: object) -> ImageDataset:
    """Build a dataset from a folder with settings of the crops and of the split."""
    of_crops = {"resolution": RESOLUTION, "seed": 1} | {k: v for k, v in settings.items() if k in CROP_SETTINGS}
    others = {k: v for k, v in settings.items() if k not in CROP_SETTINGS}
    return build_image_dataset(folder, Crops(**of_crops), **others)  # type: ignore[arg-type]


def drawn(dataset: ImageDataset, positions: list[int]) -> list[tuple[bytes, str, bool, str]]:
    samples = [dataset.sample(position) for position in positions]
    return [(s.pixels.tobytes(), s.caption, s.is_prior, s.source) for s in samples]


def varied(folder: Path, seed: int = 1) -> ImageDataset:
    images = some_files(folder, 6)
    return ImageDataset(images, [], Crops(RESOLUTION, seed, random_flip=True, proportion_empty_prompts=0.3))


def test_a_sample_is_the_same_in_any_order_and_after_any_other(tmp_path: Path) -> None:
    positions = [0, 5, 700, 3, 100_000]
    first = varied(tmp_path)
    forwards = drawn(first, positions)
    assert forwards == drawn(first, positions[::-1])[::-1]
    assert forwards == drawn(varied(tmp_path), positions)
    assert forwards != drawn(varied(tmp_path, seed=2), positions)


def test_a_sample_is_the_same_in_another_process(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    positions = list(range(12))
    here = drawn(dataset, positions)
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(drawn, (dataset, positions)) == here


def test_a_sample_is_the_same_whether_images_are_kept_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = list(range(18))
    kept = varied(tmp_path)
    everything = drawn(kept, positions)
    one_image = RESOLUTION * 12 * 3 * 4
    assert len(kept._kept) == 6
    for limit, number in ((0, 0), (one_image - 1, 0), (2 * one_image, 2), (3 * one_image - 1, 2)):
        monkeypatch.setattr(data.image_dataset, "CACHE_BYTES", limit)
        dataset = varied(tmp_path)
        assert drawn(dataset, positions) == everything
        assert len(dataset._kept) == number
        assert sum(pixels.nbytes for pixels in dataset._kept.values()) <= limit


def test_kept_images_do_not_travel_to_another_process(tmp_path: Path) -> None:
    dataset = varied(tmp_path)
    before = len(pickle.dumps(dataset))
    drawn(dataset, list(range(6)))
    assert len(pickle.dumps(dataset)) == before
    assert len(dataset._kept) == 6


def test_each_epoch_shows_every_training_image_once_and_no_held_out_one(dataset: ImageDataset) -> None:
    orders = []
    for epoch in range(3):
        samples = [dataset.sample(epoch * len(dataset) + offset) for offset in range(len(dataset))]
        orders.append([sample.source.split(" @ ")[0] for sample in samples])
        assert Counter(orders[-1]) == Counter(f"{i}.png" for i in range(5))
        assert [sample.caption for sample in samples] == [f"number {name[0]}" for name in orders[-1]]
    assert len({tuple(order) for order in orders}) > 1
    assert dataset.captions == tuple(f"number {i}" for i in range(5))


@pytest.mark.parametrize("shape", [(RESOLUTION, 12), (12, RESOLUTION), (24, 16), (5, 9)])
@pytest.mark.parametrize("center_crop", [False, True])
def test_pixels_are_the_crop_that_the_source_names(tmp_path: Path, shape: tuple[int, int], center_crop: bool) -> None:
    path = write(tmp_path / "a.png", 0, shape)
    image = ImageFile(path, "a", "", tmp_path)
    dataset = ImageDataset([image], [], Crops(RESOLUTION, 3, center_crop=center_crop))
    origins = set()
    for position in range(40):
        sample = dataset.sample(position)
        assert sample.pixels.shape == (3, RESOLUTION, RESOLUTION)
        assert sample.pixels.dtype == np.float32
        assert sample.pixels.flags.c_contiguous
        assert not sample.is_prior
        name, _, place = sample.source.partition(" @ ")
        row, column = (int(part) for part in place.strip("()").split(","))
        np.testing.assert_allclose(sample.pixels, expected_crop(path, (row, column)), atol=1e-6)
        assert name == "a.png"
        origins.add((row, column))
    rows, columns = resized(read_image(path), RESOLUTION).shape[:2]
    whole = dataset.whole_images()[0]
    assert (len(dataset.whole_images()), whole.name, whole.caption) == (1, "a.png", sample.caption)
    assert whole.pixels.shape == (3, rows, columns)
    np.testing.assert_array_equal(whole.pixels[:, row : row + RESOLUTION, column : column + RESOLUTION], sample.pixels)
    assert min(rows, columns) == RESOLUTION
    middle = {((rows - RESOLUTION) // 2, (columns - RESOLUTION) // 2)}
    everywhere = {(r, c) for r in range(rows - RESOLUTION + 1) for c in range(columns - RESOLUTION + 1)}
    assert origins == (middle if center_crop else everywhere)


def test_images_are_mirrored_left_right_and_only_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", 0, (RESOLUTION, RESOLUTION))
    image = ImageFile(path, "a", "", tmp_path)
    upright = expected_crop(path, (0, 0))
    mirrored = 0
    dataset = ImageDataset([image], [], Crops(RESOLUTION, 3, random_flip=True))
    for position in range(200):
        sample = dataset.sample(position)
        assert sample.pixels.flags.c_contiguous
        found = [np.allclose(sample.pixels, candidate, atol=1e-6) for candidate in (upright, upright[:, :, ::-1])]
        assert sum(found) == 1
        mirrored += found[1]
    assert 70 < mirrored < 130  # 4 standard deviations
    plain = ImageDataset([image], [], Crops(RESOLUTION, 3))
    assert all(np.allclose(plain.sample(position).pixels, upright, atol=1e-6) for position in range(20))


@pytest.mark.parametrize("proportion", [0.0, 0.25, 1.0])
def test_a_proportion_of_the_samples_has_no_words(tmp_path: Path, proportion: float) -> None:
    images = some_files(tmp_path, 2)
    dataset = ImageDataset(images, [], Crops(RESOLUTION, 1, proportion_empty_prompts=proportion))
    empty = np.mean([dataset.sample(position).caption == "" for position in range(400)])
    assert abs(empty - proportion) <= 4 * np.sqrt(proportion * (1 - proportion) / 400)
    assert dataset.captions == ("number 0", "number 1")


def test_held_out_pixels_are_the_middles_of_evenly_spaced_images_by_caption(tmp_path: Path) -> None:
    folder = tmp_path
    dotted = [ImageFile(write(folder / f"d{i}.png", i), "dotted", "", folder) for i in range(6)]
    lined = [ImageFile(write(folder / f"l{i}.png", 10 + i), "lined", "", folder) for i in range(2)]
    plain = [ImageFile(write(folder / "p.png", 20), "plain", "", folder)]
    judged = [ImageFile(write(folder / f"e{i}.png", 30 + i), "dotted", "", folder) for i in range(4)]
    dataset = ImageDataset([*dotted, *plain], [*judged, *lined], Crops(RESOLUTION, 1, random_flip=True))
    held_out = dataset.held_out_pixels(3)
    assert {caption: pixels.shape for caption, pixels in held_out.items()} == {
        "dotted": (3, 3, RESOLUTION, RESOLUTION),
        "lined": (2, 3, RESOLUTION, RESOLUTION),
    }
    for pixels, image in zip(held_out["dotted"], (judged[0], judged[2], judged[3]), strict=True):
        np.testing.assert_allclose(pixels, expected_crop(image.path, (0, 2)), atol=1e-6)
    training = dataset.training_pixels(2)
    assert list(training) == ["dotted", "plain"]
    for pixels, image in zip(training["dotted"], (dotted[1], dotted[4]), strict=True):
        np.testing.assert_allclose(pixels, expected_crop(image.path, (0, 2)), atol=1e-6)
    assert all(pixels.dtype == np.float32 for pixels in (*held_out.values(), *training.values()))
    assert all(np.abs(pixels).max() <= 1 for pixels in (*held_out.values(), *training.values()))


def test_without_held_out_images_there_are_none(tmp_path: Path) -> None:
    dataset = ImageDataset(some_files(tmp_path, 2), [], Crops(RESOLUTION, 1))
    assert dataset.held_out_pixels(4) == {}
    assert dataset.um_per_px is None
    assert dataset.grey_values == {}


def test_the_manifest_says_files_hashes_split_and_counts(tmp_path: Path) -> None:
    small = ImageFile(write(tmp_path / "woven" / "s.png", 50, (5, 30)), "", "woven", tmp_path)
    judged = ImageFile(write(tmp_path / "woven" / "t.png", 51), "", "woven", tmp_path)
    twin = ImageFile(write(tmp_path / "woven" / "u.png", 1), "twin", "woven", tmp_path)
    images = some_files(tmp_path, 3, "dotted")
    dataset = ImageDataset([*images, small, twin], [judged], Crops(RESOLUTION, 4, center_crop=True), name="mine")
    manifest = dataset.manifest()
    assert manifest == json.loads(json.dumps(manifest))
    assert manifest["labels"] == {
        "dotted": {"training": 3, "held_out": 0},
        "woven": {"training": 2, "held_out": 1},
    }
    assert manifest["held_out"] == [
        {
            "file": "woven/t.png",
            "sha256": hashlib.sha256(judged.path.read_bytes()).hexdigest(),
            "caption": "",
            "label": "woven",
        }
    ]
    assert [entry["file"] for entry in manifest["training"]] == [  # type: ignore[attr-defined]
        "dotted/0.png",
        "dotted/1.png",
        "dotted/2.png",
        "woven/s.png",
        "woven/u.png",
    ]
    expected = {"num_images": 5, "num_enlarged": 1, "num_without_caption": 2, "num_duplicates": 1, "seed": 4}
    assert {key: manifest[key] for key in expected} == expected
    assert (manifest["name"], manifest["resolution_px"], manifest["um_per_px"]) == ("mine", RESOLUTION, None)
    other = ImageDataset([*images, small], [], Crops(RESOLUTION, 4, center_crop=True), name="mine")
    assert manifest_hash(other.manifest()) != manifest_hash(manifest)


def test_the_manifest_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    hashes = set()
    for place in ("here", "there"):
        some_files(tmp_path / place / "mine", 6)
        dataset = build_image_dataset(tmp_path / place / "mine", Crops(RESOLUTION, 1))
        hashes.add(manifest_hash(dataset.manifest()))
    assert len(hashes) == 1


def test_a_file_that_changes_after_the_check_is_refused(tmp_path: Path) -> None:
    images = some_files(tmp_path, 1)
    dataset = ImageDataset(images, [], Crops(RESOLUTION, 1))
    write(images[0].path, 99)
    with pytest.raises(DataError, match=r"0\.png: has changed since it was checked"):
        dataset.sample(0)


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    strip = ImageFile(write(tmp_path / "strip.png", 1, (1, 9000)), "", "", tmp_path)
    with pytest.raises(DataError, match=r"strip\.png: its 1 x 9000 px would become 512 x 4608000 px"):
        ImageDataset([strip], [], Crops(512, 1))


@pytest.mark.parametrize(
    ("setting", "value", "option"),
    [
        ("resolution", 0, "--resolution: found 0"),
        ("proportion_empty_prompts", 1.5, "--proportion_empty_prompts: found 1.5"),
        ("proportion_empty_prompts", float("nan"), "--proportion_empty_prompts: found nan"),
        ("images_per_class", 0, "--images_per_class: found 0"),
        ("held_out_fraction", 1.0, "--held_out_fraction: found 1.0"),
        ("held_out_fraction", -0.1, "--held_out_fraction: found -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: str, value: float, option: str) -> None:
    some_files(tmp_path, 1)
    with pytest.raises(SettingsError, match=option):
        from_folder(tmp_path, **{setting: value})


def test_every_file_that_cannot_be_used_is_named_before_training(tmp_path: Path) -> None:
    some_files(tmp_path, 3)
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:90])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.webp").touch()
    with pytest.raises(DataError) as caught:
        build_image_dataset(tmp_path, Crops(RESOLUTION, 1))
    assert caught.value.where == f"{tmp_path}: 3 of 6 images cannot be used"
    *problems, last = caught.value.problems
    assert [problem.split(": ")[0] for problem in problems] == ["cut.png", "empty.webp", "text.jpg"]
    assert last == data.image_dataset.NO_CAPTIONS
    assert [part in str(caught.value) for part in ("cannot be decoded", "is empty", "no image of the")] == [True] * 3


def test_a_folder_of_classes_is_split_per_class_and_limited_evenly(tmp_path: Path) -> None:
    for start, (label, number) in enumerate({"banded": 10, "dotted": 5, "woven": 4}.items()):
        for i in range(number):
            write(tmp_path / label / f"{i}.png", 100 * start + i)
    dataset = build_image_dataset(tmp_path, Crops(RESOLUTION, 1))
    assert dataset.manifest()["labels"] == {
        "banded": {"training": 8, "held_out": 2},
        "dotted": {"training": 4, "held_out": 1},
        "woven": {"training": 4, "held_out": 0},
    }
    assert dataset.captions == ("banded", "dotted", "woven")
    assert list(dataset.held_out_pixels(8)) == ["banded", "dotted"]
    assert dataset.name == tmp_path.name

    def names(side: tuple[CheckedImage, ...], label: str) -> list[str]:
        return [image.name for image in side if image.label == label]

    for number in (3, 8, 99):
        limited = build_image_dataset(tmp_path, Crops(RESOLUTION, 2), images_per_class=number)
        assert limited.held_out == dataset.held_out  # the seed of a run does not change what it is judged by
        for label, size in (("banded", 8), ("dotted", 4), ("woven", 4)):
            chosen, everything = names(limited.training, label), names(dataset.training, label)
            assert len(chosen) == min(number, size)
            places = [everything.index(name) for name in chosen]
            assert places == sorted(places)
            assert len(set(np.diff(places))) <= 2
    none = build_image_dataset(tmp_path, Crops(RESOLUTION, 1), held_out_fraction=0)
    assert (len(none), none.held_out) == (19, ())


@dataclass(frozen=True)
class Fake:
    name: str
    label: str
    caption: str = ""

    def content(self) -> bytes:
        raise AssertionError("a split reads no file")


def fakes(entries: list[tuple[str, int]]) -> list[CheckedImage]:
    return [
        CheckedImage(Fake(f"{i}", label), hashlib.sha256(bytes([content])).hexdigest(), (9, 9))
        for i, (label, content) in enumerate(entries)
    ]


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=60),
    fraction=st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.95]),
    order=st.randoms(use_true_random=False),
)
def test_a_split_is_made_of_contents_and_leaks_none(
    entries: list[tuple[str, int]], fraction: float, order: object
) -> None:
    images = fakes(entries)
    training, held_out = split_images(images, fraction)
    assert sorted([*training, *held_out], key=images.index) == images
    assert not {image.sha256 for image in training} & {image.sha256 for image in held_out}
    for label in "abc":
        different = {image.sha256 for image in images if image.label == label}
        out = {image.sha256 for image in held_out if image.label == label}
        if len(different) < 5 or fraction == 0:
            assert not out
        else:
            assert len(out) <= min(max(1, round(len(different) * fraction)), len(different) - 1)
    shuffled = list(images)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = split_images(shuffled, fraction)[1]
    assert {image.sha256 for image in again} == {image.sha256 for image in held_out}


@pytest.mark.parametrize(
    ("number", "fraction", "expected"),
    [(4, 0.5, 0), (5, 0.2, 1), (5, 0.01, 1), (5, 0.99, 4), (10, 0.2, 2), (120, 0.2, 24), (120, 0, 0), (1, 0.2, 0)],
)
def test_the_number_held_out_is_the_fraction(number: int, fraction: float, expected: int) -> None:
    training, held_out = split_images(fakes([("a", i) for i in range(number)]), fraction)
    assert (len(training), len(held_out)) == (number - expected, expected)


def test_what_is_held_out_stays_so_under_another_name(tmp_path: Path) -> None:
    first = some_files(tmp_path / "first", 10)
    for image in first:
        (tmp_path / "second").mkdir(exist_ok=True)
        (tmp_path / "second" / f"{image.path.stem[::-1]}z.png").write_bytes(image.content())
    contents = [
        {image.sha256 for image in build_image_dataset(tmp_path / place, Crops(RESOLUTION, seed)).held_out}
        for seed, place in enumerate(("first", "second"))
    ]
    assert len(contents[0]) == 2
    assert contents[0] == contents[1]


def test_identical_files_are_on_the_same_side(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.png", i)
        write(tmp_path / f"copy {i}.png", i)
    dataset = build_image_dataset(tmp_path, Crops(RESOLUTION, 1), held_out_fraction=0.3)
    assert len(dataset.held_out) == 4
    assert not {image.sha256 for image in dataset.training} & {image.sha256 for image in dataset.held_out}
    assert dataset.manifest()["num_duplicates"] == 6


def test_a_checked_image_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = check_images(some_files(tmp_path, 2))
    assert [image.shape_px for image in checked] == [(RESOLUTION, 12)] * 2
    monkeypatch.setattr(data.image_dataset, "decode_image", None)
    assert check_images(checked) == checked


def test_training_images_that_are_held_out_too_are_left_out_and_told(tmp_path: Path) -> None:
    images = some_files(tmp_path, 4)
    copy = ImageFile(write(tmp_path / "copy.png", 2), "copy", "", tmp_path)
    dataset = ImageDataset(images, [copy], Crops(RESOLUTION, 1), split="official")
    assert [image.name for image in dataset.training] == ["0.png", "1.png", "3.png"]
    assert dataset.manifest()["num_withheld"] == 1
    assert dataset.notes == (
        "split       official: 3 images are trained on, 1 held out, 1 training images left out as copies of held-out "
        "ones",
    )
    with pytest.raises(DataError, match="every training image is held out too"):
        ImageDataset(images[2:3], [copy], Crops(RESOLUTION, 1))


SHAPES = {"wide": (8, 21), "tall": (30, 16), "square": (9, 9), "strip": (4, 60), "twice": (16, 33)}


def of_all_shapes(folder: Path) -> list[ImageFile]:
    """Return 13 pictures: 5 wide, 3 tall, 2 square, 1 strip, 2 twice as wide as high."""
    numbers = {"wide": 5, "tall": 3, "square": 2, "strip": 1, "twice": 2}
    names = [(name, i) for name, number in numbers.items() for i in range(number)]
    return [
        ImageFile(write(folder / f"{name}{i}.png", seed, SHAPES[name]), name, "", folder)
        for seed, (name, i) in enumerate(names)
    ]


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_with_buckets_every_micro_batch_has_one_size_and_every_image_is_shown(tmp_path: Path, micro_batch: int) -> None:
    images = of_all_shapes(tmp_path)
    dataset = ImageDataset(images, [], Crops(16, 1, random_flip=True, bucket_batch=micro_batch))
    for epoch in range(2):
        samples = [dataset.sample(epoch * len(dataset) + offset) for offset in range(len(dataset))]
        assert {sample.source.split(" @ ")[0] for sample in samples} == {image.name for image in images}
        for start in range(0, len(samples), micro_batch):
            assert len({sample.pixels.shape for sample in samples[start : start + micro_batch]}) == 1
    shapes = {sample.caption: sample.pixels.shape[1:] for sample in samples}
    assert all(rows * columns <= 16 * 16 for rows, columns in shapes.values())
    assert set(shapes.values()) == set(dataset._order.sizes)  # type: ignore[attr-defined]
    assert shapes["wide"] == (8, 24)
    assert shapes["square"] == (16, 16)
    manifest: dict = dataset.manifest()
    assert manifest["num_images"] == 13
    buckets = manifest["aspect_buckets"]
    assert buckets["epoch_positions"] == len(dataset) == 13 + buckets["num_repeats"]
    assert f"{buckets['num_repeats']} of them repeats" in "".join(dataset.notes)
    assert "judged as squares of 16 px" in "".join(dataset.notes)


def test_a_bucketed_image_is_resized_by_the_one_factor_that_covers_its_bucket(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", 3, (24, 90))
    dataset = ImageDataset([ImageFile(path, "a", "", tmp_path)], [], Crops(16, 1, bucket_batch=1))
    whole = np.moveaxis(resized(read_image(path), 9) * 2 - 1, -1, 0)  # 32 of 90 columns are 8.53 of 24 rows
    assert whole.shape == (3, 9, 34)
    for position in range(12):
        sample = dataset.sample(position)
        row, column = (int(part) for part in sample.source.split(" @ ")[1].strip("()").split(","))
        np.testing.assert_allclose(sample.pixels, whole[:, row : row + 8, column : column + 32], atol=1e-6)


def test_buckets_change_what_is_trained_on_and_not_what_is_judged(tmp_path: Path) -> None:
    images = of_all_shapes(tmp_path)
    plain, bucketed = (ImageDataset(images[3:], images[:3], Crops(16, 1, bucket_batch=batch)) for batch in (None, 2))
    assert {plain.sample(position).pixels.shape for position in range(len(plain))} == {(3, 16, 16)}
    assert len({bucketed.sample(position).pixels.shape for position in range(len(bucketed))}) > 2
    assert plain.resolution == bucketed.resolution == 16
    for one, other in (
        (plain.held_out_pixels(4), bucketed.held_out_pixels(4)),
        (plain.training_pixels(4), bucketed.training_pixels(4)),
    ):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[caption], other[caption]) for caption in one)
    assert plain.manifest()["aspect_buckets"] is None
    assert manifest_hash(plain.manifest()) != manifest_hash(bucketed.manifest())


def test_bucketed_samples_are_the_same_in_another_process(tmp_path: Path) -> None:
    dataset = ImageDataset(of_all_shapes(tmp_path), [], Crops(16, 1, random_flip=True, bucket_batch=2))
    positions = [0, 700, 3, 100_000]
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(drawn, (dataset, positions)) == drawn(dataset, positions)


def test_a_resolution_that_no_bucket_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--aspect_buckets: .* multiples of 8 px.*found 7"):
        ImageDataset(some_files(tmp_path, 1), [], Crops(7, 1, bucket_batch=2))


def grouped(folder: Path, groups: list[str], place: str = "{group}/{i}.png") -> None:
    """Write one picture for each name in groups, with a metadata.jsonl that says them."""
    rows = []
    for i, group in enumerate(groups):
        name = place.format(i=i, group=group)
        write(folder / name, i)
        rows.append({"file_name": name, "text": f"caption {i % 2}", **({"group": group} if group else {})})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sides(dataset: ImageDataset) -> list[set[str]]:
    return [{image.name.split("/")[0] for image in side} for side in (dataset.training, dataset.held_out)]


def test_a_group_of_the_metadata_is_not_split(tmp_path: Path) -> None:
    grouped(tmp_path / "ours", [f"specimen {i // 4}" for i in range(40)], place="{i}.png")
    dataset = from_folder(tmp_path / "ours", held_out_fraction=0.3)
    specimens = [
        {int(image.name.split(".")[0]) // 4 for image in side} for side in (dataset.training, dataset.held_out)
    ]
    assert specimens[0] | specimens[1] == set(range(10))
    assert not specimens[0] & specimens[1]
    assert len(specimens[1]) == 3
    assert "split       random, by group, 10 of them: 28 images are trained on, 12 held out" in dataset.notes
    plain = tmp_path / "plain"
    grouped(plain, [""] * 40, place="{i}.png")
    assert "each image by itself" in from_folder(plain).notes[0]


def test_a_folder_or_a_label_is_held_out_whole_where_asked(tmp_path: Path) -> None:
    for i in range(40):
        write(tmp_path / f"class{i // 8}" / f"{i}.png", i)
    by_image = sides(from_folder(tmp_path))
    assert by_image == [{f"class{i}" for i in range(5)}] * 2
    for split_by in ("folder", "label"):
        training, held_out = sides(from_folder(tmp_path, split_by=split_by))
        assert (len(training), len(held_out)) == (4, 1)
        assert not training & held_out
    flat = tmp_path / "class0"
    with pytest.raises(SettingsError, match=r"--split_by folder: all images of .* have the same folder"):
        from_folder(flat, split_by="folder")


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    some_files(tmp_path, 2)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / ".directory").touch()
    assert from_folder(tmp_path).notes[0] == (
        "ignored     files that are neither images nor captions (2): .directory, notes.md"
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that `datasets` understands, three classes of six, and a cache beside it; nothing asks a network."""
    folder = tmp_path_factory.mktemp("hub")
    for start, label in enumerate(("banded", "dotted", "woven")):
        for i in range(6):
            write(folder / "classes" / "train" / label / f"{i}.png", 10 * start + i)
    rows = []
    for i in range(6):
        write(folder / "captions" / "train" / f"{i}.png", i)
        rows.append({"file_name": f"{i}.png", "text": f" number {i} ", "number": i, "half": f"half {i // 3}"})
    (folder / "captions" / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_MODULES_CACHE", str(folder / "modules"))
        yield folder


def from_hub(name: Path | str, **options: object) -> ImageDataset:
    defaults: dict[str, object] = {
        "config": None,
        "split": "train",
        "image_column": "image",
        "caption_column": "label",
    }
    of_crops = {"resolution": RESOLUTION, "seed": 1} | {k: v for k, v in options.items() if k in CROP_SETTINGS}
    others = defaults | {k: v for k, v in options.items() if k not in CROP_SETTINGS}
    return build_hub_dataset(str(name), Crops(**of_crops), **others)  # type: ignore[arg-type]


def test_a_hub_dataset_of_classes_equals_the_same_folder(hub: Path) -> None:
    ours = build_image_dataset(hub / "classes" / "train", Crops(RESOLUTION, 1))
    theirs = from_hub(hub / "classes")
    assert theirs.captions == ours.captions == ("banded", "dotted", "woven")
    assert [image.sha256 for image in theirs.training] == [image.sha256 for image in ours.training]
    assert [image.sha256 for image in theirs.held_out] == [image.sha256 for image in ours.held_out]
    assert theirs.manifest()["labels"] == ours.manifest()["labels"]
    for position in range(5):
        mine, other = ours.sample(position), theirs.sample(position)
        np.testing.assert_array_equal(mine.pixels, other.pixels)
        assert mine.caption == other.caption
        assert other.source.startswith("train[")


def test_rows_of_one_group_are_on_the_same_side(hub: Path) -> None:
    dataset = from_hub(hub / "captions", caption_column="text", group_column="half", held_out_fraction=0.4)
    indices = [{int(image.name.split("[")[1][:-1]) for image in side} for side in (dataset.training, dataset.held_out)]
    assert sorted(map(sorted, indices)) == [[0, 1, 2], [3, 4, 5]]
    loose = from_hub(hub / "captions", caption_column="text", group_column="number", held_out_fraction=0.4)
    assert (len(loose.training), len(loose.held_out)) == (4, 2)


def test_a_hub_dataset_of_captions_says_them(hub: Path) -> None:
    dataset = from_hub(hub / "captions", caption_column="text", split="train[:5]", held_out_fraction=0)
    assert dataset.captions == tuple(f"number {i}" for i in range(5))
    assert [image.name for image in dataset.training] == [f"train[:5][{i}]" for i in range(5)]
    assert dataset.manifest()["labels"] == {"": {"training": 5, "held_out": 0}}
    copy = pickle.loads(pickle.dumps(dataset))
    assert drawn(copy, [0, 3]) == drawn(dataset, [0, 3])


@pytest.mark.parametrize(
    ("folder", "options", "expected"),
    [
        (
            "classes",
            {"image_column": "picture"},
            "no column 'picture'. Its columns: image, label",
        ),
        ("classes", {"caption_column": "text"}, "no column 'text'. Its columns: image, label"),
        (
            "classes",
            {"image_column": "label"},
            "--image_column: the column 'label' holds Class.*expected images",
        ),
        ("captions", {"caption_column": "image"}, "--caption_column: the column 'image' holds Image.*expected text"),
        ("captions", {"group_column": "image"}, "--group_column: the column 'image' holds Image.*expected text"),
        ("captions", {"group_column": "specimen"}, "--group_column: .* has no column 'specimen'"),
        ("captions", {"caption_column": "number"}, "--caption_column: the column 'number' holds Value.*expected text"),
        ("classes", {"split": "test"}, 'split test.* cannot be used: Unknown split "test"'),
        ("classes", {"config": "large"}, "configuration large.* cannot be used: .*large"),
        ("nothing", {}, "nothing.* cannot be used: Couldn't find any data file"),
        ("classes", {"resolution": 0, "image_column": "picture"}, "--resolution: found 0"),
    ],
)
def test_what_a_hub_dataset_does_not_have_is_told(
    hub: Path, folder: str, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(SettingsError, match=expected):
        from_hub(hub / folder, **options)


def test_both_columns_are_checked_at_once(hub: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        from_hub(hub / "classes", image_column="picture", caption_column="text")
    assert len(caught.value.problems) == 2


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached_is_told_so() -> None:
    with pytest.raises(SettingsError, match=r"nobody/nothing .* could not be fetched: .*Check its name, the network"):
        from_hub("nobody/nothing")


@pytest.mark.usefixtures("hub")
def test_every_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    whole = {"bytes": buffer.getvalue(), "path": None}
    cut = {"bytes": buffer.getvalue()[:50], "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})

    def stored(place: str, images: list[object], captions: list[str | None]) -> Path:
        rows = datasets.Dataset.from_dict({"image": images, "label": captions}, features=features)
        (tmp_path / place).mkdir()
        rows.to_parquet(tmp_path / place / "train.parquet")
        return tmp_path / place

    with pytest.raises(DataError) as caught:
        from_hub(stored("captions", [whole] * 4, ["a", None, " ", "b\0"]))
    told = sorted(problem.split(": ")[0] for problem in caught.value.problems)
    assert told == ["train[1]", "train[2]", "train[3]"]
    with pytest.raises(DataError) as caught:
        from_hub(stored("images", [whole, cut, None], ["a", "b", "c"]))
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["train[1]", "train[2]"]
    assert "has no image in the column image" in caught.value.problems[1]
    good = from_hub(stored("good", [whole, whole], ["a", "b"]))
    assert good.captions == ("a", "b")
    np.testing.assert_allclose(good.sample(0).pixels[:, 0, 0], [1, -1, -1])
