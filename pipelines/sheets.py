"""Labelled grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _LINE = (255, 255, 255), (24, 24, 24), (150, 150, 150)
_MARGIN_PX = 12
_GAP_PX = 3  # between pictures, in the colour of the line, so that white pictures stay apart
# captions may hold any letter, and the font in Pillow has those of ASCII only
_FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
_FONT_PX, _TITLE_PX = 13, 18
_LABEL_PX = 200
_SMALLEST_SHOWN_PX = 96


@dataclass(frozen=True)
class Row:
    """Pictures that share a label: uint8, or floats in [0, 1], each (H, W), (H, W, 1) or (H, W, 3)."""

    label: str
    images: Sequence[np.ndarray]


def to_picture(image: np.ndarray) -> Image.Image:
    """Return an RGB picture of an array, uint8 or floats in [0, 1], (H, W), (H, W, 1) or (H, W, 3)."""
    grey = image.ndim == 2
    assert grey or (image.ndim == 3 and image.shape[2] in (1, 3)), f"an image of shape {image.shape}"
    if image.dtype != np.uint8:
        assert np.issubdtype(image.dtype, np.floating), f"an image of {image.dtype}"
        assert np.isfinite(image).all(), "an image that is not finite"
        image = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    channels = image[..., None] if grey else image
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(channels, (*channels.shape[:2], 3))))


def sheet(
    rows: Sequence[Row], title: str = "", *, columns: Sequence[str] = (), scale: int | None = None
) -> Image.Image:
    """Return a picture of all rows below each other, their labels wrapped at the left.

    columns: labels above the pictures, such as seeds. scale: how many pixels show one, in both directions, repeated and
    not interpolated; None enlarges small pictures to 96 px or more. Pictures may differ in size.
    """
    assert rows, "a sheet shows at least one row"
    assert all(len(row.images) for row in rows), "a row shows at least one picture"
    grid = [[to_picture(image) for image in row.images] for row in rows]
    assert not columns or len(columns) == max(map(len, grid)), (
        f"{len(columns)} labels for {max(map(len, grid))} columns"
    )
    if scale is None:
        largest = max(max(picture.size) for line in grid for picture in line)
        scale = -(-_SMALLEST_SHOWN_PX // largest)
    grid = [[_enlarged(picture, scale) for picture in line] for line in grid]
    cell = max(p.width for line in grid for p in line), max(p.height for line in grid for p in line)

    font, title_font = ImageFont.truetype(_FONT, _FONT_PX), ImageFont.truetype(_FONT, _TITLE_PX)
    labels = [_wrapped(row.label, font, _LABEL_PX - _MARGIN_PX) for row in rows]
    heads = [_wrapped(text, font, cell[0]) for text in columns]
    line_height = _line_height(font)
    num_columns = max(map(len, grid))
    width = 2 * _MARGIN_PX + _LABEL_PX + num_columns * (cell[0] + _GAP_PX) + _GAP_PX
    title_lines = _wrapped(title, title_font, width - 2 * _MARGIN_PX) if title else []
    top = _MARGIN_PX + len(title_lines) * _line_height(title_font) + (_MARGIN_PX // 2 if title else 0)
    left = _MARGIN_PX + _LABEL_PX
    grid_top = top + max((len(head) for head in heads), default=0) * line_height
    heights = [max(cell[1], len(label) * line_height) for label in labels]
    height = grid_top + sum(heights) + (len(rows) + 1) * _GAP_PX + _MARGIN_PX

    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (_MARGIN_PX, _MARGIN_PX), title_lines, title_font)
    for number, head in enumerate(heads):
        _write(draw, (left + _GAP_PX + number * (cell[0] + _GAP_PX), top), head, font)
    y = grid_top + _GAP_PX
    for label, line, row_height in zip(labels, grid, heights, strict=True):
        _write(draw, (_MARGIN_PX, y), label, font)
        for number, picture in enumerate(line):
            x = left + _GAP_PX + number * (cell[0] + _GAP_PX)
            frame = (x - _GAP_PX, y - _GAP_PX, x + picture.width + _GAP_PX - 1, y + picture.height + _GAP_PX - 1)
            draw.rectangle(frame, fill=_LINE)
            canvas.paste(picture, (x, y))
        y += row_height + _GAP_PX
    return canvas


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG; a file that stands there is replaced as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    picture.save(temporary, format="PNG")
    temporary.replace(path)


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return int(font.getbbox("Ågj|")[3]) + 4


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """Return the lines of a text, broken between words, and inside words that are wider than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width_px:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width_px:
                lines.append("")
            lines[-1] += letter
    return lines


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * _line_height(font)), line, fill=_INK, font=font)
