"""Procedural woven composites: a layer-to-layer interlock in three states, as a laboratory CT scanner would see it.

The stand-in for scans that are not at hand: grey levels, noise and rings like a scan's, with labels, voids and fibre
fractions that are known exactly. Axes are (Z, Y, X): thickness, weft direction, warp direction. Lengths are in voxels
unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from data.randomness import derive, generator
from data.tif.writer import write_stack
from data.volume_specs import STATE_FILES

GENERATOR_VERSION = 1  # raised whenever the same seed gives other voxels
STATES = tuple(STATE_FILES)
VOXEL_SIZE_UM = 40.0
MATRIX, WARP, WEFT = 0, 1, 2

# Dry geometry: the unit cell of a scanned carbon interlock (textomos, Friemann 2025), rounded to voxels of 40 um.
WARP_SPACING, WEFT_SPACING = 40.0, 26.0
WARP_HALF_WIDTH, WEFT_HALF_WIDTH = 17.0, 12.5
HALF_HEIGHT = 5.2
LAYER_PITCH = 15.0  # one weft layer and one warp layer
WAVE_PERIOD = 4 * WEFT_SPACING  # of a warp, which rises and falls by half a layer pitch
WARP_PRECEDENCE = 0.35  # where tows compete for a voxel, a warp's distance d counts as d - 0.35 (1 - d)
SKIN = 0.65  # thickness of the loose skin of a tow that touches another
WARP_DENSITY, WEFT_DENSITY = 1.07, 0.93  # relative fibre fractions: 24K warps are packed more tightly than 12K wefts
# Attenuation at 20 keV in 1/cm (xraylib): carbon fibre and epoxy. Air is 0.
MU_FIBRE, MU_EPOXY = 0.787, 0.557
# One mapping for the three states, as of a scanner calibrated once: air 10,000, resin 38,000, injected tow 45,000.
GREY_OF_AIR, GREY_PER_MU = 10_000.0, 50_000.0
NOISE_CORRELATION, BLUR = 0.6, 0.8
RING_SHARE = 0.012  # standard deviation, as a share of a tow's attenuation


@dataclass(frozen=True)
class _State:
    """What compaction and injection change; pitch, half height and half width are factors on the dry geometry."""

    size_px: tuple[int, int, int]
    pitch: float
    half_height: float
    half_width: float
    exponent: float  # of the superelliptic section: 2 is an ellipse, more is flatter
    tow_fibre_fraction: float
    wander: float  # standard deviation of a tow's path in its plane
    texture: float  # relative amplitude of the fibre texture inside a tow
    matrix_mu: float
    void_fraction: float
    contrast_to_noise: float


_STATES = {
    "dry": _State((128, 176, 336), 1.0, 1.0, 1.0, 2.0, 0.48, 0.9, 0.10, 0.0, 0.0, 9.0),
    "compacted": _State((80, 176, 336), 0.56, 0.70, 1.05, 2.8, 0.66, 0.6, 0.10, 0.0, 0.0, 9.0),
    "injected": _State((88, 176, 336), 0.62, 0.76, 1.03, 2.6, 0.62, 0.6, 0.10, MU_EPOXY, 0.008, 5.0),
}


@dataclass(frozen=True, eq=False)
class Weave:
    """A generated volume and the truth about it; every array is (Z, Y, X).

    grey: uint16, as scanned. label: uint8, 0 matrix or air, 1 warp, 2 weft. voids: bool, gas in resin or tow.
    fibre_fraction: float32, the local fibre volume fraction, 0 to 0.85.
    """

    state: str
    seed: int
    grey: np.ndarray
    label: np.ndarray
    voids: np.ndarray
    fibre_fraction: np.ndarray
    voxel_size_um: tuple[float, float, float] = (VOXEL_SIZE_UM, VOXEL_SIZE_UM, VOXEL_SIZE_UM)

    @property
    def fibre_volume_fraction(self) -> float:
        """The overall fibre volume fraction: the mean over the specimen, which fills the volume."""
        return float(self.fibre_fraction.mean(dtype=np.float64))


def weave(state: str, seed: int, size_px: tuple[int, int, int] | None = None) -> Weave:
    """Return a woven volume of one state: always the same for the same arguments.

    state: one of STATES. size_px: (Z, Y, X); by default 128 (dry), 80 (compacted) or 88 (injected) x 176 x 336.
    """
    assert state in _STATES, f"unknown state {state!r}, known: {', '.join(STATES)}"
    parameters = _STATES[state]
    shape = size_px or parameters.size_px
    state_seed = derive(seed, "weave", state)
    section = _Sections(shape)
    for tow in _tows(shape, parameters, state_seed):
        section.lay(tow, parameters.exponent)
    fibre_fraction = _fibre_fraction(section, parameters, state_seed)
    voids = _voids(section.label, parameters.void_fraction, state_seed)
    fibre_fraction[voids] = 0.0
    grey = _scan(fibre_fraction, voids, parameters, state_seed)
    return Weave(state, seed, grey, section.label, voids, fibre_fraction)


def write_weave(path: Path, weave: Weave) -> None:
    """Write the grey levels as a 16-bit ImageJ tif with its voxel size; the file appears whole or not at all."""
    write_stack(path, weave.grey, weave.voxel_size_um, overwrite=True)


def ensure_volumes(folder: Path, seed: int = 0) -> Path:
    """Return the folder, inside the one given, that holds the generated dry.tif, dry_compacted.tif and injected.tif.

    The files are written at first use only. The folder's name carries the generator's version and the seed. Several
    processes may ask at once: each file is renamed into place when it is whole, with the same bytes by each of them.
    """
    volumes = folder / f"volumes-v{GENERATOR_VERSION}-seed{seed}"
    for state, name in STATE_FILES.items():
        if not (volumes / name).exists():
            write_weave(volumes / name, weave(state, seed))
    return volumes


@dataclass(frozen=True, eq=False)
class _Tow:
    """One tow: paths and half sizes along its own direction, float32 (length,)."""

    label: int
    density: float
    across: np.ndarray  # Y of a warp's centre, X of a weft's
    height: np.ndarray  # Z of its centre
    half_width: np.ndarray
    half_height: np.ndarray


class _Sections:
    """The tows laid into one volume; where several claim a voxel, it goes to the one whose centre is nearest.

    label, density: uint8 and float32, of the tow that has the voxel, 0 in the matrix. first, second: distance of the
    voxel from the centre of the nearest and the second nearest tow, in squared half axes for an ellipse, 1 at the rim.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.label = np.zeros(shape, np.uint8)
        self.density = np.zeros(shape, np.float32)
        self.first = np.ones(shape, np.float32)
        self.second = np.ones(shape, np.float32)

    def lay(self, tow: _Tow, exponent: float) -> None:
        """Give the tow the voxels inside |u / half width|^n + |v / half height|^n < 1 that no nearer tow has."""
        axis = 1 if tow.label == WARP else 2
        heights = _span(tow.height, tow.half_height, self.shape[0])
        widths = _span(tow.across, tow.half_width, self.shape[axis])
        if not heights.size or not widths.size:
            return
        vertical = np.abs((heights[:, None] - tow.height) / tow.half_height) ** exponent
        lateral = np.abs((widths[:, None] - tow.across) / tow.half_width) ** exponent
        slab: tuple[slice, ...] = (slice(int(heights[0]), int(heights[-1]) + 1), slice(None), slice(None))
        across = slice(int(widths[0]), int(widths[-1]) + 1)
        if tow.label == WARP:
            slab = (slab[0], across, slice(None))
            distance = vertical[:, None, :] + lateral[None]
            rank = distance - WARP_PRECEDENCE * (1 - distance)
        else:
            slab = (slab[0], slice(None), across)
            distance = vertical[:, :, None] + lateral.T[None]
            rank = distance
        inside = rank < 1
        first, second = self.first[slab], self.second[slab]
        wins = inside & (rank < first)
        np.minimum(second, np.where(wins, first, rank), out=second)
        first[wins] = rank[wins]
        self.label[slab][wins] = tow.label
        self.density[slab][wins] = tow.density

    def rim(self) -> np.ndarray:
        """Return how near a voxel is to the edge of its tow: 0 in its middle, 1 at its rim or at a contact."""
        return np.clip(self.first + (1 - self.second), 0, 1)


def _span(centre: np.ndarray, half: np.ndarray, length: int) -> np.ndarray:
    low, high = np.floor((centre - half).min()), np.ceil((centre + half).max())
    return np.arange(max(low, 0), min(high, length - 1) + 1, dtype=np.float32)


def _tows(shape: tuple[int, int, int], parameters: _State, seed: int) -> Iterator[_Tow]:
    """Yield every tow that may touch the volume, layer by layer; the lattice starts anywhere in its unit cell."""
    pitch = LAYER_PITCH * parameters.pitch
    origin_z, origin_y, origin_x = generator(seed, "origin").random(3) * (2 * pitch, 4 * WARP_SPACING, WAVE_PERIOD)
    along_x = np.arange(shape[2], dtype=np.float32) + np.float32(origin_x)
    for layer in range(int(origin_z / pitch) - 2, int((origin_z + shape[0]) / pitch) + 2):
        stagger = 0.5 * (layer % 2)
        for column in range(int(origin_x / WEFT_SPACING) - 1, int((origin_x + shape[2]) / WEFT_SPACING) + 2):
            rng = generator(seed, "weft", layer, column)
            across = np.full(shape[1], (column + stagger) * WEFT_SPACING - origin_x, np.float32)
            height = np.full(shape[1], (layer + 0.25) * pitch - origin_z, np.float32)
            yield _tow(WEFT, across, height, parameters, rng)
        for column in range(int(origin_y / WARP_SPACING) - 1, int((origin_y + shape[1]) / WARP_SPACING) + 2):
            rng = generator(seed, "warp", layer, column)
            across = np.full(shape[2], (column + 0.5) * WARP_SPACING - origin_y, np.float32)
            # the step of a quarter period from column to column makes the interlock; the further eighth puts crests
            # and troughs beside the middle of a weft, never onto it
            phase = 2 * np.pi * along_x / WAVE_PERIOD + column * np.pi / 2 + np.pi / 4
            height = ((layer + 0.75) * pitch + 0.5 * pitch * np.cos(phase) - origin_z).astype(np.float32)
            yield _tow(WARP, across, height, parameters, rng)


def _tow(label: int, across: np.ndarray, height: np.ndarray, parameters: _State, rng: np.random.Generator) -> _Tow:
    """Return a tow that wanders about its ideal path and whose section varies at constant area along it."""
    num = len(across)
    width = WARP_HALF_WIDTH if label == WARP else WEFT_HALF_WIDTH
    density = WARP_DENSITY if label == WARP else WEFT_DENSITY
    scale = 1 + 0.05 * rng.standard_normal()
    spread = 1 + _path(rng, num, 0.05)
    return _Tow(
        label,
        density * (1 + 0.05 * rng.standard_normal()),
        across + _path(rng, num, parameters.wander) + np.float32(rng.normal(0, 0.6)),
        height + _path(rng, num, 0.5 * parameters.wander) + np.float32(rng.normal(0, 0.3)),
        np.float32(width * parameters.half_width * scale) * spread,
        np.float32(HALF_HEIGHT * parameters.half_height * scale) / spread,
    )


def _path(rng: np.random.Generator, num: int, deviation: float, correlation: float = 27.0) -> np.ndarray:
    """Return a smooth random path about 0, float32 (num,), of the standard deviation asked for."""
    margin = int(4 * correlation)
    noise = gaussian_filter1d(rng.standard_normal(num + 2 * margin), correlation)[margin : margin + num]
    # a gaussian filter divides the variance of white noise by 2 sqrt(pi) sigma
    return (deviation * np.sqrt(2 * np.sqrt(np.pi) * correlation) * noise).astype(np.float32)


def _fibre_fraction(section: _Sections, parameters: _State, seed: int) -> np.ndarray:
    """Return the local fibre volume fraction, float32 (Z, Y, X), 0 in the matrix; its tow mean is the state's."""
    rim = section.rim()
    # looser at the rim, and looser still in the last voxel, where neighbours touch but do not merge; the rim distance
    # of two tows in contact rises by twice the exponent over the half height
    skin = 2 * parameters.exponent * SKIN / (HALF_HEIGHT * parameters.half_height)
    profile = 1 - 0.10 * rim - 0.60 * np.clip(1 - (1 - rim) / skin, 0, 1) ** 2
    tows = section.label != MATRIX
    profile *= section.density / profile.mean(where=tows)
    fraction = np.clip(parameters.tow_fibre_fraction * profile, 0.10, 0.85)
    warp_texture = _fibrous_noise(section.shape, 2, generator(seed, "texture", "warp"))
    fraction *= 1 + parameters.texture * np.where(
        section.label == WARP, warp_texture, _fibrous_noise(section.shape, 1, generator(seed, "texture", "weft"))
    )
    return np.clip(fraction, 0, 0.85) * tows


def _fibrous_noise(
    shape: tuple[int, int, int], along: int, rng: np.random.Generator, sigma_along: float = 8.0, sigma: float = 0.8
) -> np.ndarray:
    """Return noise of mean 0 and standard deviation 1 with grains drawn out along one axis, float32 (Z, Y, X)."""
    step = 4  # drawn coarsely along the grain, where it is smooth, then interpolated
    coarse = [length if axis != along else -(-length // step) + 2 for axis, length in enumerate(shape)]
    sigmas = [sigma if axis != along else sigma_along / step for axis in range(3)]
    noise = gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigmas, truncate=3, mode="wrap")
    position = np.arange(shape[along]) / step
    whole = position.astype(int)
    weight = (position - whole).astype(np.float32).reshape([-1 if axis == along else 1 for axis in range(3)])
    noise = (1 - weight) * noise.take(whole, axis=along) + weight * noise.take(whole + 1, axis=along)
    return noise / noise.std()


def _voids(label: np.ndarray, void_fraction: float, seed: int) -> np.ndarray:
    """Return where gas is, bool (Z, Y, X): 70 % of it blobs in the resin, 30 % slender voids inside tows."""
    voids = np.zeros(label.shape, bool)
    if not void_fraction:
        return voids
    blobs = generator(seed, "voids", "resin").standard_normal(label.shape, dtype=np.float32)
    # wrapped, since mirrored noise varies more at the border, where voids would gather
    blobs = gaussian_filter(blobs, 1.2, truncate=3, mode="wrap")
    voids |= _highest(blobs, label == MATRIX, 0.7 * void_fraction)
    for tow, axis in ((WARP, 2), (WEFT, 1)):
        slender = _fibrous_noise(label.shape, axis, generator(seed, "voids", axis), sigma_along=6.0, sigma=0.9)
        voids |= _highest(slender, label == tow, 0.15 * void_fraction)
    return voids


def _highest(field: np.ndarray, where: np.ndarray, fraction: float) -> np.ndarray:
    """Return the voxels of a region with the highest values, as many as a fraction of the whole volume."""
    inside = field[where]
    count = min(round(fraction * field.size), inside.size - 1)
    return where & (field > np.partition(inside, inside.size - 1 - count)[inside.size - 1 - count])


def _scan(fibre_fraction: np.ndarray, voids: np.ndarray, parameters: _State, seed: int) -> np.ndarray:
    """Return the grey levels of a scan, uint16 (Z, Y, X): attenuation, detector blur, rings and noise."""
    mu = MU_FIBRE * fibre_fraction + parameters.matrix_mu * (1 - fibre_fraction)
    mu[voids] = 0
    mu = gaussian_filter(mu, BLUR, truncate=3)
    tow = parameters.tow_fibre_fraction
    mu += RING_SHARE * (MU_FIBRE * tow + parameters.matrix_mu * (1 - tow)) * _rings(mu.shape, generator(seed, "rings"))
    noise = generator(seed, "noise").standard_normal(mu.shape, dtype=np.float32)
    noise = gaussian_filter(noise, NOISE_CORRELATION, truncate=2, mode="wrap")
    contrast = (MU_FIBRE - parameters.matrix_mu) * tow
    mu += contrast / parameters.contrast_to_noise / noise.std() * noise
    return np.clip(np.rint(GREY_OF_AIR + GREY_PER_MU * mu), 0, 65535).astype(np.uint16)


def _rings(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return ring artefacts of standard deviation 1, float32 (Z, Y, 1): the scanner turns about an axis along X."""
    num_z, num_y, _ = shape
    centre_z, centre_y = num_z / 2 + rng.normal(0, 4), num_y / 2 + rng.normal(0, 4)
    radius = np.hypot(np.arange(num_z)[:, None] - centre_z, np.arange(num_y) - centre_y)
    profile = rng.standard_normal(int(radius.max()) + 2)
    profile -= gaussian_filter1d(profile, 6)
    rings = np.interp(radius, np.arange(profile.size), profile / profile.std())
    return rings.astype(np.float32)[:, :, None]
