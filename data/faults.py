"""What is wrong with data, and where: said the same way by a check, a dry run and training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError

_NAME = re.compile(r"[./\[]")


@dataclass(frozen=True)
class Fault:
    """Something that training refuses: where, and what is wrong with it and what to do.

    of_one: it is about one picture or its words, which could be left out; False for what leaves a layout in doubt.
    """

    where: str
    reason: str
    of_one: bool = False

    def sentence(self, folder: str) -> str:
        """Return both in one sentence; the place is left out where it is the folder itself."""
        return self.reason if self.where == folder else f"{self.where}: {self.reason}"


def sentences(faults: Iterable[Fault], folder: str) -> list[str]:
    """Return each fault in a sentence, and none of them twice."""
    return list(dict.fromkeys(fault.sentence(folder) for fault in faults))


def faults_of(error: DataError, folder: Path | None = None) -> tuple[Fault, ...]:
    """Return the problems of an error; one that begins with a file's name stands there, the others at the error's.

    folder: names of files in it count from there.
    """
    faults = []
    for problem in error.problems:
        name, _, reason = problem.partition(": ")
        # a path, a file with its line, or a row as "train[4]"; not the beginning of a sentence
        where, told = (name, reason) if reason and _NAME.search(name) and ", " not in name else (error.where, problem)
        if folder is not None and Path(where).is_relative_to(folder) and Path(where) != folder:
            where = Path(where).relative_to(folder).as_posix()
        faults.append(Fault(where, told))
    return tuple(faults)
