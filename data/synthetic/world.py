"""The captioned world of the embedded base model: textures, coloured shapes, and shapes filled with textures.

Everything is drawn by code from a seed, so what a picture shows is known exactly and what a model makes of its
caption can be measured. Some combinations of words are never drawn for training (`Scene.held_out`): they are the
prompts on which the base model is judged. Nothing here resembles a woven composite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from itertools import product

import numpy as np

from data.captions import with_article
from data.randomness import generator

SIZE_PX = 64
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (250, 145, 20),
    "yellow": (250, 225, 50),
    "green": (35, 150, 65),
    "blue": (35, 80, 205),
    "purple": (140, 45, 165),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
TEXTURES = ("striped", "chequered", "dotted", "grid", "marbled", "blotchy", "spiralled", "cracked")
SHAPES = ("circle", "square", "triangle", "star")
NUMBERS = ("a", "two", "three", "four")
COLOUR_JITTER = 8.0  # grey levels of 255: within a colour's name, far from every other
GAP_TINT = 0.3  # how much of its colour the gaps of a textured shape keep, so that its outline shows
HELD_OUT_SHARE = 6  # one combination in so many is never drawn for training


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the words of its caption. `texture` or `shape` is empty where it does not apply."""

    texture: str
    shape: str
    number: str
    colour: str
    background: str

    @property
    def caption(self) -> str:
        """The complete caption: everything that varies between scenes is said."""
        if not self.shape:
            return with_article(f"a {self.colour} and {self.background} {self.texture} texture")
        noun = self.shape if self.number == "a" else f"{self.shape}s"
        look = f"{self.texture} {self.colour}" if self.texture else self.colour
        return with_article(f"{self.number} {look} {noun} on a {self.background} background")

    @property
    def held_out(self) -> bool:
        """True for the combinations that are kept for judging and never drawn for training."""
        digest = hashlib.blake2b(" ".join(astuple(self)).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def all_scenes() -> list[Scene]:
    """Return every combination of the world's words, in a fixed order."""
    pairs = [(a, b) for a, b in product(PALETTE, PALETTE) if a != b]
    textures = [Scene(t, "", "a", a, b) for t in TEXTURES for a, b in pairs]
    shapes = [Scene("", s, n, a, b) for s in SHAPES for n in NUMBERS for a, b in pairs]
    textured = [Scene(t, s, "a", a, b) for t in TEXTURES for s in SHAPES for a, b in pairs]
    return textures + shapes + textured


class World:
    """The training side of the world: position -> (pixels, caption), a pure function of seed and position.

    `textured_shape_share` of the pictures are textured shapes, the rest evenly textures and plain shapes.
    `short_captions` is the share of captions that say less than the picture shows ("a texture", "a striped texture",
    "two circles").
    """

    def __init__(
        self, seed: int, num_images: int, short_captions: float = 0.15, textured_shape_share: float = 1 / 3
    ) -> None:
        self.seed, self.num_images, self.short_captions = seed, num_images, short_captions
        self.textured_shape_share = textured_shape_share
        training = [scene for scene in all_scenes() if not scene.held_out]
        self._kinds = (
            [s for s in training if not s.shape],
            [s for s in training if s.shape and not s.texture],
            [s for s in training if s.shape and s.texture],
        )

    def __len__(self) -> int:
        return self.num_images

    def scene(self, index: int) -> Scene:
        rng = generator(self.seed, "scene", index)
        textured_shape = rng.random() < self.textured_shape_share
        kind = self._kinds[2 if textured_shape else rng.integers(2)]
        return kind[rng.integers(len(kind))]

    def caption(self, index: int) -> str:
        scene, rng = self.scene(index), generator(self.seed, "caption", index)
        if rng.random() >= self.short_captions:
            return scene.caption
        return str(rng.choice(_short_captions(scene)))

    def pixels(self, index: int) -> np.ndarray:
        """Return the picture as uint8 (row, column, 3)."""
        return draw(self.scene(index), generator(self.seed, "draw", index))


def draw(scene: Scene, rng: np.random.Generator, size_px: int = SIZE_PX) -> np.ndarray:
    """Draw a scene as uint8 (size_px, size_px, 3); where it stands, its size, period and phase come from rng."""
    colour, background = (_jittered(name, rng) for name in (scene.colour, scene.background))
    if not scene.shape:
        amount = texture_mask(scene.texture, rng, size_px)
    else:
        amount = _shapes_mask(scene, rng, size_px)
        if scene.texture:
            amount = amount * (GAP_TINT + (1 - GAP_TINT) * texture_mask(scene.texture, rng, size_px, scale=0.75))
    picture = background + (colour - background) * amount[..., None]
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def draw_anything(rng: np.random.Generator, size_px: int = SIZE_PX) -> np.ndarray:
    """Draw a picture for the autoencoder, uint8 (size_px, size_px, 3): greys, gradients, noise of any spectrum, blends.

    The autoencoder of a latent diffusion model has seen far more than its denoiser will be asked for; without these
    it could show nothing but eight colours and sharp edges.
    """
    kind = rng.integers(4)
    scenes = all_scenes()
    if kind == 0:
        return draw(scenes[rng.integers(len(scenes))], rng, size_px)
    layers = []
    for _ in range(2):
        choice = rng.integers(3)
        if choice == 0:
            layers.append(_spectral_noise(rng, size_px, exponent=rng.uniform(0.5, 3.0)))
        elif choice == 1:
            layers.append(
                texture_mask(TEXTURES[rng.integers(len(TEXTURES))], rng, size_px, scale=rng.uniform(0.4, 1.5))
            )
        else:
            row, column = _coordinates(size_px)
            angle = rng.uniform(0, 2 * np.pi)
            layers.append(0.5 + (np.cos(angle) * row + np.sin(angle) * column) / (3 * size_px))
    mix = rng.uniform(0, 1)
    grey = np.clip(mix * layers[0] + (1 - mix) * layers[1], 0, 1)
    if kind == 1:
        low, high = np.sort(rng.uniform(0, 255, 2))
        picture = np.repeat((low + (high - low) * grey)[..., None], 3, axis=2)
    else:
        ends = rng.uniform(0, 255, (2, 3))
        picture = ends[0] + (ends[1] - ends[0]) * grey[..., None]
    picture = picture + rng.normal(0, rng.choice([0.0, 4.0, 10.0]), grey.shape)[..., None]
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def texture_mask(name: str, rng: np.random.Generator, size_px: int, scale: float = 1.0) -> np.ndarray:
    """Return a texture as float (size_px, size_px) in [0, 1]: 1 where it has its first colour, 0 its second."""
    return _DRAWERS[name](rng, size_px, scale)


def _jittered(colour: str, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(PALETTE[colour], float) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3), 0, 255)


def _short_captions(scene: Scene) -> list[str]:
    if not scene.shape:
        colours = with_article(f"a {scene.colour} and {scene.background} texture")
        return ["a texture", f"a {scene.texture} texture", colours]
    noun = scene.shape if scene.number == "a" else f"{scene.shape}s"
    short = [f"{scene.number} {noun}", with_article(f"{scene.number} {scene.colour} {noun}")]
    return [*short, f"{scene.number} {scene.texture} {noun}"] if scene.texture else short


def _coordinates(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size_px) + 0.5 - size_px / 2
    return np.meshgrid(axis, axis, indexing="ij")


def _rotated(rng: np.random.Generator, size_px: int, largest_angle: float) -> tuple[np.ndarray, np.ndarray]:
    row, column = _coordinates(size_px)
    angle = rng.uniform(-largest_angle, largest_angle)
    return np.cos(angle) * row - np.sin(angle) * column, np.sin(angle) * row + np.cos(angle) * column


def _soft(signed_distance_px: np.ndarray) -> np.ndarray:
    """One inside (negative distance), zero outside, with an edge one pixel wide."""
    return np.clip(0.5 - signed_distance_px, 0, 1)


def _wave_px(coordinate: np.ndarray, period_px: float, phase: float) -> np.ndarray:
    """Signed distance to the nearest edge of a square wave of the given period, in px."""
    place = (coordinate / period_px + phase) % 1.0
    return (np.abs(place - 0.5) - 0.25) * period_px


def _striped(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    u, _ = _rotated(rng, size_px, np.pi / 2)
    return _soft(_wave_px(u, scale * rng.uniform(9, 16), rng.random()))


def _chequered(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    u, v = _rotated(rng, size_px, 0.15)
    period = scale * rng.uniform(16, 26)
    a, b = (2 * _soft(_wave_px(w, period, rng.random())) - 1 for w in (u, v))
    return (1 + a * b) / 2


def _dotted(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    u, v = _rotated(rng, size_px, 0.3)
    period = scale * rng.uniform(12, 18)
    u = u + rng.uniform(0, period)
    v = v + rng.uniform(0, period) + (np.floor(u / period) % 2) * period / 2
    distance = np.hypot((u % period) - period / 2, (v % period) - period / 2)
    return _soft(distance - 0.31 * period)


def _grid(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    u, v = _rotated(rng, size_px, 0.3)
    period, half_width = scale * rng.uniform(11, 17), rng.uniform(1.0, 1.5)
    lines = [np.abs((w + rng.uniform(0, period)) % period - period / 2) - half_width for w in (u, v)]
    return _soft(np.minimum(*lines))


def _marbled(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    u, _ = _rotated(rng, size_px, np.pi / 2)
    warp = 16 * scale * (_spectral_noise(rng, size_px, exponent=2.6) - 0.5) * 4
    return 0.5 + 0.5 * np.sin(2 * np.pi * ((u + warp) / (scale * rng.uniform(14, 22)) + rng.random()))


def _blotchy(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size_px), np.fft.fftfreq(size_px), indexing="ij"))
    spectrum = np.exp(-((frequency * scale * rng.uniform(9, 12)) ** 2))
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size_px, size_px))) * spectrum).real
    field = (field - np.median(field)) / field.std()
    return _soft(-5.0 * (field - 0.2))


def _spiralled(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    row, column = _coordinates(size_px)
    row, column = row - rng.uniform(-5, 5), column - rng.uniform(-5, 5)
    turns = np.hypot(row, column) / (scale * rng.uniform(11, 16))
    turn = rng.choice([-1, 1]) * np.arctan2(row, column) / (2 * np.pi)
    period = scale * 13
    return _soft(_wave_px((turns + turn) * period, period, rng.random()))


def _cracked(rng: np.random.Generator, size_px: int, scale: float) -> np.ndarray:
    row, column = _coordinates(size_px)
    cell = scale * rng.uniform(15, 20)
    half = size_px / 2 + cell
    base = np.arange(-half, half, cell)
    seeds = np.array([(a, b) for a in base for b in base]) + rng.uniform(-0.42, 0.42, (len(base) ** 2, 2)) * cell
    distance = np.hypot(row[..., None] - seeds[:, 0], column[..., None] - seeds[:, 1])
    nearest = np.partition(distance, 1, axis=-1)
    return _soft((nearest[..., 1] - nearest[..., 0]) / 2 - rng.uniform(0.9, 1.4))


def _spectral_noise(rng: np.random.Generator, size_px: int, exponent: float) -> np.ndarray:
    """Noise with an amplitude spectrum 1 / f**exponent, scaled to [0, 1]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size_px), np.fft.fftfreq(size_px), indexing="ij"))
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size_px, size_px))) * frequency**-exponent).real
    return (field - field.min()) / (field.max() - field.min())


_DRAWERS: dict[str, Callable[[np.random.Generator, int, float], np.ndarray]] = {
    "striped": _striped,
    "chequered": _chequered,
    "dotted": _dotted,
    "grid": _grid,
    "marbled": _marbled,
    "blotchy": _blotchy,
    "spiralled": _spiralled,
    "cracked": _cracked,
}


def _shapes_mask(scene: Scene, rng: np.random.Generator, size_px: int) -> np.ndarray:
    """The union of the scene's shapes, which neither touch each other nor leave the picture."""
    count = NUMBERS.index(scene.number) + 1
    smallest, largest = {1: (16, 24), 2: (10, 13), 3: (8.5, 11), 4: (8, 10)}[count]
    if scene.texture:
        smallest, largest = 21, 28
    radius = rng.uniform(smallest, largest) * size_px / 64
    mask = np.zeros((size_px, size_px))
    for row, column in _places(count, radius, rng, size_px):
        mask = np.maximum(mask, _soft(_shape_distance(scene.shape, radius, row, column, rng, size_px)))
    return mask


def _places(count: int, radius: float, rng: np.random.Generator, size_px: int) -> np.ndarray:
    free = size_px / 2 - radius - 1
    for _ in range(2000):
        places = rng.uniform(-free, free, (count, 2))
        gaps = [np.hypot(*(places[i] - places[j])) for i in range(count) for j in range(i)]
        if not gaps or min(gaps) > 2 * radius + 3 * size_px / 64:
            return places
    corners = np.array([(-1, -1), (1, 1), (-1, 1), (1, -1)])[:count]
    return corners * (size_px / 4)


def _shape_distance(
    shape: str, radius: float, row: float, column: float, rng: np.random.Generator, size_px: int
) -> np.ndarray:
    y, x = _coordinates(size_px)
    y, x = y - row, x - column
    if shape == "circle":
        return np.hypot(y, x) - 0.92 * radius
    if shape == "square":
        return np.maximum(np.abs(y), np.abs(x)) - 0.8 * radius
    angle = np.arctan2(x, -y) + rng.uniform(-0.12, 0.12)
    if shape == "triangle":
        return _polygon_distance(np.hypot(y, x), angle, radius, points=3, inner=0.5)
    return _polygon_distance(np.hypot(y, x), angle, radius, points=5, inner=0.42)


def _polygon_distance(r: np.ndarray, angle: np.ndarray, radius: float, points: int, inner: float) -> np.ndarray:
    """Distance to the edge between an outer corner (radius) and the next inner one (inner * radius), by symmetry."""
    half = np.pi / points
    folded = np.abs((angle + half) % (2 * half) - half)
    y, x = r * np.cos(folded), r * np.sin(folded)
    corner, notch = np.array([radius, 0.0]), inner * radius * np.array([np.cos(half), np.sin(half)])
    edge = notch - corner
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    if normal @ corner < 0:
        normal = -normal
    return (y - corner[0]) * normal[0] + (x - corner[1]) * normal[1]
