"""What noise leaves of a picture, band by band of spatial frequency, and of its mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Bands:
    """Rings of spatial frequency of square pictures.

    edges: (bands + 1,) in cycles per pixel, from 0 to the largest of a square, sqrt(1/2). power: (bands,) mean power of
    the pictures' coefficients, in which white noise of unit variance has 1. The mean of a picture is in no band.
    """

    edges: np.ndarray
    power: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """The middle frequency of each band, in cycles per pixel."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def frequencies(size_px: int) -> Tensor:
    """Return the spatial frequency of each coefficient of a square picture's transform, cycles per pixel (n, n)."""
    along = torch.fft.fftfreq(size_px, dtype=torch.float64)
    return (along[:, None] ** 2 + along**2).sqrt()


def band_edges(num_bands: int) -> np.ndarray:
    """Return num_bands + 1 edges evenly spaced from 0 to sqrt(1/2) cycles per pixel."""
    return np.linspace(0, math.sqrt(0.5), num_bands + 1)


def band_index(size_px: int, num_bands: int) -> Tensor:
    """Return the number of each coefficient's band (n, n) int64; -1 for the mean."""
    edges = torch.from_numpy(band_edges(num_bands))
    index = torch.bucketize(frequencies(size_px), edges[1:-1], right=True)
    index[0, 0] = -1
    return index


def band_powers(pixels: Tensor, num_bands: int) -> Bands:
    """Return the mean power in each band of square pictures (B, C, n, n), over pictures, channels and coefficients.

    Unit: the variance of white noise per pixel. A band in which a picture of this size has no coefficient is NaN.
    """
    power = torch.fft.fft2(pixels.double(), norm="ortho").abs().square().mean((0, 1))
    index = band_index(pixels.shape[-1], num_bands)
    means = [power[index == band].mean() for band in range(num_bands)]
    return Bands(band_edges(num_bands), torch.stack(means).numpy())


def snr_by_band(bands: Bands, alphas_cumprod: Tensor) -> np.ndarray:
    """Return signal over noise power in each band at each timestep, (T, bands): SNR(t) times the band's power.

    The signal's coefficients are scaled by sqrt(alpha_bar), the noise is as strong in every band.
    """
    ratio = (alphas_cumprod / (1 - alphas_cumprod)).double().numpy()
    return ratio[:, None] * bands.power


def lost_at(bands: Bands, alphas_cumprod: Tensor) -> list[int | None]:
    """Return for each band the first timestep with more noise than signal; None where that never happens."""
    below = snr_by_band(bands, alphas_cumprod) < 1
    return [int(column.argmax()) if column.any() else None for column in below.T]


def coherence(x0: Tensor, x_t: Tensor, num_bands: int) -> np.ndarray:
    """Return how alike clean and noisy pictures are in each band, 0 to 1: the correlation of their coefficients.

    x0, x_t: (B, C, n, n). Its expectation is sqrt(r / (1 + r)) where r is the band's signal over noise.
    """
    clean, noisy = (torch.fft.fft2(each.double(), norm="ortho") for each in (x0, x_t))
    index = band_index(x0.shape[-1], num_bands)
    found = []
    for band in range(num_bands):
        a, b = clean[..., index == band], noisy[..., index == band]
        found.append(float((a * b.conj()).sum().real / (a.abs().square().sum() * b.abs().square().sum()).sqrt()))
    return np.array(found)


def mean_signal_to_noise(side: int, alpha_bar: float, noise_offset: float) -> float:
    """Return signal over noise, as standard deviations, in the mean of one channel of constant value 1.

    The mean of side x side independent normal numbers has the standard deviation 1 / side; an offset noise
    (Guttenberg 2023) adds its own variance. At the last timestep a value above about 1 lets a model read the brightness
    of a picture from what it takes for pure noise.
    """
    spread = math.sqrt((1 / side) ** 2 + noise_offset**2)
    return math.sqrt(alpha_bar) / (math.sqrt(1 - alpha_bar) * spread)
