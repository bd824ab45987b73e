"""The errors that are a user's to mend: each says where, what was found, what was expected, and what to do.

A script prints them without a traceback and ends with their exit code (`finetune/core/cli.py`); anything else that is
raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_SHOWN = 100  # problems of one place that a message shows; it counts all


class FilrougeError(Exception):
    """All the problems found in one place, reported together.

    where: the file, folder or option in which they were found. problems: one sentence or two each.
    """

    exit_code: int = 1

    def __init__(self, where: str, *problems: str) -> None:
        assert problems, "an error names at least one problem"
        self.where, self.problems = where, problems
        super().__init__(where, *problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.where}: {self.problems[0]}"
        rest = len(self.problems) - MOST_SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        return "\n  ".join([f"{self.where}: {len(self.problems)} problems", *self.problems[:MOST_SHOWN], *more])


class SettingsError(FilrougeError):
    """An option, a settings file or a concept that cannot be used."""

    exit_code = 2


class DataError(FilrougeError):
    """Images, volumes or captions that training must not use."""

    exit_code = 3


class OutputError(FilrougeError):
    """An output folder, checkpoint or lock that stands in the way, or a checkpoint that cannot be resumed."""

    exit_code = 4


class NonFiniteError(FilrougeError):
    """A loss, gradient or weight that is not finite."""

    exit_code = 5


class OutOfMemoryError(FilrougeError):
    """Memory that did not suffice for the settings."""

    exit_code = 6


class DiskError(FilrougeError):
    """A disk that is full or does not answer."""

    exit_code = 7


class UploadError(FilrougeError):
    """A result that is saved, and that the Hub did not take."""

    exit_code = 8


class ProcessError(FilrougeError):
    """Another process of the same run that ended, or did not answer in time."""

    exit_code = 9


class Stopped(FilrougeError):
    """A run that was told to stop (130 after SIGINT, 143 after SIGTERM) and has saved what it had."""

    def __init__(self, where: str, *problems: str, exit_code: int) -> None:
        super().__init__(where, *problems)
        self.exit_code = exit_code


class Interrupted(KeyboardInterrupt):
    """A request to stop, raised where it may act at once. number: of the signal.

    No `except Exception` takes it for a fault.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Abandoned(KeyboardInterrupt):
    """A second request to stop, raised wherever the run is: what it was doing must not be saved."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean a, b?" with the known names most like this one, or the whole list where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else f" Known: {', '.join(known)}."
