"""How like an image is to larger ones at each of their places: the template search behind the search for copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft
from torch import Tensor

_CHUNK = 16  # maps of so many stay in a processor's cache
_FLATTEST = 1e-4  # standard deviation of grey, in [0, 1], below which a window is of one grey


@dataclass(frozen=True)
class Peak:
    """The best place of an image in a picture.

    ncc: the correlation there, at most 1. shift_px: rows and columns by which the picture's content is moved in the
    image.
    """

    ncc: float
    shift_px: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Places:
    """Pictures of one shape, ready to be correlated with images of another, no larger one, at every shift.

    The value at a shift is the correlation of the image with the window of the picture that it covers: both minus their
    mean, over both their lengths. Where the image reaches beyond the picture, the nearest window that does not stands
    for it, and what lies outside adds nothing: a shift loses about the share of the overlap that it loses. For pictures
    of the image's own shape that is the correlation of two whole images, with zeros beyond them.
    Computed by the fast Fourier transform, padded so that no shift wraps round (J. P. Lewis, "Fast normalized
    cross-correlation", 1995).

    spectra: (N, P, Q // 2 + 1), conjugated. means, inverse_norms: (N, P, Q), of the window at each shift. reached:
    (P, Q // 2 + 1), the conjugated transform of where the pictures are. padded: (P, Q). image_shape: (rows, columns).
    """

    spectra: Tensor
    means: Tensor
    inverse_norms: Tensor
    reached: Tensor
    padded: tuple[int, int]
    image_shape: tuple[int, int]

    @classmethod
    def of(cls, pictures: Tensor, image_shape: tuple[int, int]) -> Places:
        """pictures: (N, H, W) grey, each side as long as the image's or longer."""
        shape = tuple(pictures.shape[1:])
        assert all(side >= of_image for side, of_image in zip(shape, image_shape, strict=True)), "images are no larger"
        padded = padded_shape((shape[0], shape[1]), image_shape)
        centred = (pictures - pictures.mean((1, 2), keepdim=True)).float()
        spread = centred.double()[:, None]
        means = _window_means(spread, image_shape)
        variances = (_window_means(spread**2, image_shape) - means**2).clamp(min=0)
        area = image_shape[0] * image_shape[1]
        inverse = torch.where(variances.sqrt() > _FLATTEST, (variances * area).clamp(min=1e-24).rsqrt(), 0.0)
        rows, columns = (
            _nearest_windows(length, side, of_image)
            for length, side, of_image in zip(padded, shape, image_shape, strict=True)
        )
        return cls(
            torch.fft.rfft2(centred, s=padded).conj(),
            means.float()[:, rows][:, :, columns],
            inverse.float()[:, rows][:, :, columns],
            torch.fft.rfft2(torch.ones(shape), s=padded).conj(),
            padded,
            image_shape,
        )

    def spectra_of(self, images: Tensor) -> Tensor:
        """Return the transforms of images (..., rows, columns) that `unit` has made, for `values`."""
        return torch.fft.rfft2(images, s=self.padded)

    def values(self, spectrum: Tensor) -> Tensor:
        """Return the correlations (N, P, Q) of an image, by its transform; negative shifts stand at the end."""
        products = torch.fft.irfft2(spectrum * self.spectra, s=self.padded)
        overlaps = torch.fft.irfft2(spectrum * self.reached, s=self.padded)
        return products.sub_(self.means * overlaps).mul_(self.inverse_norms)

    def best(self, spectrum: Tensor, factor: float) -> list[Peak]:
        """Return the best shift in each picture. factor: px of the pictures for one px here."""
        found = []
        for each in self.values(spectrum):
            place = np.unravel_index(int(each.argmax()), self.padded)
            shift = (
                int(index) if index < of_image else int(index) - length
                for index, of_image, length in zip(place, self.image_shape, self.padded, strict=True)
            )
            rows, columns = (round(step * factor) for step in shift)
            found.append(Peak(min(1.0, float(each.max())), (rows, columns)))
        return found


def _window_means(pictures: Tensor, image_shape: tuple[int, int]) -> Tensor:
    """Return the means (N, P, Q) of all windows of pictures (N, 1, H, W), along one axis and then along the other."""
    rows, columns = image_shape
    return F.avg_pool2d(F.avg_pool2d(pictures, (rows, 1), stride=1), (1, columns), stride=1)[:, 0]


def padded_shape(shape: tuple[int, int], image_shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of a transform in which no shift of an image over a picture wraps round."""
    rows, columns = (
        fft.next_fast_len(side + of_image - 1, real=True) for side, of_image in zip(shape, image_shape, strict=True)
    )
    return rows, columns


def unit(images: Tensor) -> Tensor:
    """Return images (N, H, W) of mean 0 and length 1; 0 where there is one grey only."""
    centred = images - images.mean((1, 2), keepdim=True)
    lengths = centred.flatten(1).norm(dim=1)
    known = lengths > _FLATTEST * (images.shape[1] * images.shape[2]) ** 0.5
    return centred * (known / lengths.clamp(min=1e-12))[:, None, None]


def shrunk(images: Tensor, factor: float) -> Tensor:
    """Return images (N, H, W) with factor px in each px, by area."""
    rows, columns = (max(1, round(side / factor)) for side in images.shape[1:])
    if (rows, columns) == tuple(images.shape[1:]):
        return images
    return F.interpolate(images[:, None], (rows, columns), mode="area")[:, 0]


def chunks(length: int, size: int = _CHUNK) -> Iterator[slice]:
    """Return slices that cover a length, each of at most a size."""
    for start in range(0, length, size):
        yield slice(start, start + size)


def _nearest_windows(length: int, side: int, of_image: int) -> Tensor:
    """Return for each shift along an axis of the transform the first px of the nearest window inside the picture."""
    index = torch.arange(length)
    shift = torch.where(index < of_image, index, index - length)
    return (-shift).clamp(0, side - of_image)
