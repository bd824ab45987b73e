"""The pictures of a page: which are put into it, each once, and how."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from pipelines.evaluation.result import Result
from pipelines.evaluation.store import ImageStore

MOST_PICTURES = 1500
MOST_BYTES = 10_000_000
LARGEST_PX = 192  # larger ones are shrunk; the page links to the files
_QUALITY = 88


def chosen_keys(result: Result, shown: Sequence[str]) -> list[str]:
    """Return the keys of the pictures to put into the page: those shown beside words first, then seed by seed.

    shown: keys that a panel names, in the order of importance.
    """
    seeds: dict[tuple[int, int, int], int] = {}
    ranked = []
    for picture in result.pictures:
        place = picture.model, picture.prompt, picture.sampling
        seeds[place] = seeds.get(place, -1) + 1
        ranked.append((seeds[place], picture.key))
    by_seed = [key for _, key in sorted(ranked, key=lambda pair: pair[0])]
    return list(dict.fromkeys([*shown, *by_seed]))[:MOST_PICTURES]


def encoded(store: ImageStore, keys: Iterable[str]) -> dict[str, str]:
    """Return pictures as base64 WebP by key, as many as the page may weigh."""
    found: dict[str, str] = {}
    weight = 0
    for key in keys:
        text = webp(store.read(key))
        weight += len(text)
        if weight > MOST_BYTES:
            break
        found[key] = text
    return found


def webp(pixels: np.ndarray) -> str:
    """Return an image, uint8 (H, W, 3), as base64 WebP, shrunk where it is larger than 192 px."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode()


def sheet_picture(picture: Image.Image) -> str:
    """Return a picture as base64 WebP without shrinking it."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=85, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
