"""Valid files with damage in them, as strategies of hypothesis."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
TIF_TAGS = (254, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 339)


@dataclass(frozen=True)
class Damaged:
    """A file with damage. name: of the valid file it was made from. how: what was done to it, in order."""

    name: str
    content: bytes
    how: tuple[str, ...]

    @property
    def is_cut_only(self) -> bool:
        """Whether nothing is wrong but that the end is missing."""
        return set(self.how) <= {"cut"}

    def __repr__(self) -> str:
        return f"Damaged({self.name!r}, {len(self.content)} bytes, {', '.join(self.how)})"


def damaged(files: Mapping[str, bytes], *, is_tif: bool = False) -> st.SearchStrategy[Damaged]:
    """Return a strategy that takes one of the files and damages it once to four times."""
    return _damaged(files, _BINARY + (_TIF if is_tif else ()))


def damaged_text(files: Mapping[str, bytes], fragments: Sequence[str]) -> st.SearchStrategy[Damaged]:
    """Return a strategy that damages text: bytes and lines of it, and fragments put between."""

    def insert(draw: st.DrawFn, content: bytearray) -> None:
        place = _place(draw, content)
        content[place:place] = draw(st.sampled_from(fragments)).encode("utf-8", "surrogatepass")

    def lines(draw: st.DrawFn, content: bytearray) -> None:
        parts = bytes(content).splitlines(keepends=True)
        if parts:
            first, second = draw(st.integers(0, len(parts) - 1)), draw(st.integers(0, len(parts) - 1))
            parts.insert(first, parts[second] * draw(st.sampled_from([1, 2, 50])))
        content[:] = b"".join(parts)

    return _damaged(files, (*_BINARY, ("insert", insert), ("insert", insert), ("lines", lines)))


@st.composite
def _damaged(draw: st.DrawFn, files: Mapping[str, bytes], ways: Sequence[tuple[str, _Way]]) -> Damaged:
    name = draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    chosen = draw(st.lists(st.integers(0, len(ways) - 1), min_size=1, max_size=4))
    for number in chosen:
        ways[number][1](draw, content)
    return Damaged(name, bytes(content), tuple(ways[number][0] for number in chosen))


def _place(draw: st.DrawFn, content: bytearray) -> int:
    return min(len(content), int(draw(st.floats(0, 1)) * (len(content) + 1)))


def _cut(draw: st.DrawFn, content: bytearray) -> None:
    del content[_place(draw, content) :]


def _cut_near_the_end(draw: st.DrawFn, content: bytearray) -> None:
    del content[max(0, len(content) - draw(st.integers(0, 40))) :]


def _flip(draw: st.DrawFn, content: bytearray) -> None:
    if content:
        place = min(len(content) - 1, _place(draw, content))
        content[place] ^= draw(st.integers(1, 255))


def _zero(draw: st.DrawFn, content: bytearray) -> None:
    place, length = _place(draw, content), draw(st.integers(1, 64))
    content[place : place + length] = bytes(len(content[place : place + length]))


def _insert(draw: st.DrawFn, content: bytearray) -> None:
    place = _place(draw, content)
    content[place:place] = draw(st.binary(max_size=32))


def _repeat(draw: st.DrawFn, content: bytearray) -> None:
    place, length = _place(draw, content), draw(st.integers(1, 256))
    content[place:place] = content[place : place + length]


def _number(draw: st.DrawFn, content: bytearray) -> None:
    place, size = _place(draw, content), draw(st.sampled_from("HIQ"))
    order = draw(st.sampled_from("<>"))
    value = draw(st.sampled_from(NUMBERS)) & (2 ** (8 * struct.calcsize(size)) - 1)
    packed = struct.pack(order + size, value)
    content[place : place + len(packed)] = packed[: len(content[place : place + len(packed)])]


def _tag(draw: st.DrawFn, content: bytearray) -> None:
    """Change type, count or value of a tag of a tif, wherever its code is found."""
    code = draw(st.sampled_from(TIF_TAGS))
    order = ">" if content[:2] == b"MM" else "<"
    packed, places, start = struct.pack(f"{order}H", code), [], 0
    while (found := bytes(content).find(packed, start)) >= 0 and len(places) < 64:
        places.append(found)
        start = found + 1
    if places:
        place = draw(st.sampled_from(places)) + draw(st.sampled_from([2, 4, 8]))
        value = struct.pack(f"{order}I", draw(st.sampled_from(NUMBERS)) & 0xFFFFFFFF)[: 2 if place % 4 == 2 else 4]
        content[place : place + len(value)] = value[: len(content[place : place + len(value)])]


_Way = Callable[[st.DrawFn, bytearray], None]
_BINARY: tuple[tuple[str, _Way], ...] = (
    ("cut", _cut),
    ("cut", _cut_near_the_end),
    ("flip", _flip),
    ("zero", _zero),
    ("insert", _insert),
    ("repeat", _repeat),
    ("number", _number),
)
_TIF: tuple[tuple[str, _Way], ...] = (("tag", _tag), ("tag", _tag))
