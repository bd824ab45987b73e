"""Requests to stop a run: signals from its first moment to its last, and a launcher that is gone.

Before the first step there is nothing to save, and a request acts at once. While weights are trained it waits for the
end of the step (`deferred`); what only measures, draws or exports is left at once (`at_once`). A second request ends
the run wherever it is, without another checkpoint.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from data.errors import Abandoned, Interrupted
from data.exits import PARENT_PID, PARENT_VARIABLE

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# what accelerate launch and torchrun set, and what our own scripts set for a run that they start
_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", PARENT_VARIABLE)
_SAME_REQUEST_S = 1.0  # `timeout` and job schedulers send a signal to a process and then to its group
_POLL_S = 0.5
_GRACE_S = 10.0  # for a main thread that does not come to its handler, as it waits in a library


class _Listener:
    """Notes requests, and says what the main thread is to do about them."""

    def __init__(self, at_end: Callable[[int], object]) -> None:
        self.requested = 0
        self.is_deferred = False
        self._at_end = at_end
        self._first_s: float | None = None
        self._previous: dict[int, object] = {}
        self._awake, self._wake = socket.socketpair()
        self._closed = False

    def open(self) -> None:
        for number in SIGNALS:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._previous[number] = signal.signal(number, self._receive)
        for end in (self._awake, self._wake):
            end.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="stops", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        self._closed = True
        signal.set_wakeup_fd(self._previous_fd)
        self.restore_handlers()
        with suppress(OSError):
            self._wake.send(b"\0")
        self._watcher.join()
        self._awake.close()
        self._wake.close()

    def restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _: types.FrameType | None) -> None:
        now = time.monotonic()
        if self._first_s is None:
            self.requested, self._first_s = number, now
            if not self.is_deferred:
                raise Interrupted(number)
        elif now - self._first_s >= _SAME_REQUEST_S:
            raise Abandoned(number)

    def _watch(self) -> None:
        """See signals even while the main thread waits in a library, and ask for a stop when the launcher is gone."""
        is_launched = not os.environ.keys().isdisjoint(_LAUNCHERS)
        first_s: float | None = None
        while not self._closed:
            readable, _, _ = select.select([self._awake], [], [], _POLL_S)
            seen = self._awake.recv(64) if readable else b""
            for number in seen:
                if number not in self._previous:
                    continue
                now = time.monotonic()
                if first_s is None:
                    first_s = now
                elif now - first_s >= _SAME_REQUEST_S:
                    self._end_if_stuck(number)
            if is_launched and first_s is None and os.getppid() != PARENT_PID:
                first_s = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)

    def _end_if_stuck(self, number: int) -> None:
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            if self._closed:
                return
            time.sleep(_POLL_S / 5)
        with suppress(Exception):
            self._at_end(number)
        os._exit(128 + number)


_active: _Listener | None = None


@contextmanager
def listening(at_end: Callable[[int], object] = lambda _: None) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP, and the end of a launcher, into requests to stop; inside another, do nothing.

    A request raises Interrupted in the main thread, unless it is `deferred`. Repetitions within a second are the same
    request; a later one raises Abandoned wherever the main thread is. at_end: called with the signal before the
    process is ended where that does not help within 10 s, as the main thread waits in a library. Other threads than the
    main one cannot listen.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    listener = _Listener(at_end)
    listener.open()
    _active = listener
    try:
        yield
    finally:
        _active = None
        listener.close()


def requested() -> int:
    """Return the signal by which the run is asked to stop, 0 where it is not."""
    return 0 if _active is None else _active.requested


@contextmanager
def deferred() -> Iterator[None]:
    """Only note a first request inside; whoever trains asks `requested` between two steps."""
    with _deferring(True):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """Leave what is inside with Interrupted at a request, be it deferred around it, and one that was made before."""
    with _deferring(False):
        if requested():
            raise Interrupted(requested())
        yield


@contextmanager
def _deferring(is_deferred: bool) -> Iterator[None]:
    listener = _active
    if listener is None:
        yield
        return
    before, listener.is_deferred = listener.is_deferred, is_deferred
    try:
        yield
    finally:
        listener.is_deferred = before


def outlive(_: int = 0) -> None:
    """Leave signals to the process that trains, which needs its workers' images for the step that it is at.

    A terminal, a launcher and a job scheduler send them to every process. A worker ends when its parent does.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """Have a forked process take signals as before the run, and tell its parent of none."""
    global _active
    if _active is not None:
        signal.set_wakeup_fd(-1)
        _active.restore_handlers()
        _active = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
