"""The six masks of RePaint, masks of users, and the plain fills that inpainting is measured against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError, SettingsError
from pipelines import inpaint
from pipelines.diffusion.fills import biharmonic_fill, mean_fill, unknown_error
from pipelines.diffusion.masks import MASKS, read_mask, thin, wide


@pytest.mark.parametrize(
    ("name", "known_share"),
    [("expand", 1 / 4), ("half", 1 / 2), ("every_second_pixel", 1 / 4), ("alternate_lines", 1 / 2)],
)
@pytest.mark.parametrize("size_px", [32, 64, 256])
def test_regular_masks_know_their_share(name: str, known_share: float, size_px: int) -> None:
    mask = MASKS[name](size_px)
    assert mask.shape == (size_px, size_px)
    assert mask.dtype == bool
    assert mask.mean() == known_share


def test_masks_know_what_their_names_say() -> None:
    assert MASKS["half"](32)[:, :16].all()
    assert MASKS["expand"](32)[8:24, 8:24].all()
    assert MASKS["alternate_lines"](32)[::2].all()
    assert MASKS["every_second_pixel"](32)[::2, ::2].all()


@pytest.mark.parametrize("size_px", [32, 64, 128])
def test_strokes_leave_something_to_know_and_something_to_draw(size_px: int) -> None:
    shares = [[1 - mask(size_px, seed).mean() for seed in range(8)] for mask in (wide, thin)]
    assert all(0.05 < share < 0.9 for each in shares for share in each)
    assert (wide(size_px, 3) == wide(size_px, 3)).all()
    assert (wide(size_px, 3) != wide(size_px, 4)).any()
    # inside a thick stroke is a square that a thin one has no room for
    side = size_px // 12 + 2
    windows = [np.lib.stride_tricks.sliding_window_view(~mask(size_px), (side, side)) for mask in (wide, thin)]
    assert windows[0].all((2, 3)).sum() > windows[1].all((2, 3)).sum()


def test_the_command_knows_the_same_masks() -> None:
    assert tuple(MASKS) == inpaint.MASK_NAMES


def test_white_is_drawn_and_black_is_kept(tmp_path: Path) -> None:
    levels = np.zeros((16, 16), dtype=np.uint8)
    levels[2:5, 3:9] = 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png", 16) == (levels == 0)).all()


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (np.zeros((16, 16)), "found one colour alone"),
        (np.full((16, 16), 255), "found one colour alone"),
        (np.arange(256).reshape(16, 16), "found 254 greys"),
        (np.eye(8) * 255, "found 8 x 8 px, expected 16 x 16"),
    ],
    ids=["black", "white", "grey", "small"],
)
def test_masks_that_say_nothing_clear_are_refused(levels: np.ndarray, said: str, tmp_path: Path) -> None:
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(SettingsError, match=said):
        read_mask(tmp_path / "mask.png", 16)


def test_a_mask_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_text("no picture")
    with pytest.raises(DataError):
        read_mask(tmp_path / "mask.png", 16)


@pytest.mark.parametrize("fill", [mean_fill, biharmonic_fill])
def test_fills_keep_the_known_part_bit_for_bit(fill: object) -> None:
    assert callable(fill)
    picture = np.random.default_rng(0).random((24, 24, 1), dtype=np.float32)
    known = MASKS["half"](24)
    filled = fill(picture, known)
    assert filled.dtype == np.float32
    assert (filled[known] == picture[known]).all()
    assert filled.min() >= picture[known].min()
    assert filled.max() <= picture[known].max()


def test_a_ramp_is_continued_smoothly_and_not_by_its_mean() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 24, dtype=np.float32)[:, None, None], (24, 24, 1))
    known = MASKS["alternate_lines"](24)
    assert unknown_error(biharmonic_fill(ramp, known), ramp, known) < 0.02
    assert unknown_error(mean_fill(ramp, known), ramp, known) > 0.2


def test_the_error_is_that_of_the_unknown_part_alone() -> None:
    truth = np.zeros((4, 4, 1), dtype=np.float32)
    known = MASKS["half"](4)
    drawn = np.where(known[..., None], 9.0, 0.3).astype(np.float32)
    assert unknown_error(drawn, truth, known) == pytest.approx(0.3)
