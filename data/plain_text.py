"""Words of the data in what people read: on a terminal, and in Markdown. None of them can act as more than words."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARKUP = re.compile(r"[\\`*\[\]<>|&~#$!]|(?<!\w)_|_(?!\w)")


def plain(text: object) -> str:
    """Return a text on one line, with a line feed and all else that would steer a terminal spelt out, as \\n."""
    return "".join(letter if letter.isprintable() else _spelt(letter) for letter in str(text))


def plain_lines(lines: Iterable[object]) -> str:
    """Return each of some texts on one line of its own."""
    return "\n".join(map(plain, lines))


def plain_message(text: object) -> str:
    """Return a text with its line feeds and nothing else that would steer a terminal."""
    return "\n".join(map(plain, str(text).split("\n")))


def code_span(text: object) -> str:
    """Return a text as Markdown shows it as code, within a line (CommonMark 0.31, 6.1)."""
    content = plain(text)
    fence = "`" * (_longest_run(content) + 1)
    pad = " " if not content.strip() or content[0] in " `" or content[-1] in " `" else ""
    return f"{fence}{pad}{content}{pad}{fence}"


def code_block(text: str, language: str) -> str:
    """Return lines as Markdown shows them as code, whatever is in them (CommonMark 0.31, 4.5)."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def escaped(text: object) -> str:
    """Return a text on one line that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\g<0>", plain(text))


def _spelt(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
