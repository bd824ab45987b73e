"""The batches of a run, read by the process that trains or by worker processes of its own."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from data.dataset import Sample
from data.errors import DataError, FilrougeError
from data.randomness import derive
from finetune.core.method import Batch, Method
from finetune.core.settings import LoopSettings
from finetune.core.stops import outlive

WORKER_TIMEOUT_S = 600  # in which a worker must have read the images of a micro-step
_Group = list[tuple[int, Sample]]
# torch's (2.13), which have no class of their own
_LOST_WORKER = re.compile(
    r"DataLoader (?:worker \(pid\(?s?\)? ?[0-9, ]+\) (?:is killed by|exited)|timed out)", re.IGNORECASE
)


class Loader:
    """Gives the batches of some steps, one for each micro-step, each the share of this process.

    Raises DataError where a worker process dies or reads nothing for WORKER_TIMEOUT_S: torch then raises wherever the
    main thread is, so the work with the batches belongs inside the context.
    """

    def __init__(self, method: Method, settings: LoopSettings, accelerator: Accelerator, steps: range) -> None:
        self._positions = own_positions(settings, accelerator, steps)
        self._size, self._taken = settings.train_batch_size, 0
        shares = [self._positions[k : k + self._size] for k in range(0, len(self._positions), self._size)]
        num_workers = settings.dataloader_num_workers
        self._others = set(multiprocessing.active_children())
        self._iterator: Iterator[Batch | FilrougeError] | None = iter(
            DataLoader(
                _Positions(method),
                batch_sampler=shares,
                collate_fn=_collated,
                num_workers=num_workers,
                worker_init_fn=outlive,
                timeout=WORKER_TIMEOUT_S if num_workers else 0,
                # its base seed must not come from the global generator
                generator=torch.Generator().manual_seed(derive(settings.seed, "loader")),
            )
        )

    def __enter__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except (OSError, EOFError, RuntimeError) as error:
            with _undisturbed():
                ended = self._how_a_worker_ended()
            if ended is not None:  # the error is of the connection over which it handed a batch
                raise self._lost(ended) from error
            raise
        if isinstance(batch, FilrougeError):
            raise batch
        self._taken += self._size
        return batch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found: str | None = None
        with _undisturbed():
            if isinstance(error, RuntimeError) and _LOST_WORKER.search(str(error)):
                found = self._how_a_worker_ended() or str(error).partition("\n")[0].strip()
            self._end_workers()
        if found is not None:
            raise self._lost(found) from error

    def _how_a_worker_ended(self) -> str | None:
        """Return how one of the worker processes ended, or None where all of them are alive."""
        workers = getattr(self._iterator, "_workers", ())
        for process in workers:
            process.join(timeout=1 / len(workers))  # its connection closes a moment before it is gone
            if process.exitcode is not None and process.exitcode < 0:
                return f"killed by signal: {signal.strsignal(-process.exitcode)}"
            if process.exitcode is not None:
                return f"exited unexpectedly with code {process.exitcode}"
        return None

    def _lost(self, found: str) -> DataError:
        asked = self._positions[self._taken : self._taken + self._size]
        where = f"positions {asked[0]} to {asked[-1]} of the run" if asked else "the end of the run"
        return DataError(
            "--dataloader_num_workers",
            f"a process that reads images has ended or answers no more ({found}); the images were wanted for {where}. "
            "It may have been killed for its memory: try fewer of them, or 0, which reads in the training process.",
        )

    def _end_workers(self) -> None:
        """End the worker processes: in peace, or by force where they do not answer, as they take no signals."""
        iterator: Any = self._iterator
        self._iterator = None
        try:
            if hasattr(iterator, "_shutdown_workers"):  # a traceback may hold the iterator, so that it would live on
                iterator._shutdown_workers()
        finally:
            for worker in set(multiprocessing.active_children()) - self._others:
                worker.kill()
                worker.join(timeout=10)  # killed is not yet gone


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep away torch's handler, which raises whenever a worker ends, while workers are looked at and ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Positions(Dataset[_Group | FilrougeError]):
    """The images of a run as a torch dataset: position -> keyed samples, the prior's beside the image.

    What is wrong with an image is given instead of raised: torch would make another exception of it in a worker.
    """

    def __init__(self, method: Method) -> None:
        self._images, self._prior = method.dataset, method.prior

    def __getitem__(self, position: int) -> _Group | FilrougeError:
        try:
            group = [(position, self._images.sample(position))]
            if self._prior is not None:
                group.append((-1 - position, self._prior.sample(position)))
        except FilrougeError as error:
            return error
        return group


def _collated(groups: Sequence[_Group | FilrougeError]) -> Batch | FilrougeError:
    sound = [group for group in groups if not isinstance(group, FilrougeError)]
    wrong = [group for group in groups if isinstance(group, FilrougeError)]
    return wrong[0] if wrong else Batch.collate(sound)


def own_positions(settings: LoopSettings, accelerator: Accelerator, steps: range) -> list[int]:
    """Return the positions of the run that this process takes in some steps, in their order."""
    size, ranks = settings.train_batch_size, accelerator.num_processes
    micro_steps = range(
        steps.start * settings.gradient_accumulation_steps, steps.stop * settings.gradient_accumulation_steps
    )
    shares = [(micro_step * ranks + accelerator.process_index) * size for micro_step in micro_steps]
    return [position for share in shares for position in range(share, share + size)]
