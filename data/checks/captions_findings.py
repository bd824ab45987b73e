"""What the words of the images are: how long, how many tokens, which words, and who has none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.checks.report import Chart, Mark, Section, Table, counted
from data.errors import SettingsError

TOKEN_LIMIT = 77  # of CLIP's text encoder, with the tokens for start and end; what is over is cut off
_NUM_WORDS = 20
_NUM_LONG = 10
_BINS = 24


@dataclass(frozen=True)
class Words:
    """A section on captions, the sentences that belong at the top of the page, and the figures."""

    section: Section
    warnings: tuple[str, ...]
    numbers: dict[str, Any]


def token_counts(captions: Sequence[str], tokenizer: Path) -> list[int]:
    """Return how many tokens each caption is, with those for start and end.

    tokenizer: a folder with tokenizer.json, or that file. Raises SettingsError where it cannot be read.
    """
    from tokenizers import Tokenizer

    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        loaded = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            "--tokenizer",
            f"{file} cannot be read: {reason}. Give the folder of a base model that holds tokenizer.json.",
        ) from error
    loaded.no_truncation()
    loaded.no_padding()
    return [len(encoding.ids) for encoding in loaded.encode_batch(list(captions))]


def find_words(names: Sequence[str], captions: Sequence[str], tokenizer: Path, *, needs_prompt: bool = False) -> Words:
    """Return what the captions of the images are like. names, captions: of each image; "" for no caption.

    needs_prompt: whether training asks for a prompt, as there is no caption.
    """
    told = [(name, caption) for name, caption in zip(names, captions, strict=True) if caption]
    without = [name for name, caption in zip(names, captions, strict=True) if not caption]
    distinct = dict.fromkeys(caption for _, caption in told)
    tokens = dict(zip(distinct, token_counts(list(distinct), tokenizer), strict=True))
    lengths, counts = [len(caption) for _, caption in told], [tokens[caption] for _, caption in told]
    over = sorted(
        ((tokens[caption], name, caption) for name, caption in told if tokens[caption] > TOKEN_LIMIT), reverse=True
    )
    frequent = Counter(word for _, caption in told for word in re.findall(r"[\w'-]+", caption.casefold()))
    numbers = {
        "num_distinct": len(distinct),
        "num_without": len(without),
        "without": without,
        "num_over_limit": len(over),
        "token_limit": TOKEN_LIMIT,
        "characters": _spread(lengths),
        "tokens": _spread(counts),
        "frequent_words": dict(frequent.most_common(_NUM_WORDS)),
    }
    notes = [f"{counted(len(distinct), 'distinct caption')} under {counted(len(told), 'image')}."]
    notes += _samples(distinct)
    tables = [_words_table(frequent, len(told)), *_long_table(over)] if told else []
    charts = _charts(lengths, counts) if told else []
    section = Section("Captions", tuple(notes), tuple(tables), tuple(charts))
    return Words(section, tuple(_warnings(over, needs_prompt=needs_prompt)), numbers)


def _warnings(over: Sequence[tuple[int, str, str]], *, needs_prompt: bool) -> list[str]:
    warnings = []
    if needs_prompt:
        warnings.append("No image has a caption: training asks for --instance_prompt, one prompt for all.")
    if over:
        warnings.append(too_long([(name, number) for number, name, _ in over]))
    return warnings


def too_long(found: Sequence[tuple[str, int]], limit: int = TOKEN_LIMIT) -> str:
    """Return that captions are longer than a text encoder reads. found: image and tokens of each."""
    names = ", ".join(f"{name} ({number})" for name, number in found[:10])
    more = f" and {len(found) - 10:,} more" if len(found) > 10 else ""
    return (
        f"{counted(len(found), 'caption')} {'is' if len(found) == 1 else 'are'} over {limit} tokens, and the words "
        f"after that are not read: {names}{more}."
    )


def _samples(distinct: Collection[str]) -> list[str]:
    if not distinct or len(distinct) > 12:
        return []
    return ["They are: " + ", ".join(f"“{_brief(caption)}”" for caption in distinct) + "."]


def _words_table(frequent: Counter[str], num_captions: int) -> Table:
    rows = [(word, f"{number:,}", f"{number / num_captions:.2f}") for word, number in frequent.most_common(_NUM_WORDS)]
    left_out = max(0, len(frequent) - _NUM_WORDS)
    return Table(("word", "times", "per caption"), tuple(rows), "Most frequent words", left_out)


def _long_table(over: Sequence[tuple[int, str, str]]) -> list[Table]:
    if not over:
        return []
    rows = [(name, f"{number:,}", _brief(caption)) for number, name, caption in over[:_NUM_LONG]]
    title = f"Captions over {TOKEN_LIMIT} tokens"
    return [Table(("image", "tokens", "caption"), tuple(rows), title, len(over) - len(rows))]


def _charts(lengths: Sequence[int], counts: Sequence[int]) -> list[Chart]:
    limit = (Mark(TOKEN_LIMIT, f"{TOKEN_LIMIT} tokens"),) if max(counts) > TOKEN_LIMIT * 0.6 else ()
    return [
        whole_number_histogram("Length of captions", lengths, "characters", "images"),
        whole_number_histogram("Tokens of captions", counts, "tokens, with start and end", "images", limit),
    ]


def whole_number_histogram(
    title: str, values: Sequence[int], x_label: str, y_label: str, marks: tuple[Mark, ...] = ()
) -> Chart:
    """Return a histogram whose bins hold whole numbers of values, from the least to the largest."""
    low, high = min(values), max(values) + 1
    step = max(1, -(-(high - low) // _BINS))
    edges = np.arange(low, high + step, step)
    heights, _ = np.histogram(values, edges)
    return Chart(title, tuple(map(float, heights)), (float(low), float(edges[-1])), x_label, y_label, marks=marks)


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _brief(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"
