"""Plain fills of the unknown part of a picture: what inpainting is measured against."""

from __future__ import annotations

import numpy as np
from skimage.restoration import inpaint_biharmonic


def mean_fill(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the picture (row, column, C) with the mean of its known pixels where it is unknown."""
    return np.where(known[..., None], picture, picture[known].mean(axis=0)).astype(picture.dtype)


def biharmonic_fill(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the picture (row, column, C) with the smoothest continuation where it is unknown, in its range.

    Damelin and Hoang 2018, doi:10.1155/2018/3950312, as scikit-image has it.
    """
    hidden = np.where(known[..., None], picture, 0).astype(np.float64)
    filled = inpaint_biharmonic(hidden, ~known, channel_axis=-1)
    inside = np.clip(filled, picture[known].min(), picture[known].max())
    return np.where(known[..., None], picture, inside).astype(picture.dtype)


def unknown_error(picture: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
    """Return the root mean squared difference over the unknown pixels, in the unit of the pictures."""
    return float(np.sqrt(np.square(picture[~known].astype(np.float64) - truth[~known]).mean()))
