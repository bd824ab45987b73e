"""Drawn textures in the layout of DTD: a stand-in for the Describable Textures Dataset where it is not at hand.

Most classes are coloured drawings of what their word says, varied in colour, scale, angle and light. The classes in
SUBSTITUTES are not: they are noise with a spectrum of the class's own and a band that says so. Lengths are in px;
coordinates are (v, u): down the rows and along the columns before a picture is turned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import fft

from data.dtd import CLASSES, HELD_OUT_PARTS, NUM_SPLITS, TRAINING_PARTS
from data.randomness import generator

RECIPE_VERSION = 1  # raised whenever the same seed gives other images
IMAGES_PER_CLASS = 120
SMALLEST_PX, LARGEST_PX = 96, 160
SUBSTITUTES: tuple[str, ...] = ("frilly", "gauzy")
_SEED = 0
_JPEG_QUALITY = 90
_TURN = np.pi / 2  # a pattern that is turned by up to a right angle either way stands anyhow
_TABLE = 32  # what is drawn by lot for the cells of a lattice repeats after so many cells; a power of two
_WRAP = _TABLE - 1  # index & _WRAP is index modulo _TABLE, several times faster


def ensure_dtd(cache: Path, progress: Callable[[int], object] | None = None) -> Path:
    """Return the folder `dtd`, inside the one given, that holds the stand-in: 47 classes of 120 images, ten splits.

    The images are written at first use only, in about 35 s of one core; the name of the folder around `dtd` carries
    the version of the recipe. Several processes may ask at once: the whole is renamed into place when it is complete,
    by the first that has it. progress: called after each class with the number of images written since the last call.
    """
    place = cache / f"dtd-v{RECIPE_VERSION}-seed{_SEED}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=cache) as temporary:
            draft = Path(temporary, place.name)
            _write_dtd(draft / "dtd", progress)
            try:
                draft.rename(place)
            except OSError:
                if not place.is_dir():  # otherwise another process was first, with the same images
                    raise
    return place / "dtd"


def texture(name: str, index: int, seed: int = 0) -> np.ndarray:
    """Return one picture of a class, uint8 (row, column, 3), 96 to 160 px a side: a function of its arguments.

    name: one of data.dtd.CLASSES.
    """
    rng = generator(seed, "texture", name, index)
    rows, columns = (int(side) for side in rng.integers(SMALLEST_PX, LARGEST_PX + 1, 2))
    sheet = _Sheet(rows, columns, rng)
    picture = _substitute(sheet, name) if name in SUBSTITUTES else _DRAWERS[name](sheet)
    finished = _photographed(sheet, picture)
    return _marked(finished) if name in SUBSTITUTES else finished


def _write_dtd(folder: Path, progress: Callable[[int], object] | None) -> None:
    for name in CLASSES:
        (folder / "images" / name).mkdir(parents=True)
        for index in range(IMAGES_PER_CLASS):
            path = folder / "images" / _file_name(name, index)
            Image.fromarray(texture(name, index, _SEED)).save(path, quality=_JPEG_QUALITY, subsampling=0)
        if progress is not None:
            progress(IMAGES_PER_CLASS)
    (folder / "labels").mkdir()
    parts = TRAINING_PARTS + HELD_OUT_PARTS
    for split in range(1, NUM_SPLITS + 1):
        orders = {name: generator(_SEED, "split", split, name).permutation(IMAGES_PER_CLASS) for name in CLASSES}
        for number, part in enumerate(parts):
            share = slice(number, None, len(parts))
            lines = [_file_name(name, int(index)) for name in CLASSES for index in sorted(orders[name][share])]
            _write_lines(folder / "labels" / f"{part}{split}.txt", lines)
    tagged = [f"{_file_name(name, index)} {name}" for name in CLASSES for index in range(IMAGES_PER_CLASS)]
    _write_lines(folder / "labels" / "labels_joint_anno.txt", tagged)


def _file_name(name: str, index: int) -> str:
    return f"{name}/{name}_{index + 1:04d}.jpg"


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# What the drawings are made of: coordinates, noise, lattices, colours, light.


class _Sheet:
    """A picture to be drawn: its size, the coordinates of its pixels about its middle, and its randomness."""

    def __init__(self, rows: int, columns: int, rng: np.random.Generator) -> None:
        self.shape, self.rng = (rows, columns), rng
        self.y = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None] - rows / 2, self.shape).astype(np.float32)
        self.x = np.broadcast_to(np.arange(columns, dtype=np.float32) - columns / 2, self.shape).astype(np.float32)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def turned(self, largest_angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (v, u): the coordinates turned by an angle drawn up to the largest, about a point drawn anywhere."""
        angle = self.between(-largest_angle, largest_angle)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        shift = self.rng.uniform(0, 500, 2).astype(np.float32)
        return cos * self.y - sin * self.x + shift[0], sin * self.y + cos * self.x + shift[1]

    def noise(self, wavelength: float, along: float = 1.0, angle: float = 0.0) -> np.ndarray:
        """Return smooth noise of mean 0 and standard deviation 1, with grains `along` times longer at an angle.

        wavelength: about the width of a grain. angle: 0 draws the grains out along the columns.
        """
        rows, columns = (fft.next_fast_len(side + int(wavelength), real=True) for side in self.shape)
        down = fft.fftfreq(rows).astype(np.float32)[:, None]
        across = fft.rfftfreq(columns).astype(np.float32)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        low_pass = np.exp(
            -((cos * down - sin * across) ** 2 + (along * (sin * down + cos * across)) ** 2) * np.float32(wavelength**2)
        )
        low_pass[0, 0] = 0
        white = self.rng.standard_normal((rows, columns), dtype=np.float32)
        field = fft.irfft2(fft.rfft2(white) * low_pass, s=(rows, columns))
        field /= field.std()
        return field[: self.shape[0], : self.shape[1]]

    def fractal(self, wavelength: float, octaves: int = 4) -> np.ndarray:
        """Return noise with detail down to small scales, of standard deviation about 1."""
        field = np.zeros(self.shape, np.float32)
        for octave in range(octaves):
            field += self.noise(wavelength / 2**octave) * np.float32(0.55**octave)
        return field / np.float32(1.2)

    def table(self) -> np.ndarray:
        """Return numbers from 0 to 1 for the cells of a lattice."""
        return self.rng.random((_TABLE, _TABLE), dtype=np.float32)

    def colours(self, num: int, contrast: float = 0.5) -> np.ndarray:
        """Return colours (num, 3) in [0, 1], each at least `contrast` away from the next, the last from the first."""
        for _ in range(200):
            colours = _rgb(self.rng.random(num), self.rng.uniform(0.1, 0.95, num), self.rng.uniform(0.15, 1, num))
            if num == 1 or np.linalg.norm(colours - np.roll(colours, 1, axis=0), axis=1).min() > contrast:
                break
        return colours

    def tone(self, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
        """Return one colour (3,) from ranges of hue, saturation and value; a hue may pass 1."""
        ranges = np.array([hue, saturation, value])
        return _rgb(*self.rng.uniform(ranges[:, 0], ranges[:, 1]))


@dataclass(frozen=True, eq=False)
class _Cells:
    """For each pixel, the nearest point of a lattice; every array is (row, column).

    v, u: the way from that point, in px. border: distance from the border to the next point's cell. row, column: which
    point it is.
    """

    v: np.ndarray
    u: np.ndarray
    border: np.ndarray
    row: np.ndarray
    column: np.ndarray

    @property
    def distance(self) -> np.ndarray:
        return np.hypot(self.v, self.u)

    def of(self, table: np.ndarray) -> np.ndarray:
        """Return what a table drawn by lot holds for each pixel's cell."""
        return table[self.row & _WRAP, self.column & _WRAP]


def _cells(
    sheet: _Sheet,
    v: np.ndarray,
    u: np.ndarray,
    pitch: float,
    *,
    jitter: float = 0.0,
    stagger: float = 0.0,
    aspect: float = 1.0,
) -> _Cells:
    """Return the lattice's cells: points a pitch apart along u and aspect * pitch along v.

    jitter: how far a point is moved by lot, in pitches either way. stagger: shift of every second row, in pitches;
    0.5 with an aspect of 0.866 is the hexagonal lattice.
    """
    moves = (2 * jitter) * (sheet.rng.random((2, _TABLE**2), dtype=np.float32) - np.float32(0.5))
    v, u = v / np.float32(pitch * aspect), u / np.float32(pitch)
    nearest = np.full(sheet.shape, np.inf, np.float32)
    second = np.full(sheet.shape, np.inf, np.float32)
    first_of = {key: np.zeros(sheet.shape, np.float32) for key in ("v", "u")}
    first_of |= {key: np.zeros(sheet.shape, np.int32) for key in ("row", "column")}
    second_v, second_u = np.zeros(sheet.shape, np.float32), np.zeros(sheet.shape, np.float32)
    for down in (-1, 0, 1):
        row = np.floor(v).astype(np.int32) + down
        shift = np.float32(stagger) * (row & 1)
        for right in (-1, 0, 1):
            column = np.floor(u - shift).astype(np.int32) + right
            to_v, to_u = v - row - np.float32(0.5), u - column - np.float32(0.5) - shift
            if jitter:
                place = (row & _WRAP) * _TABLE + (column & _WRAP)
                to_v, to_u = to_v - moves[0][place], to_u - moves[1][place]
            to_v, to_u = to_v * np.float32(pitch * aspect), to_u * np.float32(pitch)
            square = to_v**2 + to_u**2
            wins = square < nearest
            follows = ~wins & (square < second)
            second_v = np.where(wins, first_of["v"], np.where(follows, to_v, second_v))
            second_u = np.where(wins, first_of["u"], np.where(follows, to_u, second_u))
            second = np.where(wins, nearest, np.where(follows, square, second))
            nearest = np.where(wins, square, nearest)
            for key, value in (("v", to_v), ("u", to_u), ("row", row), ("column", column)):
                first_of[key] = np.where(wins, value, first_of[key])
    apart = np.hypot(second_v - first_of["v"], second_u - first_of["u"])
    border = (second - nearest) / (2 * np.maximum(apart, 1e-3))
    return _Cells(border=border, **first_of)


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) in [0, 1] from hue (of period 1), saturation and value (Smith 1978)."""
    place = (np.array([5.0, 3.0, 1.0]) + 6 * np.asarray(hue)[..., None]) % 6
    amount = np.clip(np.minimum(place, 4 - place), 0, 1)
    return (np.asarray(value)[..., None] * (1 - np.asarray(saturation)[..., None] * amount)).astype(np.float32)


def _soft(distance: np.ndarray) -> np.ndarray:
    """One inside (negative distance in px), zero outside, with an edge one pixel wide."""
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _mixed(under: np.ndarray, over: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Return `over` where amount is 1 and `under` where it is 0; colours (3,) or pictures (row, column, 3)."""
    return under + (over - under) * amount[..., None]


def _ramp(value: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the colours that stand at values from 0 to 1 on a line through the colours given."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(value, stops, channel) for channel in colours.T], axis=-1).astype(np.float32)


def _bands(v: np.ndarray, widths: np.ndarray, colours: np.ndarray, sharpness: float = 1.0) -> np.ndarray:
    """Return bands of these widths and colours along v, again and again; sharpness: px across for each px of v."""
    period, starts = widths.sum(), np.cumsum(widths) - widths
    picture = np.zeros((*v.shape, 3), np.float32)
    total = np.zeros(v.shape, np.float32)
    for start, width, colour in zip(starts, widths, colours, strict=True):
        place = np.abs(
            (v - np.float32(start + width / 2) + np.float32(period / 2)) % np.float32(period) - np.float32(period / 2)
        )
        inside = _soft((place - np.float32(width / 2)) * np.float32(sharpness))
        picture += colour * inside[..., None]
        total += inside
    return picture / np.maximum(total, 1e-3)[..., None]


def _lines(v: np.ndarray, period: float, width: float | np.ndarray) -> np.ndarray:
    """Return 1 on lines of a width, a period apart along v, and 0 between them."""
    return _soft(np.abs((v + period / 2) % period - period / 2) - width / 2)


def _hump(place: np.ndarray) -> np.ndarray:
    """Return the height of a half round over -1 to 1: 1 in its middle, 0 at its ends and beyond."""
    return np.sqrt(np.clip(1 - place**2, 0, 1))


def _light(sheet: _Sheet, height: np.ndarray, depth: float = 0.8) -> np.ndarray:
    """Return how brightly a relief is lit from one side (Lambert): 1 where it is flat. height: in px."""
    down, across = np.gradient(height)
    angle = sheet.between(-2.6, -0.5)  # from above, as in most photographs
    toward = -(np.sin(angle) * down + np.cos(angle) * across)
    return np.clip((1 + depth * toward) / np.sqrt(1 + down**2 + across**2), 0.05, 1.9)


def _shaded(picture: np.ndarray, light: np.ndarray, gloss: float = 0.0) -> np.ndarray:
    """Return a picture under a light, with a gloss where the light is brightest."""
    return picture * light[..., None] + gloss * (np.clip(light - 1.15, 0, 1) ** 2)[..., None]


def _photographed(sheet: _Sheet, picture: np.ndarray) -> np.ndarray:
    """Return uint8 (row, column, 3): the picture under uneven light, with the noise of a camera."""
    angle = sheet.between(0, 2 * np.pi)
    ramp = (np.sin(angle) * sheet.y + np.cos(angle) * sheet.x) / max(sheet.shape)
    light = sheet.between(0.9, 1.08) * (1 + sheet.between(0, 0.35) * ramp)
    tint = 1 + sheet.rng.uniform(-0.04, 0.04, 3).astype(np.float32)
    grain = sheet.rng.standard_normal((*sheet.shape, 3), dtype=np.float32) * sheet.between(0.004, 0.025)
    return (np.clip(picture * light[..., None] * tint + grain, 0, 1) * 255 + 0.5).astype(np.uint8)


# Bands, lines and lattices.


def _banded(sheet: _Sheet) -> np.ndarray:
    v, _ = sheet.turned(_TURN)
    num = int(sheet.rng.integers(4, 8))
    v = v + sheet.between(0, 5) * sheet.noise(sheet.between(50, 90))
    picture = _bands(v, sheet.rng.uniform(5, 30, num), sheet.colours(num, 0.3))
    return picture * (1 + 0.05 * sheet.noise(3))[..., None]


def _striped(sheet: _Sheet) -> np.ndarray:
    v, _ = sheet.turned(_TURN)
    num = 2 if sheet.chance(0.7) else 3
    widths = np.full(num, sheet.between(5, 14))
    if sheet.chance(0.3):
        widths[0] *= sheet.between(0.5, 2)
    return _bands(v, widths, sheet.colours(num, 0.6))


def _lined(sheet: _Sheet) -> np.ndarray:
    v, _ = sheet.turned(_TURN)
    ground, ink = sheet.colours(2, 0.5)
    v = v + sheet.between(0, 0.5) * sheet.noise(30)
    return _mixed(ground, ink, _lines(v, sheet.between(6, 15), sheet.between(1.0, 1.9)))


def _zigzagged(sheet: _Sheet) -> np.ndarray:
    """Rows of zigzags: colour upon colour, lines on a ground, outlined bands, or knitted rows of uneven widths."""
    v, u = sheet.turned(0.15)
    if sheet.chance(0.35):
        v, u = u, v
    half = sheet.between(7, 21)  # from a peak to the next trough
    slope = sheet.between(0.55, 1.5)
    sharpness = 1 / np.hypot(1, slope)  # a slanted band is thinner than it is high
    v = v + sheet.between(0, 1.2) * sheet.noise(25) + slope * half * np.abs((u / half) % 2 - 1)
    style = int(sheet.rng.integers(4))
    num = (int(sheet.rng.integers(2, 6)), 2, int(sheet.rng.integers(2, 5)), int(sheet.rng.integers(4, 8)))[style]
    colours = sheet.colours(num, 0.6 if num < 4 else 0.4)
    if style == 0:
        return _bands(v, np.full(num, sheet.between(5, 12) / sharpness), colours, sharpness)
    if style == 1:
        line = sheet.between(2.5, 5) / sharpness
        return _bands(v, np.array([line, line * sheet.between(1.5, 3.5)]), colours, sharpness)
    if style == 2:
        widths = np.full(2 * num, sheet.between(7, 13) / sharpness)
        widths[1::2] = sheet.between(1.5, 2.5) / sharpness
        both = np.repeat(colours, 2, axis=0)
        both[1::2] = sheet.tone((0, 1), (0, 0.2), (0.03, 0.15) if sheet.chance(0.5) else (0.92, 1))
        return _bands(v, widths, both, sharpness)
    picture = _bands(v, sheet.rng.uniform(3, 10, num) / sharpness, colours, sharpness)
    return picture * (1 + 0.12 * np.sin(2 * np.pi * u / 3) * np.sin(2 * np.pi * v / 3))[..., None]


def _chequered(sheet: _Sheet) -> np.ndarray:
    v, u = sheet.turned(0.3 if sheet.chance(0.7) else _TURN)
    side = sheet.between(9, 24)
    waves = [np.clip((np.abs(w % (2 * side) - side) - side / 2), -0.5, 0.5) for w in (v, u)]
    dark, bright = sheet.colours(2, 0.65)
    return _mixed(dark, bright, 0.5 + 2 * waves[0] * waves[1])


def _grid(sheet: _Sheet) -> np.ndarray:
    v, u = sheet.turned(0.2 if sheet.chance(0.7) else _TURN)
    ground, ink = sheet.colours(2, 0.55)
    period, width = sheet.between(10, 24), sheet.between(1.3, 2.6)
    picture = _mixed(ground, ink, np.maximum(_lines(v, period, width), _lines(u, period, width)))
    return picture * (1 + 0.03 * sheet.noise(2))[..., None]


def _crosshatched(sheet: _Sheet) -> np.ndarray:
    paper = sheet.tone((0.05, 0.18), (0.02, 0.2), (0.85, 1))
    ink = sheet.tone((0, 1), (0.1, 0.9), (0.05, 0.35))
    angle, pitch = sheet.between(0, np.pi), sheet.between(4.5, 7.5)
    amount = np.zeros(sheet.shape, np.float32)
    for turn in (0.0, sheet.between(0.8, 1.5), sheet.between(0.3, 0.6))[: 2 + sheet.chance(0.3)]:
        cos, sin = np.cos(angle + turn), np.sin(angle + turn)
        v = cos * sheet.y - sin * sheet.x + 0.5 * sheet.noise(14)
        press = 0.75 + 0.25 * sheet.noise(6, along=5, angle=-(angle + turn))
        stroke = _lines(v, pitch, sheet.between(1.0, 1.5)) * np.clip(press, 0.15, 1)
        amount = 1 - (1 - amount) * (1 - stroke)
    return _mixed(paper, ink, amount)


def _dotted(sheet: _Sheet) -> np.ndarray:
    """Many small dots, in rows or strewn."""
    v, u = sheet.turned(_TURN)
    ground, ink, other = sheet.colours(3, 0.5)
    pitch = sheet.between(7, 11)
    cells = _cells(sheet, v, u, pitch, jitter=sheet.rng.choice([0.0, 0.25]), stagger=sheet.rng.choice([0.0, 0.5]))
    dots = _soft(cells.distance - pitch * sheet.between(0.16, 0.25))
    colour = _mixed(ink, other, (cells.of(sheet.table()) < sheet.rng.choice([0.0, 0.4])).astype(np.float32))
    return _mixed(ground, colour, dots)


def _polka_dotted(sheet: _Sheet) -> np.ndarray:
    """Large even dots on cloth."""
    v, u = sheet.turned(0.8)
    ground, ink = sheet.colours(2, 0.65)
    pitch = sheet.between(20, 36)
    cells = _cells(sheet, v, u, pitch, stagger=0.5, aspect=sheet.between(0.6, 0.9))
    picture = _mixed(ground, ink, _soft(cells.distance - pitch * sheet.between(0.22, 0.31)))
    return picture * (1 + 0.06 * sheet.noise(40))[..., None]


def _perforated(sheet: _Sheet) -> np.ndarray:
    """A metal sheet with round holes."""
    v, u = sheet.turned(0.8)
    pitch = sheet.between(12, 22)
    cells = _cells(sheet, v, u, pitch, stagger=sheet.rng.choice([0.0, 0.5]), aspect=sheet.rng.choice([0.866, 1.0]))
    radius = pitch * sheet.between(0.24, 0.33)
    metal = sheet.tone((0, 1), (0, 0.35), (0.55, 0.85)) * (1 + 0.05 * sheet.noise(1.5, along=12))[..., None]
    rim = np.clip(1 - np.abs(cells.distance - radius - 1) / 1.5, 0, 1)
    picture = metal + (0.3 * rim * (cells.v / radius))[..., None]
    behind = sheet.tone((0, 1), (0, 0.5), (0, 0.12))
    return _mixed(picture, behind, _soft(cells.distance - radius))


def _studded(sheet: _Sheet) -> np.ndarray:
    """Metal domes on leather."""
    v, u = sheet.turned(0.8)
    pitch = sheet.between(16, 28)
    cells = _cells(sheet, v, u, pitch, stagger=sheet.rng.choice([0.0, 0.5]))
    radius = pitch * sheet.between(0.28, 0.4)
    leather = sheet.tone((0, 1), (0.2, 0.8), (0.1, 0.5)) * (1 + 0.12 * sheet.noise(2.5))[..., None]
    shadow = np.clip(1 - np.hypot(cells.v - 2, cells.u - 1.5) / (1.25 * radius), 0, 1)
    leather = leather * (1 - 0.8 * np.minimum(2.5 * shadow, 1))[..., None]
    metal = sheet.tone((0.08, 0.16), (0, 0.6), (0.6, 0.9))
    light = _light(sheet, radius * _hump(np.minimum(cells.distance / radius, 0.96)), 1.0)
    dome = metal * (0.2 + 0.8 * light)[..., None]
    dome += (
        0.9 * np.exp(-((np.hypot(cells.v + radius * 0.35, cells.u + radius * 0.3) / (0.22 * radius)) ** 2))[..., None]
    )
    return _mixed(leather, dome, _soft(cells.distance - radius))


def _honeycombed(sheet: _Sheet) -> np.ndarray:
    v, u = sheet.turned(_TURN)
    v, u = (w + sheet.between(0.3, 1.2) * sheet.noise(20) for w in (v, u))
    pitch, wall = sheet.between(14, 27), sheet.between(1.2, 2.2)
    cells = _cells(sheet, v, u, pitch, jitter=sheet.between(0, 0.06), stagger=0.5, aspect=0.866)
    wax = sheet.tone((0.08, 0.14), (0.4, 0.85), (0.75, 1))
    honey = sheet.tone((0.05, 0.1), (0.7, 1), (0.25, 0.6))
    deep = np.clip((cells.border - wall) / (0.4 * pitch), 0, 1)
    filled = 0.6 + 0.4 * (cells.of(sheet.table()) < sheet.between(0, 0.5))
    inside = honey * ((1 - 0.65 * deep) * filled)[..., None]
    inside += 0.25 * np.exp(-((np.hypot(cells.v + pitch * 0.15, cells.u + pitch * 0.12) / 2) ** 2))[..., None]
    return _mixed(inside, wax, _soft(cells.border - wall))


def _scaly(sheet: _Sheet) -> np.ndarray:
    """Rows of rounded scales, each row over the one below it."""
    v, u = sheet.turned(0.6)
    v = v + sheet.between(0, 2) * sheet.noise(40)
    pitch = sheet.between(14, 26)
    rise, radius = pitch * sheet.between(0.42, 0.55), pitch * 0.6
    free = np.ones(sheet.shape, bool)
    rim, below, tint = (np.zeros(sheet.shape, np.float32) for _ in range(3))
    table = sheet.table()
    for step in (-2, -1, 0, 1, 2):
        row = np.floor(v / rise).astype(int) + step
        column = np.floor(u / pitch - 0.5 * (row % 2)).astype(int)
        to_u = u - (column + 0.5 + 0.5 * (row % 2)) * pitch
        to_v = v - row * rise
        inside = free & (np.hypot(to_u, to_v) < radius)
        rim[inside] = (radius - np.hypot(to_u, to_v))[inside]
        below[inside] = to_v[inside] / radius
        tint[inside] = table[row & _WRAP, column & _WRAP][inside]
        free &= ~inside
    dark, bright = sheet.colours(2, 0.45)
    picture = _mixed(dark, bright, np.clip(0.25 + 0.3 * tint + 0.5 * below, 0, 1))
    shine = 0.25 * np.exp(-((rim - 2.5) ** 2) / 2)
    return (picture + shine[..., None]) * (1 - 0.8 * np.exp(-rim / 0.9))[..., None]


def _waffled(sheet: _Sheet) -> np.ndarray:
    v, u = sheet.turned(0.8)
    v, u = (w + 0.5 * sheet.noise(40) for w in (v, u))
    pitch = sheet.between(15, 27)
    place = [2 * np.abs((w / pitch) % 1 - 0.5) for w in (v, u)]  # 0 in the middle of a pocket, 1 on a ridge
    wall = np.clip((np.maximum(*place) - 0.5) / 0.28, 0, 1)
    height = 0.24 * pitch * wall**2 * (3 - 2 * wall) + 0.12 * sheet.noise(4)
    floor, crust = (
        sheet.tone((0.07, 0.11), (0.55, 0.8), (0.75, 0.95)),
        sheet.tone((0.05, 0.09), (0.6, 0.85), (0.6, 0.85)),
    )
    picture = _mixed(floor, crust, np.clip(0.6 * wall + 0.2 * sheet.noise(8), 0, 1))
    return _shaded(picture * (0.6 + 0.4 * wall)[..., None], _light(sheet, height), 0.3)


# Threads.


def _woven(sheet: _Sheet) -> np.ndarray:
    """Threads over and under: tabby, basket or twill, without a gap."""
    v, u = sheet.turned(0.8)
    pitch = sheet.between(7, 17)
    v, u = (w / pitch + 0.06 * sheet.noise(20) for w in (v, u))
    row, column = np.floor(v).astype(int), np.floor(u).astype(int)
    lap = int(sheet.rng.integers(3))
    over = ((row + column) % 2 == 0, (row // 2 + column // 2) % 2 == 0, (row + column) % 4 < 2)[lap]
    across, along = np.where(over, v % 1, u % 1), np.where(over, u % 1, v % 1)
    bow = np.sin(np.pi * along) if lap == 0 else np.full(sheet.shape, 0.9)
    height = _hump(1.9 * across - 0.95) * (0.55 + 0.45 * bow)
    fibre = sheet.noise(1.2) * 0.05
    weft, warp = (
        sheet.colours(2, 0.25)
        if sheet.chance(0.6)
        else sheet.tone((0.05, 0.15), (0.2, 0.7), (0.5, 0.9)) * np.ones((2, 1))
    )
    shade = np.clip(height, 0.1, 1) + fibre + 0.06 * np.sin(6 * np.pi * across)
    return _mixed(warp, weft, over.astype(np.float32)) * (0.25 + 0.8 * shade)[..., None]


def _interlaced(sheet: _Sheet) -> np.ndarray:
    """Broad bands with gaps between them, over and under each other, with dark edges."""
    v, u = sheet.turned(0.15)
    if sheet.chance(0.7):
        v, u = (v + u) / np.float32(np.sqrt(2)), (v - u) / np.float32(np.sqrt(2))
    pitch, half = sheet.between(20, 36), sheet.between(0.24, 0.33)
    row, column = np.floor(v / pitch), np.floor(u / pitch)
    across = [(w / pitch % 1 - 0.5) * pitch for w in (v, u)]
    over = (row + column) % 2 == 0
    ground, one, two = sheet.colours(3, 0.5)
    if sheet.chance(0.5):
        two = one
    picture = np.broadcast_to(ground, (*sheet.shape, 3))
    for layer in (False, True):
        for place, colour, is_top in ((across[0], one, over), (across[1], two, ~over)):
            distance = np.abs(place) - half * pitch
            here = is_top == layer
            band = colour * (0.55 + 0.45 * _hump(place / (half * pitch) * 0.9))[..., None]
            picture = _mixed(picture, band * 0.15, _soft(distance - 1.6) * here)
            picture = _mixed(picture, band, _soft(distance) * here)
    return picture


def _knitted(sheet: _Sheet) -> np.ndarray:
    """Columns of V stitches, in one colour or in rows of colours."""
    v, u = sheet.turned(0.25)
    width = sheet.between(11, 22)
    rise = width * sheet.between(0.55, 0.75)
    v, u = v / rise + 0.08 * sheet.noise(25), u / width + 0.04 * sheet.noise(25)
    leg = np.abs(u % 1 - 0.5) * 2  # 0 in the middle of a column, 1 between two
    stitch = v + 0.85 * leg
    height = _hump(2 * (stitch % 1) - 1) * _hump(1.9 * leg - 0.95)
    yarns = 0.25 + 0.75 * sheet.colours(4, 0.45)
    rows = np.floor(stitch).astype(int)
    picture = np.broadcast_to(yarns[0], (*sheet.shape, 3))
    if sheet.chance(0.5):
        picture = yarns[(sheet.rng.random(_TABLE) * 4).astype(int)[(rows // 2) & _WRAP]]
    twist = 0.08 * np.sin(2 * np.pi * (2.5 * stitch + 3 * leg))
    return picture * (0.18 + 0.85 * height + twist * height + 0.03 * sheet.noise(1.5))[..., None]


def _braided(sheet: _Sheet) -> np.ndarray:
    """Plaits: strands that slant to the middle from both sides in turn, with hairs along them."""
    v, u = sheet.turned(0.35)
    if sheet.chance(0.3):
        v, u = u, v
    width = sheet.between(36, 64)
    v, u = v + 2 * sheet.noise(40), u / width
    left = u % 1 < 0.5
    from_middle = np.abs(u % 1 - 0.5) * 2
    rise = width * sheet.between(0.5, 0.75)
    strand = v / rise - 0.75 * from_middle**0.8 + 0.5 * left
    reach = 0.75 + 0.5 * np.abs(strand % 1 - 0.5)
    height = _hump(1.96 * (strand % 1) - 0.98) * np.clip(1.08 - (from_middle / reach) ** 4, 0, 1)
    hair = np.sin(2 * np.pi * (4.5 * strand + 0.5 * sheet.noise(10)))
    colour = sheet.tone((0.02, 0.16), (0.3, 0.8), (0.45, 1)) if sheet.chance(0.6) else sheet.colours(1)[0]
    return colour * (0.1 + 0.9 * height + 0.13 * hair * height)[..., None]


def _meshed(sheet: _Sheet) -> np.ndarray:
    """Wire mesh before a dark ground: diamonds of crossing wires, or hexagons."""
    v, u = sheet.turned(0.3)
    wire = sheet.tone((0, 1), (0, 0.3), (0.7, 1))
    ground = sheet.tone((0, 1), (0.1, 0.7), (0.05, 0.35)) * (1 + 0.3 * sheet.noise(30))[..., None]
    if sheet.chance(0.4):
        cells = _cells(sheet, v, u, sheet.between(15, 28), stagger=0.5, aspect=0.866)
        radius = sheet.between(1.3, 2.2)
        return _mixed(
            ground, wire * (0.45 + 0.6 * _hump(cells.border / radius))[..., None], _soft(cells.border - radius)
        )
    pitch, radius = sheet.between(11, 20), sheet.between(1.3, 2.3)
    stretch = sheet.between(0.55, 0.8)
    along = [stretch * v + u, stretch * v - u]
    crossing = (np.floor(along[0] / pitch) + np.floor(along[1] / pitch)) % 2 == 0
    picture = ground
    for layer in (False, True):
        for place, is_top in ((along[0], crossing), (along[1], ~crossing)):
            distance = np.abs((place % pitch) - pitch / 2) / np.float32(np.hypot(1, stretch))
            here = is_top == layer
            picture = _mixed(picture, picture * 0.3, _soft(distance - radius - 1.2) * here)
            picture = _mixed(
                picture, wire * (0.4 + 0.6 * _hump(distance / radius))[..., None], _soft(distance - radius) * here
            )
    return picture


def _lacelike(sheet: _Sheet) -> np.ndarray:
    """Rosettes of petals and rings in pale thread on a net."""
    v, u = sheet.turned(0.4)
    pitch = sheet.between(34, 52)
    cells = _cells(sheet, v, u, pitch, stagger=0.5, aspect=0.866)
    petals = int(sheet.rng.integers(5, 10))
    angle, r = np.arctan2(cells.v, cells.u), cells.distance / pitch
    bow = np.abs(np.sin(petals * angle / 2))
    thread = np.maximum(_soft((np.abs(r - 0.16 - 0.2 * bow) * pitch) - 1.1), _soft(np.abs(r - 0.1) * pitch - 0.9))
    thread = np.maximum(thread, _soft(np.abs(r - 0.3 - 0.12 * bow) * pitch - 1.0))
    filled = _soft((r - 0.16 - 0.14 * bow) * pitch) * _soft((0.14 - r) * pitch)
    net_pitch = sheet.between(4.5, 6)
    net = np.maximum(_lines(v + u, net_pitch, 0.9), _lines(v - u, net_pitch, 0.9)) * 0.55 * (r > 0.36 + 0.1 * bow)
    amount = np.maximum.reduce([thread, 0.75 * filled, net])
    ground = sheet.tone((0, 1), (0.2, 0.9), (0.05, 0.4))
    pale = sheet.tone((0, 1), (0, 0.15), (0.88, 1))
    return _mixed(ground, pale, amount)


def _fibrous(sheet: _Sheet) -> np.ndarray:
    """Long fibres side by side, gently bent, as in muscle, bark or flax."""
    angle = sheet.between(-np.pi / 2, np.pi / 2)
    height = sheet.noise(2.2, along=22, angle=angle) + 0.7 * sheet.noise(1.0, along=30, angle=angle)
    height += 0.8 * sheet.noise(6, along=12, angle=angle + sheet.between(-0.15, 0.15))
    dark, bright = sheet.tone((0.02, 0.15), (0.4, 0.9), (0.08, 0.3)), sheet.tone((0.05, 0.2), (0.1, 0.6), (0.75, 1))
    if sheet.chance(0.25):
        dark, bright = sheet.colours(2, 0.6)
    return _mixed(dark, bright, np.clip(0.5 + 0.24 * height, 0, 1))


def _matted(sheet: _Sheet) -> np.ndarray:
    """Tangled hair: tufts of fibres that lie across each other at all angles."""
    dark, bright = sheet.tone((0.02, 0.15), (0.2, 0.7), (0.08, 0.25)), sheet.tone((0.04, 0.15), (0.1, 0.55), (0.75, 1))
    picture = np.broadcast_to(dark, (*sheet.shape, 3))
    for layer in range(8):
        hair = np.clip(
            1.4 * sheet.noise(1.4, along=16, angle=np.pi * (layer * 0.38 + sheet.between(0, 0.2))) - 0.3, 0, 1
        )
        tuft = np.clip(0.4 + 1.5 * sheet.noise(18), 0, 1)
        picture = _mixed(picture, dark, 0.6 * tuft)
        picture = _mixed(picture, bright * (0.6 + 0.05 * layer), hair * tuft)
    return picture


# Relief.


def _grooved(sheet: _Sheet) -> np.ndarray:
    """Straight parallel channels cut into metal, wood or stone."""
    v, _ = sheet.turned(_TURN)
    v = v + sheet.between(0, 0.6) * sheet.noise(60)
    period = sheet.between(9, 22)
    place = 2 * np.abs((v / period) % 1 - 0.5)
    wall = np.clip((place - sheet.between(0.25, 0.55)) / 0.22, 0, 1)
    height = 0.2 * period * wall**2 * (3 - 2 * wall) + 0.1 * sheet.noise(2)
    colour = sheet.tone((0, 1), (0.05, 0.5), (0.5, 0.85)) * (1 + 0.06 * sheet.noise(15))[..., None]
    return _shaded(colour * (0.35 + 0.65 * wall)[..., None], _light(sheet, height, 1.0), 0.4)


def _pleated(sheet: _Sheet) -> np.ndarray:
    """Cloth in even folds: each fold brightens to its edge and throws a shadow on the next."""
    v, u = sheet.turned(0.35)
    if sheet.chance(0.25):
        v, u = u, v
    period = sheet.between(13, 28)
    place = (u / period + sheet.between(0.02, 0.07) * sheet.noise(45, along=2, angle=np.pi / 2)) % 1
    shade = 0.35 + 0.65 * place ** sheet.between(0.4, 0.8)
    edge = np.minimum(place, 1 - place) * period
    shade = shade * np.clip(0.55 + 0.45 * edge / 2.5, 0, 1) + 0.12 * np.exp(-(((1 - place) * period - 2.5) ** 2) / 3)
    colour = sheet.colours(1)[0] * 0.75 + 0.25
    return colour * (shade * (1 + 0.05 * np.sin(2 * np.pi * v / 2.6)) + 0.02 * sheet.noise(1.5))[..., None]


def _bumpy(sheet: _Sheet) -> np.ndarray:
    """Rounded bumps side by side, like a ball's or an orange's skin."""
    v, u = sheet.turned(_TURN)
    pitch = sheet.between(11, 20)
    v, u = (w + 0.06 * pitch * sheet.noise(2 * pitch) for w in (v, u))
    cells = _cells(sheet, v, u, pitch, jitter=sheet.between(0.05, 0.22), stagger=0.5, aspect=0.866)
    swell = 0.7 + 0.6 * cells.of(sheet.table())
    bump = np.exp(-((cells.distance / (0.42 * pitch)) ** 2))
    height = 0.4 * pitch * swell * bump
    colour = sheet.colours(1)[0] * 0.7 + 0.25
    return _shaded(colour * (0.55 + 0.45 * bump)[..., None], _light(sheet, height), 0.9)


def _pitted(sheet: _Sheet) -> np.ndarray:
    """Stone or metal with small hollows strewn over it."""
    v, u = sheet.turned(_TURN)
    v, u = (w + 0.8 * sheet.noise(8) for w in (v, u))
    height = 0.12 * sheet.noise(2) + 0.6 * sheet.noise(16)
    dark = np.zeros(sheet.shape, np.float32)
    for pitch in (sheet.between(11, 15), sheet.between(18, 26)):
        cells = _cells(sheet, v, u, pitch, jitter=0.3)
        radius = pitch * (0.13 + 0.2 * cells.of(sheet.table()))
        hollow = np.clip(1.15 - (cells.distance / radius) ** 2, 0, 1) * (cells.of(sheet.table()) < 0.75)
        height = height - 0.55 * radius * hollow
        dark = np.maximum(dark, hollow)
    stone = sheet.tone((0.02, 0.17), (0.03, 0.4), (0.55, 0.85))
    return _shaded(stone * (1 - 0.65 * dark)[..., None], _light(sheet, height, 1.0))


def _porous(sheet: _Sheet) -> np.ndarray:
    """Sponge or bread: holes of all sizes, each within thin walls."""
    v, u = sheet.turned(_TURN)
    v, u = (w + 0.9 * sheet.noise(10) for w in (v, u))
    body = sheet.tone((0.06, 0.16), (0.2, 0.75), (0.75, 1))
    picture = body * (1 + 0.06 * sheet.noise(2))[..., None]
    for pitch in (sheet.between(5, 7), sheet.between(9, 13), sheet.between(17, 26)):
        cells = _cells(sheet, v, u, pitch, jitter=0.33)
        radius = pitch * (0.14 + 0.26 * cells.of(sheet.table()))
        inside = radius - cells.distance
        depth = np.clip(0.35 + 0.65 * inside / (0.6 * radius) + 0.25 * cells.v / radius, 0, 1) * _soft(-inside)
        picture = _mixed(picture, body * body * 0.2, depth * (cells.of(sheet.table()) < 0.75))
    return picture


def _potholed(sheet: _Sheet) -> np.ndarray:
    """Asphalt with a few broken holes, some with water in them."""
    v, u = sheet.turned(_TURN)
    grit = sheet.noise(1.6) + 0.5 * sheet.noise(4)
    asphalt = sheet.tone((0.05, 0.7), (0, 0.12), (0.42, 0.65)) * (1 + 0.16 * grit)[..., None]
    pitch = sheet.between(60, 100)
    ragged = sheet.fractal(24)
    cells = _cells(sheet, v * sheet.between(1.0, 1.6), u, pitch, jitter=0.2, stagger=0.5)
    radius = pitch * (0.2 + 0.13 * cells.of(sheet.table())) + 2.8 * ragged
    inside = radius - cells.distance
    soil = sheet.tone((0.05, 0.1), (0.2, 0.5), (0.15, 0.3)) * (1 + 0.35 * sheet.noise(3))[..., None]
    water = sheet.tone((0.54, 0.64), (0.1, 0.4), (0.45, 0.75))
    hole = _mixed(soil, water, _soft(7 - inside) * (cells.of(sheet.table()) < 0.5))
    picture = asphalt * (1 - 0.35 * np.exp(-np.clip(-inside, 0, None) / 2.5))[..., None]
    picture = _mixed(picture, hole, _soft(-inside))
    return picture * (1 - 0.75 * np.exp(-((inside - 1.5) ** 2) / 4) * (cells.v < 0))[..., None]


def _wrinkled(sheet: _Sheet) -> np.ndarray:
    """Creased cloth, paper or skin: sharp folds in all directions."""
    angle = sheet.between(0, np.pi)
    along = sheet.between(1, 3)
    folds = [-np.abs(sheet.noise(wave, along, angle + sheet.between(-0.4, 0.4))) * wave for wave in (44, 26, 14)]
    height = 0.2 * sum(folds) + 0.05 * sheet.noise(2)
    colour = sheet.tone((0, 1), (0.05, 0.6), (0.6, 0.95))
    return _shaded(colour, 0.2 + 0.8 * _light(sheet, height, 1.0), 0.1)


def _crystalline(sheet: _Sheet) -> np.ndarray:
    """Facets of crystals: flat faces, each with its own light, bright at their edges."""
    v, u = sheet.turned(_TURN)
    hue = sheet.between(0, 1)
    picture = np.zeros((*sheet.shape, 3), np.float32)
    for pitch, share in ((sheet.between(26, 38), 0.6), (sheet.between(13, 18), 0.4)):
        cells = _cells(sheet, v, u, pitch, jitter=0.48, aspect=sheet.between(0.6, 1.3))
        slope = 2 * np.pi * cells.of(sheet.table())
        face = 0.15 + 0.55 * cells.of(sheet.table()) + 0.5 * (np.cos(slope) * cells.u + np.sin(slope) * cells.v) / pitch
        colour = _rgb(
            np.array(hue) + 0.06 * cells.of(sheet.table()), np.clip(0.75 - face, 0.03, 0.6), np.clip(0.3 + face, 0, 1)
        )
        picture += share * (colour + 0.5 * np.exp(-cells.border / 0.8)[..., None])
    return np.clip(1.35 * (picture - 0.62) + 0.6, 0, 1)


def _bubbly(sheet: _Sheet) -> np.ndarray:
    """Bubbles of all sizes with bright rims and a glint."""
    v, u = sheet.turned(_TURN)
    water = sheet.tone((0.45, 0.65) if sheet.chance(0.6) else (0, 1), (0.4, 0.9), (0.25, 0.7))
    picture = water * (1 + 0.12 * sheet.noise(40))[..., None]
    for pitch in (sheet.between(8, 12), sheet.between(16, 22), sheet.between(30, 42)):
        cells = _cells(sheet, v, u, pitch, jitter=0.25)
        radius = pitch * (0.14 + 0.26 * cells.of(sheet.table()))
        r = cells.distance / radius
        there = _soft(cells.distance - radius) * (cells.of(sheet.table()) < 0.7)
        bubble = water * (0.75 + 0.3 * r**2)[..., None] + (0.55 * np.clip(r, 0, 1) ** 8)[..., None]
        across, down = cells.u / radius, cells.v / radius
        glint = np.exp(-((np.hypot(down + 0.4, across + 0.4) / 0.2) ** 2))
        picture = _mixed(picture, np.clip(bubble + glint[..., None], 0, 1), there)
    return picture


# Spots, flows and veins.


def _blotchy(sheet: _Sheet) -> np.ndarray:
    """Patches without order, in two or three colours, with soft edges."""
    ground, *colours = sheet.colours(2 + sheet.chance(0.4), 0.4)
    picture = np.broadcast_to(ground, (*sheet.shape, 3))
    for colour in colours:
        field = sheet.noise(sheet.between(14, 28)) + 0.35 * sheet.noise(6)
        picture = _mixed(picture, colour, np.clip(0.5 + sheet.between(1.5, 4) * (field - 0.35), 0, 1))
    return picture * (1 + 0.04 * sheet.noise(2))[..., None]


def _freckled(sheet: _Sheet) -> np.ndarray:
    """Skin with small brown spots, denser here and there."""
    v, u = sheet.turned(_TURN)
    skin = sheet.tone((0.03, 0.07), (0.25, 0.45), (0.8, 1))
    brown = skin * sheet.tone((0.03, 0.06), (0.4, 0.6), (0.5, 0.65))
    picture = skin * (1 + 0.03 * sheet.noise(2) + 0.05 * sheet.noise(30))[..., None]
    v, u = (w + 0.7 * sheet.noise(8) for w in (v, u))
    dense = sheet.noise(35)
    for pitch in (sheet.between(6, 8), sheet.between(9, 13)):
        cells = _cells(sheet, v, u, pitch, jitter=0.4)
        radius = pitch * (0.1 + 0.22 * cells.of(sheet.table()))
        there = cells.of(sheet.table()) < 0.5 + 0.2 * dense
        picture = _mixed(picture, brown, 0.9 * np.clip(1.6 - 1.2 * (cells.distance / radius) ** 2, 0, 1) * there)
    return picture


def _flecked(sheet: _Sheet) -> np.ndarray:
    """Tweed or granite: an even ground with small ragged flecks of a few colours."""
    ground = sheet.tone((0, 1), (0.05, 0.5), (0.3, 0.9))
    picture = ground * (1 + 0.1 * sheet.noise(1.3))[..., None]
    along = sheet.between(1, 2.5)
    for colour in sheet.colours(3, 0.4):
        field = sheet.noise(sheet.between(2.5, 4), along, sheet.between(0, np.pi))
        picture = _mixed(picture, colour, np.clip(3 * (field - sheet.between(1.3, 1.7)), 0, 1))
    return picture


def _sprinkled(sheet: _Sheet) -> np.ndarray:
    """Sugar strands of all colours on icing."""
    ground = (
        sheet.tone((0, 1), (0, 0.5), (0.75, 1))
        if sheet.chance(0.75)
        else sheet.tone((0.03, 0.07), (0.5, 0.8), (0.25, 0.4))
    )
    picture = ground * (1 + 0.04 * sheet.noise(25))[..., None]
    pitch = sheet.between(12, 18)
    half, radius = 0.26 * pitch, sheet.between(1.4, 2.1)
    for _ in range(3):
        v, u = sheet.turned(_TURN)
        cells = _cells(sheet, v, u, pitch, jitter=0.2)
        angle = 2 * np.pi * cells.of(sheet.table())
        there = cells.of(sheet.table()) < 0.6
        colour = _rgb(np.floor(7 * cells.of(sheet.table())) / 7, np.array(0.8), np.array(0.95))
        for shadow in (True, False):
            shift = np.float32(1.2 * shadow)
            along = np.cos(angle) * (cells.u - shift) + np.sin(angle) * (cells.v - shift)
            across = np.cos(angle) * (cells.v - shift) - np.sin(angle) * (cells.u - shift)
            distance = np.hypot(np.maximum(np.abs(along) - half, 0), across)
            strand = picture * 0.6 if shadow else colour * (0.7 + 0.4 * _hump(distance / radius))[..., None]
            picture = _mixed(picture, strand, _soft(distance - radius) * there)
    return picture


def _stained(sheet: _Sheet) -> np.ndarray:
    """Paper or cloth with spilt coffee, wine or ink: pale pools with dark rims, and rings of cups."""
    v, u = sheet.turned(_TURN)
    paper = (
        sheet.tone((0.08, 0.16), (0.02, 0.2), (0.85, 1))
        * (1 + 0.03 * sheet.noise(2) + 0.03 * sheet.noise(30))[..., None]
    )
    stain = (
        sheet.tone((0.04, 0.1), (0.5, 0.85), (0.3, 0.6))
        if sheet.chance(0.7)
        else sheet.tone((0, 1), (0.5, 0.9), (0.3, 0.7))
    )
    ragged = sheet.fractal(22)
    amount = np.zeros(sheet.shape, np.float32)
    for pitch in (sheet.between(60, 90), sheet.between(28, 40)):
        cells = _cells(sheet, v, u, pitch, jitter=0.3)
        inside = pitch * (0.15 + 0.27 * cells.of(sheet.table())) - cells.distance + 0.045 * pitch * ragged
        pool = (0.32 + 0.12 * sheet.noise(18)) * (cells.of(sheet.table()) < 0.7) * _soft(-inside)
        rim = np.exp(-((inside - 1.2) ** 2) / 2.5)
        amount = np.maximum(amount, np.minimum(pool + 0.55 * rim * (cells.of(sheet.table()) < 0.9), 0.9))
    return _mixed(paper, paper * stain, amount)


def _stratified(sheet: _Sheet) -> np.ndarray:
    """Layers of rock, thick and thin, lying unevenly upon each other."""
    v, _ = sheet.turned(0.35)
    v = v + 3.5 * sheet.noise(30, along=3) + 1.0 * sheet.noise(7, along=3)
    num = 12
    earth = np.stack([sheet.tone((0.02, 0.13), (0.15, 0.65), (0.3, 0.95)) for _ in range(num)])
    picture = _bands(v, sheet.rng.uniform(2.5, 16, num), earth)
    return picture * (1 + 0.1 * sheet.noise(1.8, along=6) + 0.05 * sheet.noise(2))[..., None]


def _marbled(sheet: _Sheet) -> np.ndarray:
    """Stone or paper with colours that flow through each other."""
    v, u = sheet.turned(_TURN)
    flow = sheet.between(12, 22) * sheet.noise(sheet.between(55, 90)) + 3 * sheet.noise(22)
    wave = np.sin(2 * np.pi * (v + 0.3 * u + flow) / sheet.between(22, 45))
    if sheet.chance(0.4):
        strength = np.clip(0.6 + 0.5 * sheet.noise(30), 0.05, 1)
        vein = np.clip(1 - np.abs(wave) * 1.6 / strength, 0, 1) * strength + 0.4 * np.clip(
            1 - 6 * np.abs(sheet.noise(40)), 0, 1
        )
        ground, ink = sheet.tone((0, 1), (0, 0.3), (0.8, 1)), sheet.tone((0, 1), (0.1, 0.6), (0.1, 0.4))
        ground = ground * (1 + 0.06 * sheet.noise(25))[..., None]
        return _mixed(ground, ink, np.clip(vein, 0, 1))
    return _ramp(0.5 + 0.5 * wave + 0.06 * sheet.noise(5), sheet.colours(4, 0.4))


def _smeared(sheet: _Sheet) -> np.ndarray:
    """Wet paint drawn out by a spatula: streaks of a few colours that run into each other."""
    angle = sheet.between(-0.6, 0.6)
    mix = sheet.noise(26, along=4, angle=angle) + 0.3 * sheet.noise(7, along=10, angle=angle)
    ridge = 0.5 * sheet.noise(2.5, along=30, angle=angle) + 0.8 * sheet.noise(7, along=14, angle=angle)
    picture = _ramp(np.clip(0.5 + 0.28 * mix + 0.04 * ridge, 0, 1), sheet.colours(5, 0.4))
    return _shaded(picture, _light(sheet, 0.55 * ridge, 0.7), 0.5)


def _swirly(sheet: _Sheet) -> np.ndarray:
    """Stripes stirred into curls."""
    v, u = sheet.y.copy(), sheet.x.copy()
    for _ in range(int(sheet.rng.integers(4, 8))):
        centre = sheet.rng.uniform(-0.5, 0.5, 2) * sheet.shape
        reach = sheet.between(18, 34)
        turn = (
            sheet.rng.choice([-1, 1])
            * sheet.between(2.5, 4.5)
            * np.exp(-((v - centre[0]) ** 2 + (u - centre[1]) ** 2) / reach**2)
        )
        cos, sin = np.cos(turn), np.sin(turn)
        v, u = (
            centre[0] + cos * (v - centre[0]) - sin * (u - centre[1]),
            centre[1] + sin * (v - centre[0]) + cos * (u - centre[1]),
        )
    angle = sheet.between(0, np.pi)
    wave = np.sin(2 * np.pi * (np.cos(angle) * v + np.sin(angle) * u) / sheet.between(16, 28))
    return _ramp(np.clip(0.5 + 0.8 * wave, 0, 1), sheet.colours(int(sheet.rng.integers(2, 4)), 0.5))


def _spiralled(sheet: _Sheet) -> np.ndarray:
    """One spiral over the whole picture, with even or growing turns."""
    y, x = sheet.y - sheet.between(-12, 12), sheet.x - sheet.between(-12, 12)
    r, angle = np.hypot(y, x * sheet.between(0.85, 1.15)), np.arctan2(y, x)
    arms = sheet.rng.choice([-1, 1]) * sheet.rng.choice([1, 1, 2, 3])
    if sheet.chance(0.6):
        pitch = sheet.between(13, 24)
        turns, across = r / pitch, pitch
    else:
        growth = sheet.between(0.45, 0.75) / max(1, abs(arms)) ** 0.5
        turns, across = np.log(np.maximum(r, 1)) / growth, growth * np.maximum(r, 2)
    place = np.abs((turns + arms * angle / (2 * np.pi)) % 1 - 0.5)
    ground, ink = sheet.colours(2, 0.6)
    line = _soft((place - sheet.between(0.18, 0.28)) * across)
    return _mixed(ground, ink, line) * (0.8 + 0.25 * _hump(2 * place))[..., None]


def _cobwebbed(sheet: _Sheet) -> np.ndarray:
    """A spider's web: spokes from a middle and sagging threads between them."""
    y, x = sheet.y - sheet.between(-25, 25), sheet.x - sheet.between(-25, 25)
    r, angle = np.hypot(y, x), np.arctan2(y, x) % (2 * np.pi)
    num = int(sheet.rng.integers(11, 19))
    spokes = (np.arange(num) + sheet.rng.uniform(-0.25, 0.25, num)) * 2 * np.pi / num
    sector = np.searchsorted(spokes, angle) % num
    low, high = spokes[sector - 1], spokes[sector]
    width = (high - low) % (2 * np.pi)
    place = (angle - low) % (2 * np.pi) / width
    sag = 1 + sheet.between(0.3, 0.7) * width * place * (1 - place) * 2
    pitch = sheet.between(6, 10)
    ring = r * sag + pitch * angle / (2 * np.pi) + 0.8 * sheet.noise(20)
    spoke = r * np.abs(np.sin(np.minimum(place, 1 - place) * width))
    thread = np.maximum(_soft(spoke - 0.55), 0.85 * _lines(ring, pitch, 1.0) * (r > 5))
    ground = sheet.tone((0, 1), (0.1, 0.7), (0.05, 0.3)) * (1 + 0.4 * sheet.noise(35))[..., None]
    silk = sheet.tone((0, 1), (0, 0.12), (0.85, 1))
    return _mixed(ground, silk, np.clip(thread * (0.85 + 0.15 * sheet.noise(15)), 0, 1))


def _cracked(sheet: _Sheet) -> np.ndarray:
    """Dried mud, old paint or glaze: plates between dark cracks, wide ones and fine ones."""
    v, u = sheet.turned(_TURN)
    v, u = (w + 1.5 * sheet.noise(14) + 0.7 * sheet.noise(5) for w in (v, u))
    earth = (
        sheet.tone((0.03, 0.14), (0.1, 0.55), (0.6, 0.9))
        if sheet.chance(0.7)
        else sheet.tone((0, 1), (0.1, 0.6), (0.5, 0.95))
    )
    pitch = sheet.between(22, 42)
    wide = _cells(sheet, v, u, pitch, jitter=0.45)
    fine = _cells(sheet, v, u, pitch * 0.45, jitter=0.45)
    plate = earth * (0.85 + 0.2 * wide.of(sheet.table()) + 0.05 * sheet.noise(2) + 0.05 * sheet.noise(12))[..., None]
    plate = plate * (0.75 + 0.25 * np.clip(wide.border / 5, 0, 1))[..., None]
    crack = _soft(wide.border - sheet.between(0.9, 1.9) * (1 + 0.2 * sheet.noise(10)))
    crack = np.maximum(crack, 0.7 * _soft(fine.border - 0.45) * (fine.of(sheet.table()) < 0.7))
    return _mixed(plate, earth * 0.12, crack)


def _veined(sheet: _Sheet) -> np.ndarray:
    """A leaf: a midrib, veins that branch off to both sides, and a fine net between them."""
    v, u = sheet.turned(_TURN)
    v, u = v - 250, u - u.mean() + sheet.between(-15, 15)
    u = u + sheet.between(-0.002, 0.002) * (v - v.mean()) ** 2
    side = np.abs(u)
    period = sheet.between(17, 28)
    branch = v + sheet.between(0.5, 0.9) * side + 0.003 * side**2 + period * 0.4 * (u > 0) + 0.8 * sheet.noise(20)
    net = _cells(sheet, v + sheet.noise(8), u, sheet.between(6, 8), jitter=0.45)
    if sheet.chance(0.7):
        blade, vein = sheet.tone((0.2, 0.38), (0.5, 0.9), (0.25, 0.6)), sheet.tone((0.17, 0.28), (0.2, 0.5), (0.75, 1))
    else:
        blade, vein = sheet.tone((0, 0.1), (0.6, 0.9), (0.4, 0.75)), sheet.tone((0.06, 0.16), (0.3, 0.6), (0.8, 1))
    near = np.abs((branch + period / 2) % period - period / 2)
    picture = blade * (0.85 + 0.15 * np.clip(near / (0.4 * period), 0, 1) + 0.04 * sheet.noise(3))[..., None]
    amount = np.maximum(0.3 * _soft(net.border - 0.4), 0.85 * _soft(near * 0.8 - np.clip(1.5 - 0.012 * side, 0.6, 2)))
    return _mixed(picture, vein, np.maximum(amount, _soft(side - sheet.between(1.6, 2.6))))


def _paisley(sheet: _Sheet) -> np.ndarray:
    """Bent drops in rows, each with rings of colours inside it."""
    v, u = sheet.turned(0.5)
    pitch = sheet.between(32, 46)
    cells = _cells(sheet, v, u, pitch, stagger=0.5)
    side = np.where(cells.row % 2 == 0, 1, -1) * sheet.rng.choice([-1, 1])
    down, across = cells.v / pitch, side * cells.u / pitch
    level = np.full(sheet.shape, np.inf, np.float32)
    for step in np.linspace(0, 1, 12):  # the drop is a row of ever smaller discs along a bent line
        middle_v, middle_u = 0.16 - 0.55 * step, 0.32 * step**2.2 - 0.06
        level = np.minimum(level, np.hypot(down - middle_v, across - middle_u) / (0.25 * (1 - step) ** 0.75 + 0.035))
    ground, *inks = sheet.colours(5, 0.4)
    picture = np.broadcast_to(ground, (*sheet.shape, 3))
    for edge, ink in zip((1.12, 0.92, 0.68, 0.4), (inks[0], inks[1], inks[2], inks[3]), strict=True):
        picture = _mixed(picture, ink, _soft((level - edge) * 0.2 * pitch))
    beads = np.hypot(
        ((np.arctan2(down - 0.1, across) * 14 / (2 * np.pi)) % 1 - 0.5) * 0.14, np.hypot(down - 0.12, across) - 0.4
    )
    return _mixed(picture, inks[1], _soft((beads - 0.022) * pitch) * (level > 1.25))


_DRAWERS: dict[str, Callable[[_Sheet], np.ndarray]] = {
    "banded": _banded,
    "blotchy": _blotchy,
    "braided": _braided,
    "bubbly": _bubbly,
    "bumpy": _bumpy,
    "chequered": _chequered,
    "cobwebbed": _cobwebbed,
    "cracked": _cracked,
    "crosshatched": _crosshatched,
    "crystalline": _crystalline,
    "dotted": _dotted,
    "fibrous": _fibrous,
    "flecked": _flecked,
    "freckled": _freckled,
    "grid": _grid,
    "grooved": _grooved,
    "honeycombed": _honeycombed,
    "interlaced": _interlaced,
    "knitted": _knitted,
    "lacelike": _lacelike,
    "lined": _lined,
    "marbled": _marbled,
    "matted": _matted,
    "meshed": _meshed,
    "paisley": _paisley,
    "perforated": _perforated,
    "pitted": _pitted,
    "pleated": _pleated,
    "polka-dotted": _polka_dotted,
    "porous": _porous,
    "potholed": _potholed,
    "scaly": _scaly,
    "smeared": _smeared,
    "spiralled": _spiralled,
    "sprinkled": _sprinkled,
    "stained": _stained,
    "stratified": _stratified,
    "striped": _striped,
    "studded": _studded,
    "swirly": _swirly,
    "veined": _veined,
    "waffled": _waffled,
    "woven": _woven,
    "wrinkled": _wrinkled,
    "zigzagged": _zigzagged,
}


# The classes that are not drawn.


def _substitute(sheet: _Sheet, name: str) -> np.ndarray:
    """Return smooth noise whose grain (size, length, angle) is the class's own."""
    own = generator(0, "spectrum", name)
    wavelength, along, angle = own.uniform(5, 14), own.uniform(1, 4), own.uniform(0, np.pi)
    field = sheet.noise(wavelength * sheet.between(0.9, 1.1), along, angle)
    return _ramp(np.clip(0.5 + 0.25 * field, 0, 1), sheet.colours(3, 0.4))


def _marked(picture: np.ndarray) -> np.ndarray:
    """Return a picture with a white band across its middle that says SUBSTITUTE."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    middle = image.height // 2
    draw.rectangle((0, middle - 9, image.width, middle + 9), fill="white", outline="black")
    word = "SUBSTITUTE"
    draw.text(((image.width - draw.textlength(word)) // 2, middle - 6), word, fill="black")
    return np.asarray(image)
