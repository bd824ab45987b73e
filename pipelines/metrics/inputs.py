"""What the measures take, checked: pictures and features."""

from __future__ import annotations

import numpy as np

from data.errors import DataError

# ITU-R BT.601: the share of each channel in what the eye sees as brightness
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def checked_pictures(pictures: np.ndarray, where: str, *, at_least: int = 1) -> np.ndarray:
    """Return pictures as float32 (N, H, W, 3) in [0, 1], as `pipelines.sampling.sample` gives them.

    Raises DataError, with `where`, for another shape or range, too few pictures and values that are not finite.
    """
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise DataError(where, f"found pictures of shape {pictures.shape}, expected (images, rows, columns, 3).")
    if len(pictures) < at_least:
        raise DataError(where, f"found {_images(len(pictures))}, expected at least {at_least}. Draw or give more.")
    if not np.isfinite(pictures).all():
        bad = np.flatnonzero(~np.isfinite(pictures).all((1, 2, 3)))
        raise DataError(where, f"{_images(len(bad))} of {len(pictures)} are not finite, the first is number {bad[0]}.")
    if not np.issubdtype(pictures.dtype, np.floating) or pictures.min() < 0 or pictures.max() > 1:
        raise DataError(
            where,
            f"found {pictures.dtype} pictures in [{pictures.min():g}, {pictures.max():g}], expected floats in [0, 1].",
        )
    return pictures.astype(np.float32, copy=False)


def checked_features(features: np.ndarray, where: str, *, at_least: int = 1) -> np.ndarray:
    """Return features as float64 (N, D), each row of some length.

    Raises DataError, with `where`, for another shape, too few rows, values that are not finite and rows of length zero.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise DataError(where, f"found features of shape {features.shape}, expected (images, numbers).")
    if len(features) < at_least:
        raise DataError(where, f"found {_images(len(features))}, expected at least {at_least}. Draw or give more.")
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        raise DataError(
            where, f"the features of {_images(len(bad))} of {len(features)} are not finite, the first is {bad[0]}."
        )
    if not features.any(1).all():
        raise DataError(where, "found a feature vector of length zero, which has no direction. Is an image empty?")
    return features


def check_widths(**features: np.ndarray) -> None:
    """Raise DataError unless all features have as many numbers per image."""
    widths = {name: each.shape[1] for name, each in features.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise DataError("features", f"found {found} numbers per image, expected as many. Extract all of them alike.")


def check_sizes(**pictures: np.ndarray) -> None:
    """Raise DataError unless all pictures have one size in px."""
    sizes = {name: each.shape[1:3] for name, each in pictures.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {rows} x {columns} px" for name, (rows, columns) in sizes.items())
        raise DataError("pictures", f"found {found}, expected one size. Cut or shrink all of them alike.")


def luminance(pictures: np.ndarray) -> np.ndarray:
    """Return the brightness (N, H, W) of pictures (N, H, W, 3): 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    return pictures @ _LUMA


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
