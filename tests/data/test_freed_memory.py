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
