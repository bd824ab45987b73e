"""A sheet shows every picture whole, apart from the others, and in its own colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.sheets import Row, save_png, sheet, to_picture


def flat(value: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Return a picture in a colour that neither letters nor lines have."""
    return np.full((*size, 3), (value, 255 - value, 40), dtype=np.uint8)


def box(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a colour, of which every pixel between must be."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(axis=-1))
    found = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    assert len(rows) == (found[2] - found[0]) * (found[3] - found[1])
    return found


@pytest.mark.parametrize(
    "image",
    [
        np.array([[0, 128], [254, 255]], dtype=np.uint8),
        np.array([[0, 128 / 255], [254 / 255, 1]], dtype=np.float32),
        np.array([[-0.5, 128.4 / 255], [253.6 / 255, 1.5]], dtype=np.float64),
    ],
)
@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1), (2, 2, 3)])
def test_grey_levels_are_rounded_and_kept_in_every_channel(image: np.ndarray, shape: tuple[int, ...]) -> None:
    given = np.repeat(image[..., None], 3, axis=-1) if shape[-1] == 3 else image.reshape(shape)
    picture = np.asarray(to_picture(given))
    assert picture.shape == (2, 2, 3)
    assert (picture == np.array([[0, 128], [254, 255]])[..., None]).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 2)),
        np.zeros(4),
        np.zeros((4, 4), dtype=np.uint16),
        np.full((4, 4), np.nan),
        np.zeros((1, 4, 4, 3)),
    ],
    ids=["two channels", "a line", "16 bit", "not finite", "a batch"],
)
def test_what_is_no_picture_is_a_defect(image: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        to_picture(image)


def test_pictures_are_enlarged_by_repetition_and_stand_in_a_grid() -> None:
    values = [[10, 60, 110], [160, 210, 250]]
    made = sheet([Row(f"row {i}", [flat(v) for v in line]) for i, line in enumerate(values)], "title", scale=5)
    boxes = [[box(made, (v, 255 - v, 40)) for v in line] for line in values]
    for line in boxes:
        for left, top, right, bottom in line:
            assert (right - left, bottom - top) == (40, 40)
            assert top == line[0][1]
    for column in range(3):
        assert boxes[0][column][0] == boxes[1][column][0]
    assert boxes[0][1][0] > boxes[0][0][2]
    assert boxes[1][0][1] > boxes[0][0][3]


def test_pixels_are_repeated_and_not_interpolated() -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 1] = (250, 0, 0)
    made = sheet([Row("", [image])], scale=50)
    left, top, right, bottom = box(made, (250, 0, 0))
    assert (right - left, bottom - top) == (50, 50)


def test_white_pictures_stay_apart() -> None:
    made = np.asarray(sheet([Row("white", [np.ones((20, 20)), np.ones((20, 20))])], scale=1))
    white = (made == 255).all(axis=-1)
    # along a row of pixels through both pictures: margin and label, line, picture, line, picture, line, margin
    crossing = white[white.shape[0] - 12 - 3 - 10]
    assert np.flatnonzero(np.diff(crossing.astype(int))).size >= 6
    widths = np.diff(np.flatnonzero(np.diff(crossing.astype(int))))[-4:]
    assert widths.tolist() == [20, 3, 20, 3]


@pytest.mark.parametrize(("size", "shown"), [((16, 16), 96), ((64, 64), 128), ((100, 100), 100), ((300, 200), 200)])
def test_small_pictures_are_shown_at_96_px_or_more(size: tuple[int, int], shown: int) -> None:
    made = sheet([Row("", [flat(99, size)])])
    left, _, right, _ = box(made, (99, 156, 40))
    assert right - left == shown


def test_pictures_of_different_sizes_are_shown_whole() -> None:
    made = sheet([Row("", [flat(10, (8, 20)), flat(60, (30, 5))]), Row("", [flat(110, (5, 5))])], scale=2)
    for value, size in ((10, (40, 16)), (60, (10, 60)), (110, (10, 10))):
        left, top, right, bottom = box(made, (value, 255 - value, 40))
        assert (right - left, bottom - top) == size


def ink(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L")) < 100


def test_long_labels_are_wrapped_beside_the_pictures() -> None:
    label = "sf_dry sf_compacted sf_warp, a very long caption of a woven composite " + "w" * 60
    made = sheet([Row(label, [flat(99)])], scale=12)
    left, _, _, _ = box(made, (99, 156, 40))
    assert not ink(made)[:, left - 3 :].any()
    written = ink(made)
    assert written.any()
    assert np.flatnonzero(written.any(axis=1)).max() < made.height - 6
    assert not written[:, 0].any()
    lines = np.count_nonzero(np.diff(written.any(axis=1).astype(int)) == 1)
    assert lines >= 5


def test_letters_beyond_ascii_have_signs_of_their_own() -> None:
    shown = {ink(sheet([Row(letter, [flat(99)])])).tobytes() for letter in "éßµσ×"}
    assert len(shown) == 5


def test_a_title_a_label_and_column_labels_are_written_without_touching_pictures() -> None:
    rows = [Row("a", [flat(10), flat(60)])]
    without = sheet(rows, scale=12)
    made = sheet(
        rows, "a title that is far too long for so few pictures, and goes on and on", columns=["seed 0", "1"], scale=12
    )
    assert made.width == without.width
    assert made.height > without.height + 2 * 20
    first, second = box(made, (10, 245, 40)), box(made, (60, 195, 40))
    assert ink(made)[first[1] - 30 : first[1] - 3, first[0] : first[2]].any()
    assert ink(made)[second[1] - 30 : second[1] - 3, second[0] : second[2]].any()


def test_png_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "000010.png"
    path.write_bytes(b"old")
    picture = to_picture(flat(30))
    save_png(picture, path)
    with Image.open(path) as stored:
        assert stored.format == "PNG"
        assert (np.asarray(stored) == np.asarray(picture)).all()
    assert [file.name for file in tmp_path.iterdir()] == ["000010.png"]
