"""Stacks that cannot be memory-mapped, decoded once into uncompressed .npy files that can.

An entry is found by the content of the files it was decoded from, so that a changed file is never served with old
voxels, and ends with a checksum of its own. An entry may be removed at any time: it is made again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.environment import cache_folder
from data.progress import Progress
from data.tif.layout import by
from data.tif.stacks import Stack, memory_budget_bytes
from data.volume_specs import VolumeError

_FORMAT = b"1"  # changes whenever the same files give other entries
_BLOCK = 1 << 22  # bytes that are read or written at a time
_ABANDONED_SECONDS = 3600  # since the last byte was written
_CHECKSUM = 4  # bytes of CRC-32 behind the array; numpy does not look behind it


def decoded(stack: Stack) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the voxels of a stack (Z, Y, X), native byte order, not writeable, and what to say about where they are.

    They are memory-mapped from the cache, decoded into it where that has not been done, or decoded into memory where
    the cache cannot be written. Raises VolumeError for files that are damaged, change meanwhile, or fit nowhere.
    """
    before = _states(stack)
    path = cache_folder() / "volumes" / f"{_content_key(stack)}.npy"
    voxels = _open_entry(path, stack)
    if voxels is not None:
        return voxels, ()
    try:
        _write_entry(path, stack, before)
    except OSError as error:
        return _in_memory(stack, before, f"the cache {path.parent} cannot be written ({error.strerror})")
    voxels = _open_entry(path, stack)
    if voxels is None:
        return _in_memory(stack, before, f"the cache {path.parent} does not give back what was written to it")
    return voxels, (f"decoded once, {stack.nbytes / 2**20:,.0f} MiB, into {path}",)


def _states(stack: Stack) -> list[tuple[int, int, int]]:
    """Return what changes when a file is written to or replaced."""
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in map(os.stat, stack.files)]


def _content_key(stack: Stack) -> str:
    """Return hexadecimal digits that depend on every byte of the files and on their order, not on their names."""
    digest = hashlib.blake2b(_FORMAT, digest_size=16)
    for file in stack.files:
        digest.update(b"%d." % file.stat().st_size)
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, size: int | None = None) -> Iterator[bytes]:
    """Yield the content of a file, or its first bytes, without ever holding the whole of it."""
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            yield block
            left -= len(block)


def _header(stack: Stack) -> bytes:
    """Return the beginning of the .npy file of a stack."""
    content = io.BytesIO()
    native = stack.dtype.newbyteorder("=")
    described = {"descr": np.lib.format.dtype_to_descr(native), "fortran_order": False, "shape": stack.shape}
    np.lib.format.write_array_header_1_0(content, described)
    return content.getvalue()


def _open_entry(path: Path, stack: Stack) -> np.ndarray | None:
    """Return the voxels of an entry, memory-mapped, or None where it is missing or not what was written."""
    header = _header(stack)
    size = len(header) + stack.nbytes
    try:
        if path.stat().st_size != size + _CHECKSUM:
            return None
        checksum, first = 0, b""
        for block in _blocks(path, size):
            first = first or block[: len(header)]
            checksum = zlib.crc32(block, checksum)
        with path.open("rb") as file:
            file.seek(size)
            written = file.read()
        if first != header or written != checksum.to_bytes(_CHECKSUM, "little"):
            return None
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except OSError:
        return None


def _write_entry(path: Path, stack: Stack, before: list[tuple[int, int, int]]) -> None:
    """Decode a stack into its entry, which appears whole or not at all. Raises OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    if shutil.disk_usage(path.parent).free < stack.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    # a memory map over a disk that fills up would end the process; written bytes raise an error
    try:
        with temporary.open("xb") as file:
            header = _header(stack)
            file.write(header)
            checksum = zlib.crc32(header)
            for plane in _slices(stack, before):
                content = plane.tobytes()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
            file.write(checksum.to_bytes(_CHECKSUM, "little"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left behind."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def _slices(stack: Stack, before: list[tuple[int, int, int]]) -> Iterator[np.ndarray]:
    """Yield the slices of a stack, with progress, and refuse files that changed or held another number of slices."""
    native, count = stack.dtype.newbyteorder("="), 0
    what = f"decoding {stack.path.name}"
    for plane in Progress(stack.slices(), desc=what, total=stack.shape[0], unit="slice", delay=1):
        if plane.shape != stack.shape[1:] or plane.dtype.newbyteorder("=") != native:
            raise VolumeError(str(stack.path), f"slice {count} is {by(plane.shape)} {plane.dtype}; copy it again")
        count += 1
        yield plane.astype(native, copy=False)
    if count != stack.shape[0] or _states(stack) != before:
        raise VolumeError(str(stack.path), "changed while it was read; start again when it is complete")


def _in_memory(stack: Stack, before: list[tuple[int, int, int]], reason: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the voxels of a stack in memory, and that they are there for want of a cache."""
    budget = memory_budget_bytes()
    size = f"{stack.nbytes / 2**30:.2f} GiB"
    if stack.nbytes > budget:
        raise VolumeError(
            str(stack.path),
            f"takes {size} when decoded, and {reason}, and at most {budget / 2**30:.2f} GiB may go into memory (half "
            "of this machine's). Set FILROUGE_CACHE to a folder with room, or save the volume uncompressed",
        )
    voxels = np.empty(stack.shape, stack.dtype.newbyteorder("="))
    for index, plane in enumerate(_slices(stack, before)):
        voxels[index] = plane
    voxels.flags.writeable = False
    return voxels, (f"decoded into memory, {size}: {reason}. It is decoded anew each time; FILROUGE_CACHE names "
                    "another folder for the cache",)  # fmt: skip
