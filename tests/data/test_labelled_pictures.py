"""Digits in IDX files, CIFAR-10 in its binary files: read as they were written, or refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError, SettingsError
from data.labelled.cifar import HELD_OUT, NAMES, TRAINING, read_cifar10
from data.labelled.idx import read_idx, read_mnist
from data.labelled.pictures import LabelledDataset, LabelledPictures, open_labelled

RNG = np.random.default_rng(12)
DIGITS = RNG.integers(0, 256, (23, 28, 28), dtype=np.uint8)
LABELS = np.arange(23, dtype=np.uint8) % 10
TEST_DIGITS = RNG.integers(0, 256, (11, 28, 28), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(DIGITS))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(LABELS))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(TEST_DIGITS)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:11]))
    return tmp_path


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number, name in enumerate((*TRAINING, *HELD_OUT)):
        (folder / name).write_bytes(b"".join(record(2 * number + k) for k in range(2)))
    return tmp_path


def record(number: int) -> bytes:
    """One record of CIFAR-10: its label is `number` modulo 10, its colours are (number, row, column)."""
    planes = np.zeros((3, 32, 32), np.uint8)
    planes[0] = number
    planes[1] += np.arange(32, dtype=np.uint8)[:, None]
    planes[2] += np.arange(32, dtype=np.uint8)[None]
    return bytes([number % 10]) + planes.tobytes()


def test_mnist_is_read_as_written_plain_or_compressed_with_dash_or_dot(mnist: Path) -> None:
    training, held_out = read_mnist(mnist)
    assert np.array_equal(training.pictures[..., 0], DIGITS)
    assert np.array_equal(training.labels, LABELS)
    assert np.array_equal(held_out.pictures[..., 0], TEST_DIGITS)
    assert [training.caption(index) for index in (0, 9, 13)] == ["0", "9", "3"]
    assert set(training.files) == {"train-images-idx3-ubyte", "train-labels.idx1-ubyte"}


def test_cifar_planes_become_channels_and_labels_names(cifar10: Path) -> None:
    training, held_out = read_cifar10(cifar10)
    assert training.pictures.shape == (10, 32, 32, 3)
    assert training.pictures[7, 5, 9].tolist() == [7, 5, 9]
    assert [training.caption(index) for index in (0, 9)] == ["airplane", "truck"]
    assert held_out.pictures[1, 0, 0, 0] == 11
    (cifar10 / "cifar-10-batches-bin" / NAMES).write_text("\n".join(f"kind{n}" for n in range(10)) + "\n\n")
    assert read_cifar10(cifar10)[0].caption(9) == "kind9"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


IMAGES, WORDS = "train-images-idx3-ubyte", "train-labels.idx1-ubyte"
BROKEN_MNIST: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / IMAGES).unlink(), r"train-images-idx3-ubyte: the file is missing \(it may end in .gz\)"),
    "cut": (lambda f: _cut(f / IMAGES), r"says 23 x 28 x 28, which is 18,032 bytes, and holds 18,031"),
    "longer": (lambda f: _lengthened(f / WORDS), r"says 23, which is 23 bytes, and holds 24"),
    "labels as images": (lambda f: (f / IMAGES).write_bytes(idx(LABELS)), r"begins with the bytes 00 00 08 01"),
    "floats": (
        lambda f: (f / WORDS).write_bytes(b"\0\0\x0d\1" + idx(LABELS)[4:]),
        r"00 00 0d 01, expected 00 00 08 01",
    ),
    "in its head": (lambda f: (f / IMAGES).write_bytes(idx(DIGITS)[:9]), r"ends after 9 bytes, in its head"),
    "empty": (lambda f: (f / IMAGES).write_bytes(b""), r"the file is empty"),
    "no picture": (lambda f: (f / IMAGES).write_bytes(idx(DIGITS[:0])), r"0 pictures and 23 labels"),
    "fewer labels": (lambda f: (f / WORDS).write_bytes(idx(LABELS[:20])), r"train: 23 pictures and 20 labels"),
    "label 10": (lambda f: (f / WORDS).write_bytes(idx(LABELS + 1)), r"train: a label is 10, expected 0 to 9"),
    "no square": (lambda f: (f / IMAGES).write_bytes(idx(DIGITS[:, :20])), r"20 x 28 px, expected squares"),
    "other size": (
        lambda f: (f / IMAGES).write_bytes(idx(DIGITS[:, :20, :20])),
        r"train has pictures of 20 px, t10k of",
    ),
    "twice": (
        lambda f: (f / f"{IMAGES}.gz").write_bytes(b"x"),
        r"holds train-images-idx3-ubyte and .*Keep one of them",
    ),
    "no gzip": (lambda f: (f / "t10k-images-idx3-ubyte.gz").write_bytes(b"abc"), r"cannot be unpacked"),
    "cut gzip": (lambda f: _cut(f / "t10k-images-idx3-ubyte.gz"), r"cannot be unpacked: it ends before its own end"),
}


@pytest.mark.parametrize("case", BROKEN_MNIST)
def test_broken_mnist_files_are_refused(case: str, mnist: Path) -> None:
    harm, message = BROKEN_MNIST[case]
    harm(mnist)
    with pytest.raises(DataError, match=message):
        read_mnist(mnist)


def test_everything_that_is_wrong_is_told_at_once(mnist: Path) -> None:
    (mnist / IMAGES).unlink()
    (mnist / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(DataError) as caught:
        read_mnist(mnist)
    assert len(caught.value.problems) == 2


BROKEN_CIFAR: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / TRAINING[3]).unlink(), r"data_batch_4\.bin: the file is missing"),
    "cut": (lambda f: _cut(f / TRAINING[0]), r"holds 6,145 bytes, expected a multiple of 3,073"),
    "label 10": (lambda f: (f / HELD_OUT[0]).write_bytes(b"\x0a" + record(0)[1:]), r"a label is 10, expected 0 to 9"),
    "nine names": (lambda f: (f / NAMES).write_text("\n".join("abcdefghi")), r"names 9 different classes, expected 10"),
    "no text": (lambda f: (f / NAMES).write_bytes(b"\xff"), r"batches\.meta\.txt: cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN_CIFAR)
def test_broken_cifar_files_are_refused(case: str, cifar10: Path) -> None:
    harm, message = BROKEN_CIFAR[case]
    harm(cifar10 / "cifar-10-batches-bin")
    with pytest.raises(DataError, match=message):
        read_cifar10(cifar10)


def test_a_file_may_not_promise_more_than_it_unpacks_to(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(DataError, match="and holds 0"):
        read_idx(tmp_path / "big", 3)


def test_pixels_are_grey_levels_in_model_range_with_black_around_them(mnist: Path) -> None:
    dataset = open_labelled("mnist", mnist, resolution=32, seed=0)
    sample = dataset.sample(5)
    assert sample.pixels.shape == (3, 32, 32)
    index = int(sample.source.removeprefix("train[").removesuffix("]"))
    assert np.array_equal(np.rint((sample.pixels[1, 2:30, 2:30] + 1) * 127.5).astype(int), DIGITS[index])
    assert np.all(sample.pixels[:, :2] == -1)
    assert np.all(sample.pixels[:, :, 30:] == -1)
    assert sample.caption == str(LABELS[index])
    assert dataset.notes == ("pictures    28 px, with black around them up to 32 px",)
    assert open_labelled("mnist", mnist, resolution=None, seed=0).notes == ()


def test_an_epoch_shows_each_picture_once_and_labels_are_dropped_at_their_share(cifar10: Path) -> None:
    dataset = open_labelled("cifar10", cifar10, resolution=None, seed=4, proportion_empty_prompts=0.3)
    samples = [dataset.sample(position) for position in range(600)]
    assert sorted(s.source for s in samples[:10]) == sorted(f"train[{k}]" for k in range(10))
    dropped = [s for s in samples if s.is_dropped]
    assert all(s.caption == "" for s in dropped)
    assert 0.22 < len(dropped) / 600 < 0.38
    again = dataset.sample(17)
    assert (again.source, again.caption) == (samples[17].source, samples[17].caption)


def test_flips_are_keyed_by_the_position_and_mirror_left_and_right(cifar10: Path) -> None:
    plain, flipping = (
        open_labelled("cifar10", cifar10, resolution=None, seed=4, random_flip=flip) for flip in (False, True)
    )
    same = [np.array_equal(plain.sample(p).pixels, flipping.sample(p).pixels) for p in range(40)]
    mirrored = [np.array_equal(plain.sample(p).pixels[:, :, ::-1], flipping.sample(p).pixels) for p in range(40)]
    assert [a or b for a, b in zip(same, mirrored, strict=True)] == [True] * 40
    assert 10 < sum(same) < 30


def test_few_of_each_class_and_held_out_pictures_by_label(mnist: Path) -> None:
    dataset = open_labelled("mnist", mnist, resolution=None, seed=0, images_per_class=1)
    assert len(dataset) == 10
    assert dataset.captions == tuple("0123456789")
    held_out = dataset.held_out_pixels(1)
    assert set(held_out) == set("0123456789")
    assert held_out["3"].shape == (1, 3, 28, 28)
    assert len(dataset.training_pixels(5)["3"]) == 1


def test_pictures_larger_than_the_resolution_are_refused() -> None:
    side = LabelledPictures("train", np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.uint8), ("a",), {})
    with pytest.raises(SettingsError, match="found 16, expected 28 px"):
        LabelledDataset(side, side, resolution=16, seed=0)
