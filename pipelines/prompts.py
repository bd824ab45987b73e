"""Prompts and seeds as a user writes them."""

from __future__ import annotations

import re
from pathlib import Path

from data.errors import SettingsError
from data.texts import says_nothing

LARGEST_SEED = 2**63 - 1
MOST_SEEDS = 10_000
MOST_BYTES = 1 << 24  # of a file of prompts


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a text file: one in each line, blank lines and lines that begin with # left out.

    Raises SettingsError for a file that is missing, not UTF-8, too large, or without a prompt.
    """
    expected = "a text file with one prompt in each line"
    try:
        if path.exists() and not path.is_file():
            raise SettingsError(str(path), f"is no file. Expected {expected}.")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(str(path), f"byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    except OSError as error:
        raise SettingsError(str(path), f"{error.strerror}. Expected {expected}.") from None
    if len(content) > MOST_BYTES:
        raise SettingsError(str(path), f"has more than {MOST_BYTES:,} bytes, expected {expected}. Split it.")
    if "\0" in text:
        raise SettingsError(str(path), f"holds NUL bytes; expected {expected}.")
    lines = (line.strip() for line in re.split("[\r\n]+", text))
    prompts = [line for line in lines if not says_nothing(line) and not line.startswith("#")]
    if not prompts:
        raise SettingsError(str(path), "holds no prompt. Write one prompt in each line.")
    return prompts


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a list such as "0-7" or "3,5,10-12", each once, in the order given.

    Raises SettingsError for anything else.
    """
    seeds: dict[int, None] = {}
    num_listed = 0
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        num_listed += max(0, last - first + 1)
        if not 0 <= last - first < MOST_SEEDS or last > LARGEST_SEED or num_listed > MOST_SEEDS:
            raise SettingsError(
                "--seeds",
                f"found {part.strip()!r}, expected numbers and ranges, at most {MOST_SEEDS} in all, such as 0-7,12.",
            )
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def file_stem(index: int, prompt: str) -> str:
    """Return a file name for a prompt that is safe on any disk: its number, and what of its letters can be kept."""
    kept = re.sub(r"[^A-Za-z0-9]+", "_", prompt).strip("_")[:40]
    return f"{index:03d}-{kept}" if kept else f"{index:03d}"
