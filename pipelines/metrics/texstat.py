"""TexStat-v1: texture statistics of an image, with neither weights to load nor anything learned.

The amplitudes of a fixed bank of oriented quadrature filters on a Gaussian pyramid give first and second order means
and correlations between angles and between scales, after J. Portilla and E. Simoncelli, "A parametric texture model
based on joint statistics of complex wavelet coefficients", IJCV 2000. Positions are averaged away: the numbers say
which texture an image shows and not whether it copies another image.

Images are never enlarged. They are measured as squares of one of the sizes in SIZES_PX: the short side of a larger
image is shrunk to it by area, the long side is covered with evenly spaced squares whose numbers are averaged. Each size
has frozen constants of its own, and features of different sizes are not comparable: `extractor_id` says the size.

`python -m pipelines.metrics.texstat` computes the frozen constants again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import DataError
from data.randomness import generator
from data.synthetic.world import TEXTURES, all_scenes, draw, texture_mask

SIZES_PX = (32, 64, 128, 256)
LARGEST_USUAL_PX = 128  # 256 px is for fine detail and has to be asked for
CONSTANTS = Path(__file__).with_name("texstat_v1.json")

_NUM_ANGLES = 6
_HALF_WIDTH_PX = 4
_LARGEST_Z = 5.0


def size_for(short_side_px: int) -> int:
    """Return the size at which images of this short side are measured: the largest of 32, 64 and 128 px that fits.

    Raises DataError when the images are smaller than the smallest size.
    """
    fitting = [size for size in SIZES_PX if size <= min(short_side_px, LARGEST_USUAL_PX)]
    if not fitting:
        raise DataError(
            "texture statistics",
            f"found images with a short side of {short_side_px} px, expected at least {SIZES_PX[0]} px. "
            "Generate or crop larger images.",
        )
    return fitting[-1]


@dataclass(frozen=True)
class TexStat:
    """The extractor at one size.

    size_px: one of SIZES_PX, the side of the squares that are measured. Levels of the pyramid: 4, or 5 at 256 px.
    """

    size_px: int

    def __post_init__(self) -> None:
        assert self.size_px in SIZES_PX, f"found a size of {self.size_px} px, expected one of {SIZES_PX}"

    @property
    def num_levels(self) -> int:
        return 5 if self.size_px >= 256 else 4

    @property
    def extractor_id(self) -> str:
        """The name to keep beside every number: only numbers of the same name may be compared."""
        return f"texstat-v1-j{self.num_levels}-{self.size_px}px"

    def extract(self, pixels: Tensor) -> Tensor:
        """Return the raw statistics, float32 (B, D) on the CPU; D = 245, or 314 at 256 px.

        pixels: (B, 1 or 3, row, column) in [0, 1], any size from size_px on; one channel stands for three equal ones.
        Raises DataError when the short side is smaller than size_px.
        """
        _check(pixels)
        short = min(pixels.shape[-2:])
        if short < self.size_px:
            raise DataError(
                self.extractor_id,
                f"found images of {pixels.shape[-2]} x {pixels.shape[-1]} px, expected sides of at least "
                f"{self.size_px} px. Images are never enlarged: measure at {size_for(short)} px.",
            )
        tiles = _tiles(_shrunk(pixels, self.size_px), self.size_px)
        return torch.stack([statistics(tile, self.num_levels) for tile in tiles]).mean(0)

    def features(self, pixels: Tensor) -> Tensor:
        """Return unit vectors, float32 (B, D) on the CPU: their cosine says how alike two textures are.

        The raw statistics are standardised with the frozen constants, clamped to +-5 and each of the five groups is
        divided by the square root of its size, so that no group counts more for having more numbers.
        pixels: as for `extract`.
        """
        mean, std = _constants(self.size_px)
        z = ((self.extract(pixels) - mean) / (std + 1e-6)).clamp(-_LARGEST_Z, _LARGEST_Z)
        return F.normalize(z * _group_weights(self.num_levels), dim=1)


def group_sizes(num_levels: int) -> tuple[int, ...]:
    """Return how many numbers each group holds: A marginals, B means, C sparsity, D second order, E correlations."""
    angles, pairs = _NUM_ANGLES, _NUM_ANGLES * (_NUM_ANGLES - 1) // 2
    return (
        11,
        num_levels * angles,
        num_levels * angles,
        (num_levels - 1) * angles**2,
        num_levels * pairs + (num_levels - 1) * angles,
    )


@torch.no_grad()
def statistics(pixels: Tensor, num_levels: int) -> Tensor:
    """Return the raw statistics of whole images at their own size, float32 (B, D) on the CPU, groups A to E in order.

    pixels: (B, 1 or 3, row, column) in [0, 1], sides of at least 32 px (64 px with 5 levels). On every device the
    numbers are computed on the CPU in float32, each image on its own, so they depend on nothing but the image.
    """
    _check(pixels)
    smallest = 2 ** (num_levels + 1)
    assert min(pixels.shape[-2:]) >= smallest, f"{num_levels} levels need sides of {smallest} px"
    with torch.autocast("cpu", enabled=False):
        images = pixels.to("cpu", torch.float32).expand(-1, 3, -1, -1)
        return torch.cat([_statistics(image[None], num_levels) for image in images])


def _check(pixels: Tensor) -> None:
    assert pixels.ndim == 4, f"found {pixels.ndim} axes, expected (B, channel, row, column)"
    assert pixels.shape[1] in (1, 3), f"found {pixels.shape[1]} channels, expected 1 or 3"
    assert len(pixels) > 0, "found no image"
    assert pixels.is_floating_point(), f"found {pixels.dtype}, expected floats in [0, 1]"
    assert bool((pixels >= 0).all() and (pixels <= 1).all()), "found values outside [0, 1] or not finite"


def _shrunk(pixels: Tensor, size_px: int) -> Tensor:
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short == size_px:
        return pixels
    shape = (round(height * size_px / short), round(width * size_px / short))
    return F.interpolate(pixels.to("cpu", torch.float32), shape, mode="area")


def _tiles(pixels: Tensor, size_px: int) -> list[Tensor]:
    """Return squares that cover the images, evenly spaced, with as little overlap as their number allows."""
    rows, columns = (
        np.linspace(0, length - size_px, math.ceil(length / size_px)).round().astype(int).tolist()
        for length in pixels.shape[-2:]
    )
    return [pixels[..., row : row + size_px, column : column + size_px] for row in rows for column in columns]


def _statistics(image: Tensor, num_levels: int) -> Tensor:
    """The groups of one image (1, 3, row, column), in order."""
    level = _standardised(image.mean(1, keepdim=True))
    marginals = _marginals(image, level)
    amplitudes = []
    for _ in range(num_levels):
        amplitudes.append(_amplitude(level))  # (1, angle, row, column)
        level = _next_level(level)
    means = [amplitude.mean((2, 3)) for amplitude in amplitudes]
    groups = (
        [marginals],
        [(mean + 1e-3).log() for mean in means],
        [(a.square().mean((2, 3)).sqrt() / (m + 1e-6)).log() for a, m in zip(amplitudes, means, strict=True)],
        [_second_order(a, m) for a, m in zip(amplitudes[:-1], means[:-1], strict=True)],
        _correlations(amplitudes),
    )
    return torch.cat([part for group in groups for part in group], dim=1)


def _standardised(luminance: Tensor) -> Tensor:
    centred = luminance - luminance.mean((2, 3), keepdim=True)
    return centred / (luminance.std((2, 3), keepdim=True) + 1e-3)


def _marginals(image: Tensor, level: Tensor) -> Tensor:
    """Group A: channel means, spreads and covariances, and the third and fourth moment of the luminance."""
    values = image.flatten(2)
    mean, std = values.mean(2), values.std(2)
    centred = values - mean[..., None]
    covariance = (centred @ centred.mT) / (values.shape[2] - 1)
    correlation = covariance / ((std[:, :, None] + 1e-3) * (std[:, None, :] + 1e-3))
    first, second = torch.triu_indices(3, 3, offset=1)
    return torch.cat(
        [
            mean,
            (std + 1e-2).log(),
            level.pow(3).mean((2, 3)).clamp(-5, 5),
            (level.pow(4).mean((2, 3)) + 1e-3).log(),
            correlation[:, first, second],
        ],
        dim=1,
    )


@cache
def _bank() -> Tensor:
    """The even filters of the six angles, then the odd ones, (12, 1, 9, 9): wave number 2, envelope of width 1.7 px."""
    axis = torch.arange(-_HALF_WIDTH_PX, _HALF_WIDTH_PX + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = (torch.arange(_NUM_ANGLES, dtype=torch.float64) * torch.pi / _NUM_ANGLES)[:, None, None]
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    envelope = torch.exp(-(u.square() + (0.6 * v).square()) / (2 * 1.7**2))
    total = envelope.sum((1, 2), keepdim=True)
    even = envelope * torch.cos(2 * u)
    even = even - envelope * even.sum((1, 2), keepdim=True) / total
    odd = envelope * torch.sin(2 * u)
    return (torch.cat([even / total, odd / total])[:, None]).float()


def _amplitude(maps: Tensor) -> Tensor:
    """The amplitude of every map (N, 1, row, column) at every angle, (N, angle, row, column)."""
    high, wide = (min(_HALF_WIDTH_PX, side - 1) for side in maps.shape[-2:])
    response = F.conv2d(F.pad(maps, (wide, wide, high, high), mode="reflect"), _bank())
    even, odd = response.chunk(2, dim=1)
    return (even.square() + odd.square() + 1e-12).sqrt()


def _next_level(level: Tensor) -> Tensor:
    """Smooth with the binomial filter and keep every second pixel (Burt and Adelson 1983)."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(level, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(padded, taps[None, None, :, None], stride=(2, 1))
    return F.conv2d(rows, taps[None, None, None, :], stride=(1, 2))


def _second_order(amplitude: Tensor, mean: Tensor) -> Tensor:
    """Group D of one level: the amplitude of the amplitudes, against the mean of the first; first angle outer."""
    pooled = F.avg_pool2d(amplitude, 2).transpose(0, 1)  # (angle, 1, row, column)
    second = _amplitude(pooled).mean((2, 3))  # (first angle, second angle)
    return ((second + 1e-4) / (mean.transpose(0, 1) + 1e-3)).log().reshape(1, -1)


def _correlations(amplitudes: list[Tensor]) -> list[Tensor]:
    """Group E: at each level between angles, then, from the second level on, with the level below at the same angle."""
    parts = []
    first, second = torch.triu_indices(_NUM_ANGLES, _NUM_ANGLES, offset=1)
    directions = [_direction(amplitude) for amplitude in amplitudes]
    for direction in directions:
        parts.append((direction @ direction.mT)[:, first, second])
    across = [
        (_direction(F.interpolate(finer, coarser.shape[-2:], mode="area")) * direction).sum(2)
        for (finer, coarser), direction in zip(pairwise(amplitudes), directions[1:], strict=True)
    ]
    # per level: the pairs of angles, then the level below
    return parts[:1] + [part for level in zip(parts[1:], across, strict=True) for part in level]


def _direction(maps: Tensor) -> Tensor:
    """Every map (1, angle, row, column) as a centred vector of length one, (1, angle, pixel)."""
    values = maps.flatten(2)
    centred = values - values.mean(2, keepdim=True)
    return centred / (centred.norm(dim=2, keepdim=True) + 1e-6)


@cache
def _group_weights(num_levels: int) -> Tensor:
    return torch.cat([torch.full((size,), size**-0.5) for size in group_sizes(num_levels)])


@cache
def _constants(size_px: int) -> tuple[Tensor, Tensor]:
    entry = json.loads(CONSTANTS.read_text(encoding="utf-8"))[str(size_px)]
    return torch.tensor(entry["mean"]), torch.tensor(entry["std"])


def corpus(size_px: int, seed: int = 0) -> np.ndarray:
    """Return the pictures on which the constants are computed, uint8 (N, size_px, size_px, 3), N = 208.

    96 textures and 32 shapes of the captioned world, 48 crops of scikit-image's brick, grass and gravel at scales of
    1 to 4, and 32 pictures of noise with amplitude spectra from flat to 1 / f**2; half of the textures and all the
    photographs and noise are grey.
    """
    pictures = [_texture_picture(name, size_px, seed, i) for name in TEXTURES for i in range(12)]
    shapes = [scene for scene in all_scenes() if scene.shape and not scene.texture]
    for i in range(32):
        rng = generator(seed, "texstat", "shape", i)
        pictures.append(draw(shapes[rng.integers(len(shapes))], rng, size_px))
    pictures += [_photograph(name, size_px, seed, i) for name in ("brick", "grass", "gravel") for i in range(16)]
    pictures += [_noise(size_px, seed, i) for i in range(32)]
    return np.stack(pictures)


def _texture_picture(name: str, size_px: int, seed: int, index: int) -> np.ndarray:
    rng = generator(seed, "texstat", name, index)
    scale = size_px / 64 * rng.uniform(0.6, 1.2)
    mask = texture_mask(name, rng, size_px, scale)[..., None]
    colours = rng.uniform(0, 255, (2, 3 if index % 2 else 1))
    return np.broadcast_to(colours[0] + (colours[1] - colours[0]) * mask + 0.5, (size_px, size_px, 3)).astype(np.uint8)


def _photograph(name: str, size_px: int, seed: int, index: int) -> np.ndarray:
    from skimage import data  # heavy, and needed by the corpus alone

    photograph = {"brick": data.brick, "grass": data.grass, "gravel": data.gravel}[name]()
    rng = generator(seed, "texstat", name, index)
    crop_px = round(size_px * rng.uniform(1, min(4, photograph.shape[0] / size_px)))
    row, column = rng.integers(photograph.shape[0] - crop_px + 1, size=2)
    crop = torch.from_numpy(photograph[row : row + crop_px, column : column + crop_px]).float()
    small = F.interpolate(crop[None, None], (size_px, size_px), mode="area")[0, 0].numpy()
    return np.repeat((small + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def _noise(size_px: int, seed: int, index: int) -> np.ndarray:
    rng = generator(seed, "texstat", "noise", index)
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size_px, size_px))) * frequency ** -rng.uniform(0, 2))
    grey = rng.uniform(64, 192) + rng.uniform(10, 60) * field / field.std()
    return np.repeat(np.clip(grey + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def computed_constants(size_px: int) -> dict[str, list[float]]:
    """Return the mean and the sample standard deviation of every raw number over the corpus."""
    pictures = torch.from_numpy(corpus(size_px)).permute(0, 3, 1, 2).float() / 255
    raw = TexStat(size_px).extract(pictures).double()
    return {
        name: [round(value, 6) for value in row.tolist()] for name, row in (("mean", raw.mean(0)), ("std", raw.std(0)))
    }


def main() -> None:
    """Compute the frozen constants of every size and write them beside this module."""
    entries = ",\n".join(f'"{size}": {json.dumps(computed_constants(size))}' for size in SIZES_PX)
    CONSTANTS.write_text(f"{{\n{entries}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
