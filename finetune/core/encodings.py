"""What the frozen parts of a model made of pixels and captions: made once, for all runs and processes.

An entry's name is a hash of all that decides it: the content, the weights and config of the part, the precision, and
what the arithmetic ran on. So shuffling, crops and flips cannot mix entries up, and an entry is never taken for what it
is not. On disk each is a file of its own that appears whole or not at all, and is verified when it is read.

Pictures are encoded in groups of a fixed number, a function of their size alone, and a group that is not full is filled
up: in a batch of another size the last bits of an image would be others, and a result would depend on what the store
held. In a batch of one size an image gets the same bits beside any others (tests/finetune/test_encodings.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from data.environment import cache_folder
from finetune.core.objective import Conditioner, Space
from pipelines.fingerprints import weights_fingerprint

LIMIT_VARIABLE = "FILROUGE_ENCODINGS_GIB"  # the largest size of the store on disk
FOLDER = "encodings"
_DEFAULT_LIMIT_GIB = 20.0
_MEMORY_LIMIT_BYTES = 2 << 30
_DIGEST_BYTES = 16
_GROUP_PX = 8 * 64 * 64  # pixels of a group: a larger one is no faster, and takes memory
_LARGEST_GROUP = 8

Entry = tuple[Tensor, ...]
Identity = Callable[[], str]
Awake = Callable[[], AbstractContextManager[None]]


class EncodingStore:
    """Entries in memory, up to a limit, and in files of a folder, from which the longest unused are removed.

    num_found, num_made: how many entries were read from the disk, where another run left them, and how many were made.
    """

    def __init__(self, folder: Path | None, *, limit_bytes: int, memory_limit_bytes: int = _MEMORY_LIMIT_BYTES) -> None:
        """folder: None keeps entries in memory alone. limit_bytes: of the folder."""
        self._folder, self._limit_bytes = folder, limit_bytes
        self._memory: dict[str, Entry] = {}
        self._memory_left, self._written_bytes = memory_limit_bytes, 0
        self.num_found, self.num_made = 0, 0

    def get(self, name: str) -> Entry | None:
        """Return an entry, or None where there is none or its file is damaged."""
        return self._memory.get(name) or self._read(name)

    def has(self, name: str) -> bool:
        """Return whether there is a sound entry; one on disk is read and kept in memory."""
        return name in self._memory or self._read(name) is not None

    def put(self, name: str, made: Entry) -> Entry:
        """Keep an entry, and return it as it is found later: on the CPU, and in one order of memory.

        A convolution may give other last bits for another order. A disk that is full or read-only keeps none, and the
        run goes on.
        """
        self.num_made += 1
        entry = tuple(tensor.cpu().contiguous(memory_format=torch.contiguous_format) for tensor in made)
        self._remember(name, entry)
        if self._folder is None:
            return entry
        payload = save({str(place): tensor for place, tensor in enumerate(entry)})
        path = self._path(name)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(_digest(payload) + payload)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            return entry
        self._written_bytes += len(payload)
        return entry

    def prune(self) -> None:
        """Remove the files that were not used for the longest time, down to the limit; those used last are kept."""
        if self._folder is None or not self._written_bytes:
            return
        self._written_bytes = 0
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*/*"):
            with suppress(OSError):  # another process may have removed it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self._limit_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            with suppress(OSError):
                path.unlink()
            excess -= size

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / name[:2] / name[2:]

    def _read(self, name: str) -> Entry | None:
        if self._folder is None:
            return None
        path = self._path(name)
        try:
            stored = path.read_bytes()
            payload = stored[_DIGEST_BYTES:]
            if _digest(payload) != stored[:_DIGEST_BYTES]:
                raise ValueError
            tensors = load(payload)
            os.utime(path)
        except (OSError, ValueError, SafetensorError):
            return None
        entry = tuple(tensors[str(place)] for place in range(len(tensors)))
        self._remember(name, entry)
        self.num_found += 1
        return entry

    def _remember(self, name: str, entry: Entry) -> None:
        size = sum(tensor.nbytes for tensor in entry)
        if name not in self._memory and size <= self._memory_left:
            self._memory[name] = entry
            self._memory_left -= size


def open_store() -> EncodingStore:
    """Return the store in the cache folder that all runs share."""
    limit = float(os.environ.get(LIMIT_VARIABLE, _DEFAULT_LIMIT_GIB))
    return EncodingStore(cache_folder() / FOLDER, limit_bytes=int(limit * 2**30))


def identity(part: nn.Module) -> str:
    """Return what decides a frozen part's results beside its input and the precision: weights, config, arithmetic.

    Another number of threads or another kind of processor sums in another order.
    """
    device = next(part.parameters()).device
    facts = [
        weights_fingerprint(part),
        json.dumps(_plain(part.config), sort_keys=True, default=str),
        str(next(part.parameters()).dtype),
        torch.__version__,
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}",
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
    ]
    return _digest("\n".join(facts).encode()).hex()


class EncodedSpace:
    """A frozen space whose moments are made once for each distinct image.

    part: gives what decides the moments beside the image, as `identity` does; asked once, before the first image.
    awake: has the space ready to encode inside.
    """

    def __init__(self, space: Space, store: EncodingStore, part: Identity = str, awake: Awake = nullcontext) -> None:
        self.store = store
        self.space, self._awake = space, awake
        self._part = cache(part)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        names = [self._name(image) for image in pixels]
        entries = {name: self.store.get(name) for name in names}
        missing = {name: image for name, image in zip(names, pixels, strict=True) if entries[name] is None}
        if missing:
            with self._awake():
                entries |= self._encode(missing)
        means, stds = zip(*(entries[name] or () for name in names), strict=True)
        return torch.cat(means).to(pixels.device), torch.cat(stds).to(pixels.device)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return self.space.sample(mean, std, eps)

    def ahead(self, images: Iterable[Tensor]) -> None:
        """Encode the images (3, H, W) that the store lacks."""
        waiting: dict[tuple[int, ...], dict[str, Tensor]] = {}
        with ExitStack() as stack:
            ready = False
            for image in images:
                name, group = self._name(image), waiting.setdefault(tuple(image.shape), {})
                if name in group or self.store.has(name):
                    continue
                if not ready:
                    stack.enter_context(self._awake())
                    ready = True
                group[name] = image
                if len(group) == group_size(image.shape):
                    self._encode(waiting.pop(tuple(image.shape)))
            for group in waiting.values():
                self._encode(group)

    def _name(self, image: Tensor) -> str:
        content = f"{self._part()} {tuple(image.shape)} ".encode() + image.cpu().numpy().tobytes()
        return _digest(content).hex()

    @torch.no_grad()
    def _encode(self, images: Mapping[str, Tensor]) -> dict[str, Entry]:
        """Encode images of one shape in groups of the one size that belongs to it, and keep the entries."""
        entries: dict[str, Entry] = {}
        size = group_size(next(iter(images.values())).shape) if images else 1
        for names in _groups(images, size):
            mean, std = self.space.moments(torch.stack([images[name] for name in _filled(names, size)]))
            for place, name in enumerate(names):
                entries[name] = self.store.put(name, (mean[place : place + 1], std[place : place + 1]))
        return entries


class EncodedConditioner:
    """A frozen conditioner that reads each distinct caption once. part, awake: as of EncodedSpace."""

    def __init__(
        self,
        conditioner: Conditioner,
        store: EncodingStore,
        part: Identity = str,
        awake: Awake = nullcontext,
        device: torch.device | str = "cpu",
    ) -> None:
        """device: where the states are wanted."""
        self.conditioner, self._store, self._awake = conditioner, store, awake
        self._part, self._device = cache(part), device

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        entries = {caption: self._store.get(self._name(caption)) for caption in dict.fromkeys(captions)}
        entries |= self._read([caption for caption, entry in entries.items() if entry is None])
        return torch.cat([(entries[caption] or ())[0] for caption in captions]).to(self._device)

    def ahead(self, captions: Iterable[str]) -> None:
        """Read the captions that the store lacks."""
        self._read([caption for caption in dict.fromkeys(captions) if not self._store.has(self._name(caption))])

    def _name(self, caption: str) -> str:
        # methods that train whole modules read captions under autocast, whose precision is not the module's
        lowered = [str(torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        return _digest(" ".join([self._part(), *lowered, caption]).encode()).hex()

    @torch.no_grad()
    def _read(self, captions: Sequence[str]) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        if not captions:
            return entries
        with self._awake():
            for group in _groups(captions, _LARGEST_GROUP):
                states = self.conditioner.encode(tuple(_filled(group, _LARGEST_GROUP)))
                for place, caption in enumerate(group):
                    entries[caption] = self._store.put(self._name(caption), (states[place : place + 1],))
        return entries


def group_size(shape: Sequence[int]) -> int:
    """Return how many images of a shape (3, H, W) are encoded together, always."""
    return max(1, min(_LARGEST_GROUP, _GROUP_PX // (shape[-2] * shape[-1])))


def _groups(names: Iterable[str], size: int) -> Iterator[list[str]]:
    listed = list(names)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]


def _filled(group: list[str], size: int) -> list[str]:
    return group + group[:1] * (size - len(group))


def _plain(config: Any) -> dict[str, Any]:
    facts: dict[str, Any] = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    return {key: value for key, value in facts.items() if key not in ("_name_or_path", "name_or_path")}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
