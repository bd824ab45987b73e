"""How like two images are at their best shift: the comparer that sees copies, where texture statistics cannot."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.metrics.inputs import check_sizes, checked_pictures, luminance
from pipelines.metrics.places import Places, chunks, shrunk, unit

FULL_PX = 192  # larger images are shrunk to this


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the greatest correlation over all shifts of every pair of pictures, (N, M): 1 is the same image.

    one, other: float32 (N, H, W, 3), (M, H, W, 3) in [0, 1], of one size. Luminance, at FULL_PX at most, minus its
    mean, zero beyond the image, over the lengths of both: what a shift loses of the overlap is lost of the value.
    0 for an image of one grey.
    """
    one, other = checked_pictures(one, "first pictures"), checked_pictures(other, "second pictures")
    check_sizes(first=one, second=other)
    factor = shrinking(one.shape[1:3], FULL_PX)
    images, pictures = (shrunk(torch.from_numpy(luminance(each)), factor) for each in (one, other))
    found = np.empty((len(one), len(other)))
    for part in chunks(len(other), 32):
        places = Places.of(pictures[part], (images.shape[1], images.shape[2]))
        for number, spectrum in enumerate(places.spectra_of(unit(images))):
            found[number, part] = places.values(spectrum).amax((1, 2)).numpy()
    return found


def shrinking(shape: tuple[int, ...], longest_px: int) -> float:
    """Return by how much images (rows, columns) are to be shrunk so that no side is longer; 1 at least."""
    return max(1.0, max(shape) / longest_px)
