"""The words under an image: state and plane of a composite's slice, and now and then no words at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from data.randomness import generator
from data.volume_specs import PLANES

STATE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "dry": "sf_dry",
        "compacted": "sf_dry sf_compacted",  # a compacted fabric is still a dry one
        "injected": "sf_injected",
    }
)
STATES = tuple(STATE_WORDS)


def cell_caption(state: str, plane: str) -> str:
    """Return the words for a slice of one state and plane, as "sf_dry sf_compacted sf_warp"."""
    assert state in STATES, f"state {state!r} is none of {STATES}"
    assert plane in PLANES, f"plane {plane!r} is none of {PLANES}"
    return f"{STATE_WORDS[state]} sf_{plane}"


def with_article(phrase: str) -> str:
    """Write "an" for "a" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase)


def is_dropped(*, proportion: float, seed: int, position: int) -> bool:
    """Return whether the caption is left out at a position of a run: at a proportion (0 to 1) of the positions.

    A model that sometimes sees no words keeps its unconditional prediction, which classifier-free guidance needs
    (Ho and Salimans 2022, arXiv:2207.12598, algorithm 1).
    """
    return bool(generator(seed, "caption-dropout", position).random() < proportion)


def dropped(caption: str, *, proportion: float, seed: int, position: int) -> str:
    """Return the caption, or "" where it is left out (see `is_dropped`)."""
    return "" if is_dropped(proportion=proportion, seed=seed, position=position) else caption
