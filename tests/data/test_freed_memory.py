"""Memory that was freed is used again, rather than given back and asked for anew."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from data.freed_memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]
FAULTS = """
import resource
from data.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such setting")
def test_pages_are_found_once() -> None:
    command = [sys.executable, "-c", FAULTS]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    before, kept = map(int, found)
    pages = 2**26 / 4096
    assert before > 19 * pages
    assert kept < 4 * pages


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


RETURNED = """
from data.freed_memory import keep_freed_memory, returning_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1])

keep_freed_memory()
b"x" * 2**26
before = resident()
with returning_freed_memory():
    inside = resident()
    b"x" * 2**26
    freed = resident()
b"x" * 2**26
print(before, inside, freed, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such setting")
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_freed_memory_goes_back_for_a_while_and_is_kept_again_afterwards() -> None:
    command = [sys.executable, "-c", RETURNED]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    kept, returned, freed, kept_again = map(int, found)
    pages = 2**26 / 4096
    assert kept - returned > 0.9 * pages
    assert freed - returned < 0.1 * pages
    assert kept_again - returned > 0.9 * pages
