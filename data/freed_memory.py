"""Freed memory: whether it stays with the process, so that the next batch finds it in place, or goes back at once."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_LARGEST_KEPT_BYTES = 2**30
_RETURNED_BYTES = 2**17  # of a block that the C library gives back at once by its own rule
# of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_limit_bytes = _RETURNED_BYTES


def keep_freed_memory() -> bool:
    """Keep up to a GiB that was freed for what is needed next, and return whether the C library can (glibc).

    Its own rule gives large blocks back to the system at once, which must then find and clear every page of every
    activation again: a seventh of the time of a small U-Net.
    """
    return _keep_up_to(_LARGEST_KEPT_BYTES)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Give back what was freed, and inside every large block as soon as it is freed, where the C library can."""
    before = _limit_bytes
    if _keep_up_to(_RETURNED_BYTES):
        return_freed_memory()
    try:
        yield
    finally:
        _keep_up_to(before)


def return_freed_memory() -> None:
    """Give back what was freed up to now, gaps between blocks in use too, where the C library can."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _keep_up_to(limit_bytes: int) -> bool:
    global _limit_bytes
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _limit_bytes = limit_bytes
    return all(mallopt(option, limit_bytes) == 1 for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))
