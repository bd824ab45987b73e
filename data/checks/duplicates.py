"""Pictures that show the same: equal content, and near-duplicates (saved again, a little smaller, brighter).

Two pictures are near-duplicates where their brightness, squashed to 16 x 16, correlates by COARSE or more, and its
detail, the 64 x 64 squash less its local mean, by DETAIL or more. The first looks for candidates, the second judges
them: textures of one class often agree in their light and their tone, not in where their detail lies.

Measured on 2,820 pictures of the DTD stand-in (`benchmarks/near_duplicates.py`): of 3,974,790 pairs of different
pictures 14 are taken for duplicates, all of them among the two classes of noise that carry one written band; of 403
pictures saved again as JPEG of quality 75 the copies of 402 are found, of quality 40 398, resized by 0.75 to 1.3 at
least 398, by 0.5 349, brightened, darkened or with another gamma all, and smaller, darker and as JPEG of quality 60 at
once 398. A mirrored, turned or cropped copy is not found, nor a picture without detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.checks.facts import LIKENESS_PX, ImageFacts

COARSE = 0.75
DETAIL = 0.82
ASPECT_TOLERANCE = 0.08  # relative difference of width / height between copies
_COARSE_PX = 16
_LOCAL_MEAN_PX = 4.0  # sigma of the gaussian whose mean is taken off, in pixels of the 64 x 64 squash
_LEAST_DETAIL = 1.0  # standard deviation, of levels -127 to 127, below which the detail is rounding
_BLOCK = 1024  # rows of the matrix of correlations that are made at once
MOST_PAIRS = 20_000  # a folder of neighbouring slices has millions; these are enough to say so


@dataclass(frozen=True)
class Pair:
    """Two pictures, by their places, first < second, and the correlation of their detail.

    is_equal: whether their files are the same byte for byte.
    """

    first: int
    second: int
    correlation: float
    is_equal: bool = False


def equal_groups(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Return the places of the pictures whose files are the same byte for byte, group by group, in their order."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(facts):
        groups.setdefault(one.sha256, []).append(place)
    return [places for places in groups.values() if len(places) > 1]


def near_duplicates(facts: Sequence[ImageFacts]) -> list[Pair]:
    """Return the pairs of pictures of different content that show the same, the most alike first.

    Of pictures with equal content the first stands for all. The search ends when MOST_PAIRS are found.
    """
    places = _first_of_each(facts)
    if len(places) < 2:
        return []
    coarse = np.stack([_unit(_squashed(facts[place].likeness)) for place in places])
    log_aspect = np.log([facts[place].shape_px[1] / facts[place].shape_px[0] for place in places])
    detail: dict[int, np.ndarray] = {}

    def detail_of(number: int) -> np.ndarray:
        if number not in detail:
            detail[number] = _unit(_detail(facts[places[number]].likeness.astype(np.float32)))
        return detail[number]

    pairs: list[Pair] = []
    for start in range(0, len(places), _BLOCK):
        stop = min(start + _BLOCK, len(places))
        alike = coarse[start:stop] @ coarse[start:].T >= COARSE
        alike &= np.abs(log_aspect[start:stop, None] - log_aspect[None, start:]) <= ASPECT_TOLERANCE
        for first, second in np.argwhere(np.triu(alike, 1)) + start:
            correlation = float(detail_of(int(first)) @ detail_of(int(second)))
            if correlation >= DETAIL:
                one, other = sorted((places[first], places[second]))
                pairs.append(Pair(one, other, correlation))
                if len(pairs) == MOST_PAIRS:
                    return _most_alike_first(pairs)
    return _most_alike_first(pairs)


def _most_alike_first(pairs: Sequence[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def _first_of_each(facts: Sequence[ImageFacts]) -> list[int]:
    first: dict[str, int] = {}
    for place, one in enumerate(facts):
        first.setdefault(one.sha256, place)
    return list(first.values())


def _squashed(likeness: np.ndarray) -> np.ndarray:
    size = LIKENESS_PX // _COARSE_PX
    return likeness.reshape(_COARSE_PX, size, _COARSE_PX, size).mean(axis=(1, 3))


def _detail(likeness: np.ndarray) -> np.ndarray:
    detail = likeness - ndimage.gaussian_filter(likeness, _LOCAL_MEAN_PX, mode="nearest")
    return detail if detail.std() >= _LEAST_DETAIL else np.zeros_like(detail)


def _unit(values: np.ndarray) -> np.ndarray:
    """Return the values as a vector of mean 0 and length 1, so that products are correlations; 0 where they are one."""
    centred = values.ravel() - values.mean()
    length = np.linalg.norm(centred)
    return centred / length if length > 0 else centred
