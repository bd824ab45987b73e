"""One function over many items in several processes: a process that dies costs its item, never the run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 16  # items that travel together
_MOST_PROCESSES = 16


def usable_processes() -> int:
    """Return how many processes may work at once: the cores of this machine, shared with the run's other processes."""
    num_sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # as torch's launcher sets it
    # cores that this process may use, where the system says so
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(_MOST_PROCESSES, max(1, num_cores // num_sharing))


def parallel_map(
    function: Callable[[T], R], items: Iterable[T], *, num_processes: int
) -> Iterator[tuple[int, R | None]]:
    """Yield (place, what a function of a module gives for the item there), as they are done; None where it died.

    items: taken as they are needed. With one process, or where none can be started, everything is done in this one.
    What the function raises is raised here.
    """
    numbered = enumerate(items)
    while num_processes > 1:
        suspects = yield from _in_pool(function, numbered, num_processes)
        if not suspects:
            return
        started = yield from _one_by_one(function, suspects)
        num_processes = num_processes if started else 1
    yield from ((place, function(item)) for place, item in numbered)


def _in_pool(
    function: Callable[[T], R], numbered: Iterator[tuple[int, T]], num_processes: int
) -> Generator[tuple[int, R | None], None, list[tuple[int, T]]]:
    """Yield what is done, until all is or a process dies; return the items that were under way then."""
    pending: dict[Future[list[R]], list[tuple[int, T]]] = {}
    chunk: list[tuple[int, T]] = []
    pool = _pool(num_processes)
    try:
        while True:
            while len(pending) < 2 * num_processes and (chunk := list(islice(numbered, _CHUNK))):
                pending[pool.submit(_each, function, [item for _, item in chunk])] = chunk
                chunk = []
            if not pending:
                return []
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                done = future.result()
                yield from zip([place for place, _ in pending.pop(future)], done, strict=True)
    except BrokenProcessPool:
        return [pair for one in (*pending.values(), chunk) for pair in one]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _one_by_one(
    function: Callable[[T], R], suspects: Iterable[tuple[int, T]]
) -> Generator[tuple[int, R | None], None, bool]:
    """Yield what each item gives, None for one that ends its process; return whether processes can be started."""
    pool: ProcessPoolExecutor | None = None
    started = True
    try:
        for place, item in suspects:
            if pool is None and started:
                pool = _pool(1)
                started = _works(pool)
            if not started or pool is None:
                yield place, function(item)
                continue
            try:
                yield place, pool.submit(_each, function, [item]).result()[0]
            except BrokenProcessPool:
                yield place, None
                pool.shutdown(wait=False)
                pool = None
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
    return started


def _works(pool: ProcessPoolExecutor) -> bool:
    try:
        return pool.submit(int, 1).result() == 1
    except BrokenProcessPool:  # the main module is standard input, say, and cannot be imported again
        return False


def _pool(num_processes: int) -> ProcessPoolExecutor:
    # spawned, not forked: training has loaded torch by now, whose threads do not survive a fork
    return ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=_ignore_interrupt)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends the pool


def _each(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]
