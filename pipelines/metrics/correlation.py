"""How like two images are at their best shift: the comparer that sees copies, where texture statistics cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft

from pipelines.metrics.inputs import check_sizes, checked_pictures, luminance

FULL_PX = 192  # larger images are shrunk to this
_CHUNK = 128


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the greatest correlation over all shifts of every pair of pictures, (N, M): 1 is the same image.

    one, other: float32 (N, H, W, 3), (M, H, W, 3) in [0, 1], of one size. Luminance, at FULL_PX at most, minus its
    mean, zero beyond the image, over the lengths of both: what a shift loses of the overlap is lost of the value.
    0 for an image of one grey.
    """
    one, other = checked_pictures(one, "first pictures"), checked_pictures(other, "second pictures")
    check_sizes(first=one, second=other)
    scale = Scale.fitting(luminance(one), FULL_PX)
    spectra = np.conj(scale.spectra(luminance(other)))
    found = np.empty((len(one), len(other)))
    for number, spectrum in enumerate(scale.spectra(luminance(one))):
        for part in chunks(len(other), 32):
            found[number, part] = scale.maps(spectrum * spectra[part]).max((1, 2))
    return found


@dataclass(frozen=True)
class Scale:
    """Images at one size, and their correlations by the fast Fourier transform, padded so that no shift wraps round.

    shape: (rows, columns) of the images, padded: of the transform. factor: px of the picture for one px here.
    """

    shape: tuple[int, int]
    padded: tuple[int, int]
    factor: float

    @classmethod
    def fitting(cls, grey: np.ndarray, longest_px: int) -> Scale:
        """Return the scale at which the longer side of images (N, H, W) is at most longest_px."""
        rows, columns = grey.shape[1:]
        factor = max(1.0, max(rows, columns) / longest_px)
        shape = max(1, round(rows / factor)), max(1, round(columns / factor))
        return cls(shape, tuple(fft.next_fast_len(2 * side - 1, real=True) for side in shape), factor)

    def shrunk(self, grey: np.ndarray) -> np.ndarray:
        """Return images (N, H, W) at this scale, by area, of mean 0 and length 1; 0 where there is one grey only."""
        images = torch.from_numpy(np.ascontiguousarray(grey, dtype=np.float32))[:, None]
        small = images if images.shape[-2:] == self.shape else F.interpolate(images, self.shape, mode="area")
        centred = small[:, 0] - small[:, 0].mean((1, 2), keepdim=True)
        lengths = centred.flatten(1).norm(dim=1)
        known = lengths > 1e-4 * np.sqrt(self.shape[0] * self.shape[1])
        return (centred * (known / lengths.clamp(min=1e-12))[:, None, None]).numpy()

    def spectra(self, grey: np.ndarray) -> np.ndarray:
        """Return the transforms of images (N, H, W), complex64."""
        return self.spectra_of_shrunk(self.shrunk(grey))

    def spectra_of_shrunk(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(fft.rfft2(images, s=self.padded))

    def maps(self, products: np.ndarray) -> np.ndarray:
        """Return the correlation at every shift, (N, *padded), of products of spectra."""
        return np.asarray(fft.irfft2(products, s=self.padded))

    def peaks(self, products: np.ndarray) -> list[tuple[float, tuple[int, int]]]:
        """Return the greatest correlation of every pair and its shift in px of the picture."""
        found = []
        for each in self.maps(products):
            place = np.unravel_index(int(each.argmax()), each.shape)
            rows, columns = (
                int(index) - full if index > full // 2 else int(index)
                for index, full in zip(place, self.padded, strict=True)
            )
            found.append((min(1.0, float(each.max())), (round(rows * self.factor), round(columns * self.factor))))
        return found


def chunks(length: int, size: int = _CHUNK) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)
