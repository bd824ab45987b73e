"""What tells one network's weights, and one base model, from another.

The fingerprint of a base is text: a word for each part, "unet=<exact>.<rounded>". The exact hash is of every weight in
float32 and of everything else that decides what the part gives. The rounded one is of the weights in float16, so that
it is the same for a model and its half-precision variant.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from data.environment import cache_folder

FOLDER = "fingerprints"  # below the cache folder

_NUM_THREADS = min(4, os.cpu_count() or 1)
_NUM_DIGITS = 16
_PIECE = 1 << 20  # numbers that are rounded at a time: hashing takes no memory to speak of
_FORMAT = 1  # changes whenever the same files give other fingerprints
_SETTLED_SECONDS = 2.0  # the coarsest clock of a file system: a younger file may change without another time
_WORD = re.compile(r"(\w+)=([0-9a-f]{16})\.([0-9a-f]{16})")


class PartFingerprint(NamedTuple):
    """Hashes of a part of a base: of all that decides what it gives, and of its weights in float16 and its shape."""

    exact: str
    rounded: str


class FileState(NamedTuple):
    """What changes whenever a file is written to or replaced."""

    path: str
    device: int
    inode: int
    num_bytes: int
    written_ns: int
    changed_ns: int  # no program sets it: an older time of writing that is restored hides nothing


def weights_fingerprint(module: nn.Module) -> str:
    """Return a hash of a network's weights, the same wherever they are."""

    def digest(named: tuple[str, Tensor]) -> bytes:
        name, tensor = named
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        content = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        content.update(bits.numpy().data)
        return content.digest()

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        digests = pool.map(digest, sorted(module.state_dict().items()))
        return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def of_module(module: nn.Module, facts: Mapping[str, Any]) -> PartFingerprint:
    """Return the fingerprint of a network and of what its config says."""
    return _combined(module.state_dict().items(), facts)


def of_file(path: Path, facts: Mapping[str, Any]) -> PartFingerprint:
    """Return the fingerprint of the network whose weights a safetensors file holds, the same as of the network."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())

    def hashes(share: int) -> list[tuple[str, bytes, bytes]]:
        with safe_open(path, "pt") as file:  # one for each thread
            return [_hashes((name, file.get_tensor(name))) for name in names[share::_NUM_THREADS]]

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return _joined(chain.from_iterable(pool.map(hashes, range(_NUM_THREADS))), facts)


def of_facts(exact: object, rounded: object) -> PartFingerprint:
    """Return the fingerprint of a part without weights, of values that JSON can hold."""
    return PartFingerprint(_digits(_json(exact)), _digits(_json(rounded)))


def together(parts: Mapping[str, PartFingerprint]) -> str:
    """Return the fingerprint of a base from those of its parts."""
    return " ".join(f"{name}={part.exact}.{part.rounded}" for name, part in parts.items())


def differing_parts(told: object, found: str | None, *, exact: bool = False) -> tuple[str, ...]:
    """Return the names of the parts in which two bases differ.

    exact: whether the last bit counts, as for a run that goes on; else two are the same that differ by the precision of
    their files, or by the sampler, as for an adapter. Where one of them is unknown, none differ; what is no fingerprint
    differs in all parts.
    """
    if told is None or not found:
        return ()
    before, now = _parts(str(told)), _parts(found)
    if exact:
        return tuple(name for name in now if before.get(name) != now[name])
    return tuple(name for name in now if name not in before or before[name].rounded != now[name].rounded)


def file_states(paths: Iterable[Path]) -> tuple[FileState, ...]:
    """Return the states of files, which say without reading them whether they are still what they were."""
    found = []
    for path in paths:
        status = path.stat()
        times = status.st_mtime_ns, status.st_ctime_ns
        found.append(FileState(str(path.resolve()), status.st_dev, status.st_ino, status.st_size, *times))
    return tuple(found)


def remembered(
    states: tuple[FileState, ...], facts: Mapping[str, Any], make: Callable[[], PartFingerprint]
) -> PartFingerprint:
    """Return the fingerprint of files in certain states, made once and then kept in the cache folder.

    facts: what it is made of beside the files. A cache that cannot be read or written is left out.
    """
    path = cache_folder() / FOLDER / f"{_digits(_json([_FORMAT, states, facts]))}.json"
    kept = _kept(path)
    if kept is not None:
        return kept
    begun = time.time()
    made = make()
    if max(max(state.written_ns, state.changed_ns) for state in states) / 1e9 + _SETTLED_SECONDS < begun:
        _keep(path, made)
    return made


def _kept(path: Path) -> PartFingerprint | None:
    with suppress(OSError, ValueError, TypeError):
        made = PartFingerprint(**json.loads(path.read_bytes()))
        if all(isinstance(digits, str) and re.fullmatch("[0-9a-f]{16}", digits) for digits in made):
            return made
    return None


def _keep(path: Path, made: PartFingerprint) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(made._asdict()), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _combined(tensors: Iterable[tuple[str, Tensor]], facts: Mapping[str, Any]) -> PartFingerprint:
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return _joined(pool.map(_hashes, tensors), facts)


def _hashes(named: tuple[str, Tensor]) -> tuple[str, bytes, bytes]:
    name, tensor = named
    exact = tensor.detach().to("cpu", torch.float32).reshape(-1)
    content = [hashlib.sha256(f"{name} {tuple(tensor.shape)} ".encode()) for _ in range(2)]
    content[0].update(exact.numpy().data)
    for piece in exact.split(_PIECE):
        content[1].update(piece.to(torch.float16).numpy().data)
    return name, content[0].digest(), content[1].digest()


def _joined(hashes: Iterable[tuple[str, bytes, bytes]], facts: Mapping[str, Any]) -> PartFingerprint:
    told = _json(facts)
    exact, rounded = hashlib.sha256(told), hashlib.sha256(told)
    for _, one, other in sorted(hashes):
        exact.update(one)
        rounded.update(other)
    return PartFingerprint(exact.hexdigest()[:_NUM_DIGITS], rounded.hexdigest()[:_NUM_DIGITS])


def _parts(fingerprint: str) -> dict[str, PartFingerprint]:
    return {name: PartFingerprint(exact, rounded) for name, exact, rounded in _WORD.findall(fingerprint)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_NUM_DIGITS]
