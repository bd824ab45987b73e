"""Every random draw of a run, as a function of (seed, purpose, position).

Nothing in this project reads a global generator: a draw that is keyed by what it is for and where it stands can be
repeated in any process, in any order, by any number of workers, which is what makes a resumed run equal an
uninterrupted one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derive(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed that depends on the run's seed and on every part of the key.

    key: what the draw is for, then where it stands, as built-in int and str (the repr of other types may change
    between versions).
    """
    for part in (seed, *key):
        assert type(part) in (int, str), f"a key holds built-in int and str only, found {type(part).__name__}"
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return a numpy generator for one draw of a run."""
    import numpy as np  # here: settings are read before it is loaded

    return np.random.default_rng(derive(seed, *key))


def permuted_index(seed: int, position: int, num_items: int) -> int:
    """Return the item visited at a position of a run that goes through shuffled epochs.

    position: 0, 1, 2, ... over all epochs. Each epoch (num_items positions) is a permutation of its own.
    """
    epoch, offset = divmod(position, num_items)
    return int(_permutation(seed, epoch, num_items)[offset])


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, num_items: int) -> np.ndarray:
    key = (seed, epoch, num_items)
    if key not in _PERMUTATIONS:
        while len(_PERMUTATIONS) >= 4:  # a loader needs the epoch it is in and the next one
            _PERMUTATIONS.pop(next(iter(_PERMUTATIONS)))
        _PERMUTATIONS[key] = generator(seed, "order", epoch).permutation(num_items)
    return _PERMUTATIONS[key]
