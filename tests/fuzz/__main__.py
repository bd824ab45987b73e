"""Fuzz the readers of files for a time, with other cases at each call: damaged files, odd captions, hostile YAML.

python -m tests.fuzz --minutes 10 --target volumes

What makes a reader raise anything but its own refusal, give wrong data, take more than 512 MiB, or work for longer than
20 s is shown, made as small as hypothesis can, and kept in --output_dir. Ends with code 1 where anything was found.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fuzz.rounds import run_round
from tests.fuzz.targets import TARGETS, Target

MOST_SECONDS = 20  # of one case
MOST_GROWTH_KIB = 512 << 10
ROUND = 200  # cases between two looks at the clock


class _Late(BaseException):
    """A case that takes too long; no reader takes it for a damaged file."""


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise _Late(f"worked for more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all", help="what is fuzzed (default: all)")
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long each target is (default: 1)")
    parser.add_argument("--seed", type=int, default=None, help="of the first round (default: the time)")
    parser.add_argument("--output_dir", type=Path, default=Path("fuzz-found"), help="where found cases are kept")
    arguments = parser.parse_args()
    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    first = int(time.time()) if arguments.seed is None else arguments.seed
    found = sum(_fuzz(name, TARGETS[name], arguments.minutes, first, arguments.output_dir) for name in names)
    return 1 if found else 0


def _fuzz(name: str, target: Target, minutes: float, first: int, output_dir: Path) -> int:
    end, number, num_cases, seen = time.monotonic() + 60 * minutes, first, 0, set[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def look(case: Any) -> None:
            nonlocal num_cases
            num_cases += 1
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with _in_time():
                target.look(case, folder)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < MOST_GROWTH_KIB, f"took {grown >> 10} MiB more"

        while time.monotonic() < end:
            try:
                run_round(target.cases(), look, seed=number, num_cases=ROUND)
            except (Exception, _Late) as error:  # anything is a finding
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {where.filename}:{where.lineno}"
                if kind not in seen:
                    seen.add(kind)
                    kept = output_dir / f"{name}-{number}"
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    print(f"{name}: round {number}: {kind}: {error}\n  kept in {kept}", flush=True)
                    for note in getattr(error, "__notes__", []):
                        print(f"  {note}", flush=True)
            number += 1
    print(f"{name}: {num_cases:,} cases in {number - first} rounds, {len(seen)} kinds of faults", flush=True)
    return len(seen)


if __name__ == "__main__":
    sys.exit(main())
