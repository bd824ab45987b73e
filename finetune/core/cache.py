"""What the frozen parts of a model made of pixels and captions, kept by content.

The key of an entry is what went in, so shuffling, crops and flips cannot mix entries up. A part that encodes its
inputs one by one gives the same bits with and without the cache. Only frozen parts may be wrapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from finetune.core.objective import Conditioner, Space


class _Store:
    """A dictionary that takes no more entries once it holds `limit_bytes` of tensors."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._entries: dict[object, tuple[Tensor, ...]] = {}

    def get(self, key: object, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if key in self._entries:
            return self._entries[key]
        entry = make()
        size = sum(tensor.nbytes for tensor in entry)
        if self._held_bytes + size <= self._limit_bytes:
            self._entries[key] = entry
            self._held_bytes += size
        return entry

    def __len__(self) -> int:
        return len(self._entries)


class CachedSpace:
    """A frozen space whose moments are computed once for each distinct image."""

    def __init__(self, space: Space, limit_bytes: int = 2 << 30) -> None:
        self.uncached, self._store = space, _Store(limit_bytes)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        means, stds = zip(*(self._moments_of(image) for image in pixels), strict=True)
        return torch.cat(means), torch.cat(stds)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return self.uncached.sample(mean, std, eps)

    def _moments_of(self, image: Tensor) -> tuple[Tensor, ...]:
        key = (tuple(image.shape), hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=16).digest())
        return self._store.get(key, lambda: self._frozen_moments(image))

    @torch.no_grad()
    def _frozen_moments(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.uncached.moments(image[None])


class CachedConditioner:
    """A frozen conditioner that reads each distinct caption once."""

    def __init__(self, conditioner: Conditioner, limit_bytes: int = 1 << 30) -> None:
        self.uncached, self._store = conditioner, _Store(limit_bytes)

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        return torch.cat([self._store.get(caption, partial(self._read, caption))[0] for caption in captions])

    @torch.no_grad()
    def _read(self, caption: str) -> tuple[Tensor, ...]:
        return (self.uncached.encode((caption,)),)
