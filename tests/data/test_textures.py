from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.synthetic.textures
from data.dtd import CLASSES, read_dtd
from data.randomness import generator
from data.synthetic.textures import IMAGES_PER_CLASS, SUBSTITUTES, ensure_dtd, texture

TOLD_APART = (
    *("banded", "chequered", "cobwebbed", "cracked", "crosshatched", "fibrous", "grid", "honeycombed", "interlaced"),
    *("knitted", "polka-dotted", "porous", "spiralled", "sprinkled", "striped", "zigzagged"),
)


@cache
def drawn(name: str, index: int) -> np.ndarray:
    return texture(name, index)


def one_direction(picture: np.ndarray, order: int) -> float:
    """Return how far the edges agree in their direction, 0 to 1: order 2 up to half a turn, 4 up to a quarter."""
    down, across = np.gradient(picture.mean(axis=2))
    weight = np.hypot(down, across) ** 2
    return float(abs((weight * np.exp(1j * order * np.arctan2(down, across))).sum() / weight.sum()))


def features(picture: np.ndarray) -> np.ndarray:
    """Return a radial spectrum, two moments and two agreements of directions, of the picture in grey."""
    grey = picture[:96, :96].mean(axis=2)
    grey = (grey - grey.mean()) / grey.std()
    power = np.abs(np.fft.fft2(grey * np.outer(np.hanning(96), np.hanning(96)))) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
    edges = np.geomspace(0.015, 0.5, 9)
    rings = [np.log(power[(radius >= low) & (radius < high)].mean()) for low, high in pairwise(edges)]
    moments = [2 * (grey**3).mean(), 2 * np.log((grey**4).mean())]
    return np.array([*rings, *moments, 4 * one_direction(picture, 2), 4 * one_direction(picture, 4)])


@pytest.mark.parametrize("name", CLASSES)
def test_a_picture_is_a_function_of_its_arguments(name: str) -> None:
    picture = drawn(name, 0)
    assert np.array_equal(picture, texture(name, 0))
    for other in (drawn(name, 1), texture(name, 0, seed=1)):
        assert other.shape != picture.shape or not np.array_equal(other, picture)


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_are_coloured_and_of_the_sizes_promised(name: str) -> None:
    pictures = [drawn(name, index) for index in range(3)]
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert all(96 <= side <= 160 for side in picture.shape[:2])
        assert (picture.std(axis=(0, 1)) > 2).all()
    assert any(picture.shape[0] != picture.shape[1] for picture in pictures)
    assert max(np.ptp(picture.astype(float).mean(axis=(0, 1))) for picture in pictures) > 2  # not grey


def test_most_classes_are_drawn_and_the_others_are_marked() -> None:
    shown = set(CLASSES) - set(SUBSTITUTES)
    assert set(SUBSTITUTES) <= set(CLASSES)
    assert len(shown) >= 24
    assert {"zigzagged", "spiralled", "cobwebbed", "braided", "honeycombed", "wrinkled"} <= shown
    for name in CLASSES:
        picture = drawn(name, 0).astype(int)
        band = picture[picture.shape[0] // 2 + 6, 2:-2]  # below the word
        assert (band.min() > 250) == (name in SUBSTITUTES), name


def test_classes_differ_by_more_than_their_pictures_do() -> None:
    """A nearest centroid on twelve features tells the classes apart; by chance 1 in 16 would be right."""
    found = np.array([[features(drawn(name, index)) for index in range(8)] for name in TOLD_APART])
    spread = found[:, :5].std(axis=(0, 1))
    centroids, others = found[:, :5].mean(axis=1) / spread, found[:, 5:] / spread
    distance = ((others[:, :, None] - centroids) ** 2).sum(axis=-1)
    assert (distance.argmin(axis=-1) == np.arange(len(TOLD_APART))[:, None]).mean() > 0.6


@pytest.mark.parametrize(
    ("name", "half_turn", "quarter_turn"),
    [
        ("striped", (0.8, 1), (0.5, 1)),  # edges in one direction
        ("lined", (0.8, 1), (0.4, 1)),
        ("fibrous", (0.7, 1), (0.3, 1)),
        ("chequered", (0, 0.1), (0.5, 1)),  # in two, at right angles
        ("interlaced", (0, 0.15), (0.7, 1)),
        ("polka-dotted", (0, 0.1), (0, 0.35)),  # in all
        ("spiralled", (0, 0.3), (0, 0.45)),
    ],
)
def test_edges_run_as_the_word_says(
    name: str, half_turn: tuple[float, float], quarter_turn: tuple[float, float]
) -> None:
    pictures = [drawn(name, index) for index in range(8)]
    for order, (low, high) in ((2, half_turn), (4, quarter_turn)):
        assert low <= np.median([one_direction(picture, order) for picture in pictures]) <= high


@pytest.mark.parametrize("index", range(8))
def test_zigzags_have_edges_in_two_directions_and_in_no_other(index: int) -> None:
    down, across = np.gradient(drawn("zigzagged", index).astype(float).mean(axis=2))
    direction = np.arctan2(down, across) % np.pi
    energy, _ = np.histogram(direction, bins=36, range=(0, np.pi), weights=np.hypot(down, across) ** 2)
    energy = energy / energy.sum()
    around = energy + np.roll(energy, 1) + np.roll(energy, -1)  # 15 degrees
    first = int(around.argmax())
    apart = np.minimum((np.arange(36) - first) % 36, (first - np.arange(36)) % 36)
    rest = np.where(apart > 3, around, 0)
    assert rest.max() > 0.2
    assert around[first] + rest.max() > 0.5  # of even edges, 0.17


def test_zigzags_vary_in_colour_and_period() -> None:
    pictures = [drawn("zigzagged", index).astype(float) for index in range(24)]
    assert (np.std([picture.mean(axis=(0, 1)) for picture in pictures], axis=0) > 25).all()
    edges = [np.abs(np.diff(picture.mean(axis=2), axis=0)).mean() / picture.mean(axis=2).std() for picture in pictures]
    assert max(edges) > 2 * min(edges)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make ensure_dtd write three small images of each class, and list the classes that it draws."""
    names: list[str] = []

    def small(name: str, index: int, seed: int) -> np.ndarray:
        names.append(name)
        return generator(seed, name, index).integers(0, 256, (8, 12, 3), dtype=np.uint8)

    monkeypatch.setattr(data.synthetic.textures, "IMAGES_PER_CLASS", 3)
    monkeypatch.setattr(data.synthetic.textures, "texture", small)
    return names


def test_the_stand_in_has_dtds_layout_and_is_written_once(tmp_path: Path, few: list[str]) -> None:
    steps: list[int] = []
    dtd = ensure_dtd(tmp_path / "cache", steps.append)
    assert dtd.name == "dtd"
    assert steps == [3] * 47
    assert len(few) == 3 * 47
    assert [path.name for path in dtd.parent.parent.iterdir()] == [dtd.parent.name]  # no draft is left
    assert sorted(path.name for path in (dtd / "images").iterdir()) == list(CLASSES)
    assert sorted(path.name for path in (dtd / "images" / "woven").iterdir()) == [
        f"woven_{number:04d}.jpg" for number in (1, 2, 3)
    ]
    joint = (dtd / "labels" / "labels_joint_anno.txt").read_text().splitlines()
    assert joint[0].split() == ["banded/banded_0001.jpg", "banded"]
    assert len(joint) == 3 * 47
    assert len(list((dtd / "labels").iterdir())) == 31
    with Image.open(dtd / "images" / "woven" / "woven_0001.jpg") as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
    assert ensure_dtd(tmp_path / "cache", steps.append) == dtd
    assert len(few) == 3 * 47


@pytest.mark.usefixtures("few")
def test_the_stand_in_is_read_back_and_every_split_partitions_it(tmp_path: Path) -> None:
    dtd = ensure_dtd(tmp_path)
    held_out = set()
    for number in range(1, 11):
        split = read_dtd(dtd.parent, CLASSES, number)
        assert (len(split.training), len(split.held_out), split.ignored) == (2 * 47, 47, [])
        assert len({path for path, _ in split.training + split.held_out}) == 3 * 47
        held_out.add(tuple(path.name for path, _ in split.held_out))
    assert len(held_out) == 10


@pytest.mark.usefixtures("few")
def test_two_caches_hold_the_same_bytes(tmp_path: Path) -> None:
    folders = [ensure_dtd(tmp_path / name) for name in ("one", "two")]
    files = [{path.relative_to(dtd): path.read_bytes() for path in dtd.rglob("*.*")} for dtd in folders]
    assert len(files[0]) == 3 * 47 + 31
    assert files[0] == files[1]


@pytest.mark.usefixtures("few")
def test_another_version_of_the_recipe_is_written_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ensure_dtd(tmp_path)
    monkeypatch.setattr(data.synthetic.textures, "RECIPE_VERSION", 10**6)
    after = ensure_dtd(tmp_path)
    assert before != after
    assert len(read_dtd(after, CLASSES).training) == 2 * 47


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path, few: list[str]) -> None:
    def full(_: int) -> None:
        if len(few) > 30:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ensure_dtd(tmp_path, full)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_the_first_one_counts(tmp_path: Path, few: list[str]) -> None:
    def another(_: int) -> None:  # the other process finishes while this one draws
        if len(few) == 3:
            ensure_dtd(tmp_path)

    dtd = ensure_dtd(tmp_path, another)
    assert len(read_dtd(dtd, CLASSES).training) == 2 * 47
    assert len(list(tmp_path.iterdir())) == 1


def test_a_class_has_as_many_images_as_dtds() -> None:
    assert IMAGES_PER_CLASS == 120
