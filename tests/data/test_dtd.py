from collections.abc import Callable
from pathlib import Path

import pytest

from data.dtd import CLASSES, DtdSplit, read_dtd
from data.errors import DataError

PARTS = ("train", "val", "test")
TWO = ("waffled", "polka-dotted")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """DTD's layout with six images of two classes and its stray file; reading a split does not decode images."""
    dtd = tmp_path / "dtd"
    (dtd / "labels").mkdir(parents=True)
    for name in TWO:
        (dtd / "images" / name).mkdir(parents=True)
        for number in range(1, 7):
            (dtd / "images" / name / f"{name}_{number:04d}.jpg").write_bytes(b"jpeg")
    (dtd / "images" / "waffled" / ".directory").write_text("[Dolphin]")
    for split in range(1, 11):
        for place, part in enumerate(PARTS):
            lines = [f"{name}/{name}_{(2 * place + n + split) % 6 + 1:04d}.jpg" for name in TWO for n in (0, 1)]
            (dtd / "labels" / f"{part}{split}.txt").write_text("\n".join(lines) + "\n")
    return dtd


def numbers(members: list[tuple[Path, str]], name: str) -> list[int]:
    return [int(path.stem[-4:]) for path, label in members if label == name]


def test_the_classes_are_the_47_in_alphabetical_order() -> None:
    assert len(set(CLASSES)) == 47
    assert list(CLASSES) == sorted(CLASSES)
    assert (CLASSES[0], CLASSES[30], CLASSES[46]) == ("banded", "polka-dotted", "zigzagged")


def test_train_and_val_are_trained_on_and_test_is_held_out(archive: Path) -> None:
    split = read_dtd(archive, TWO)
    for name in TWO:
        assert numbers(split.training, name) == [2, 3, 4, 5]
        assert numbers(split.held_out, name) == [6, 1]
    assert split.training[0] == (archive / "images" / "waffled" / "waffled_0002.jpg", "waffled")


def test_only_the_classes_asked_for_are_read(archive: Path) -> None:
    split = read_dtd(archive, ["polka-dotted"])
    assert {label for _, label in split.training + split.held_out} == {"polka-dotted"}
    assert (len(split.training), len(split.held_out), split.ignored) == (4, 2, [])


@pytest.mark.parametrize("number", range(1, 11))
def test_each_of_the_ten_splits_is_its_own_label_files(archive: Path, number: int) -> None:
    assert numbers(read_dtd(archive, ["waffled"], number).held_out, "waffled") == [
        (4 + number) % 6 + 1,
        (5 + number) % 6 + 1,
    ]


def test_the_parent_folder_will_do(archive: Path) -> None:
    assert read_dtd(archive.parent, TWO) == read_dtd(archive, TWO)


def test_what_is_no_image_is_ignored_and_listed(archive: Path) -> None:
    waffled = archive / "images" / "waffled"
    (waffled / "._waffled_0001.jpg").write_bytes(b"a resource fork")
    (waffled / "Thumbs.db").write_bytes(b"")
    split = read_dtd(archive, TWO)
    assert sorted(path.name for path in split.ignored) == ["._waffled_0001.jpg", ".directory", "Thumbs.db"]
    assert len(split.training) + len(split.held_out) == 12


def test_an_empty_line_says_nothing(archive: Path) -> None:
    file = archive / "labels" / "val1.txt"
    file.write_text("\n" + file.read_text() + "  \n")
    assert isinstance(read_dtd(archive, TWO), DtdSplit)


def _append(file: str, text: str) -> Callable[[Path], None]:
    def change(dtd: Path) -> None:
        with (dtd / file).open("a") as stream:
            stream.write(text)

    return change


def _remove(file: str) -> Callable[[Path], None]:
    return lambda dtd: (dtd / file).unlink()


def _no_class(dtd: Path) -> None:
    (dtd / "images" / "waffled").rename(dtd / "images" / "waffle")


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (_no_class, ["no folder for images/waffled"]),
        (_remove("images/waffled/waffled_0002.jpg"), ["labels/train1.txt: names 1 files", "waffled/waffled_0002.jpg"]),
        (_append("labels/test1.txt", "waffled/waffled_0099.jpg\n"), ["labels/test1.txt: names 1 files", "_0099.jpg"]),
        (_append("images/waffled/mine.jpg", "x"), ["1 images in no label file of split 1: waffled/mine.jpg"]),
        (
            _append("labels/test1.txt", "waffled/waffled_0002.jpg\n"),
            ["split 1 names 1 images more than once: waffled/waffled_0002.jpg (train, test)"],
        ),
        (
            _append("labels/val1.txt", "waffled/waffled_0004.jpg\n"),
            ["more than once: waffled/waffled_0004.jpg (2 times in val)"],
        ),
        (_append("labels/val1.txt", "waffle/waffle_1.jpg\n"), ["labels/val1.txt: found line 5 'waffle/waffle_1.jpg'"]),
        (_append("labels/val1.txt", "waffled/../a.jpg\n"), ["labels/val1.txt: found line 5"]),
        (_append("labels/val1.txt", "waffled\n"), ["labels/val1.txt: found line 5 'waffled'"]),
        (_remove("labels/val1.txt"), ["labels/val1.txt: cannot be read"]),
        (lambda dtd: (dtd / "labels/val1.txt").write_bytes(b"\xff"), ["labels/val1.txt: byte 0 is not UTF-8"]),
    ],
)
def test_a_damaged_archive_is_refused(archive: Path, damage: Callable[[Path], None], problems: list[str]) -> None:
    damage(archive)
    with pytest.raises(DataError) as refusal:
        read_dtd(archive, TWO)
    assert refusal.value.where == str(archive)
    assert len(refusal.value.problems) == 1
    for problem in problems:
        assert problem in str(refusal.value)


def test_all_that_is_wrong_is_told_at_once(archive: Path) -> None:
    for damage in (
        _remove("images/waffled/waffled_0002.jpg"),
        _append("images/waffled/mine.jpg", "x"),
        _append("labels/test1.txt", "polka-dotted/polka-dotted_0002.jpg\n"),
    ):
        damage(archive)
    with pytest.raises(DataError) as refusal:
        read_dtd(archive, [*TWO, "woven"])
    found = str(refusal.value)
    assert len(refusal.value.problems) == 4
    for name in ("images/woven", "waffled_0002.jpg", "mine.jpg", "polka-dotted_0002.jpg (train, test)"):
        assert name in found


def test_many_files_are_counted_and_the_first_ten_named(archive: Path) -> None:
    for number in range(14):
        (archive / "images" / "waffled" / f"w{number:02d}.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"14 images in no label file .*w09\.jpg and 4 more"):
        read_dtd(archive, TWO)


def test_damage_in_other_classes_and_splits_does_no_harm(archive: Path) -> None:
    (archive / "images" / "waffled" / "mine.jpg").write_bytes(b"x")
    (archive / "labels" / "test2.txt").unlink()
    assert len(read_dtd(archive, ["polka-dotted"]).training) == 4


@pytest.mark.parametrize(
    ("classes", "split", "problem"),
    [
        (["waffle"], 1, "unknown class 'waffle'. Did you mean waffled"),
        (TWO, 0, "found split 0, expected 1 to 10"),
        (TWO, 11, "found split 11, expected 1 to 10"),
    ],
)
def test_what_dtd_does_not_have_is_refused(archive: Path, classes: list[str], split: int, problem: str) -> None:
    with pytest.raises(DataError, match=problem.replace("?", r"\?")):
        read_dtd(archive, classes, split)


def test_a_folder_without_dtd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected DTD as its archive unpacks"):
        read_dtd(tmp_path, TWO)
    with pytest.raises(DataError, match="no such folder"):
        read_dtd(tmp_path / "nowhere", TWO)
