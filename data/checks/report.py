"""What a check has to say, in parts that the terminal, the page and the JSON file can show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.faults import Fault


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; numeric columns stand right-aligned."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    num_left_out: int = 0  # rows that are not shown

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers, with thousands marked, signs and percents."""
        cells = [row[column] for row in self.rows if row[column] not in ("", "-")]
        return bool(cells) and all(cell[:1] in "+-0123456789" for cell in cells)


@dataclass(frozen=True)
class Mark:
    """A value that a chart points out, along its x axis (or along its y axis where across is set)."""

    value: float
    label: str
    across: bool = False


@dataclass(frozen=True)
class Chart:
    """A histogram (bars: heights of equal bins of x_range) or a curve (bars False: values at equal steps of x_range).

    y_range: None for 0 to the highest value.
    """

    title: str
    values: tuple[float, ...]
    x_range: tuple[float, float]
    x_label: str
    y_label: str
    bars: bool = True
    y_range: tuple[float, float] | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A small picture as a data: URI, and the words under it."""

    uri: str
    words: str
    size_px: tuple[int, int]  # (row, column)


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong together under a label; their words are shown where they are captioned."""

    label: str
    pictures: tuple[Picture, ...]
    captioned: bool = False


@dataclass(frozen=True)
class Section:
    """One subject of the page. notes: sentences; brief: what of it the terminal shows."""

    title: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    galleries: tuple[Gallery, ...] = ()


@dataclass(frozen=True)
class Report:
    """The whole of a check.

    subject: what was checked. verdict: one sentence. faults: what training refuses; warnings: what it does not, and
    should be looked at. skipped: what would be left out, where that was asked for. overview: (name, value) of the most
    important figures. ignored: files that are no part of the data. numbers: all figures, as JSON can hold them.
    """

    subject: str
    verdict: str
    refused: bool
    overview: Sequence[tuple[str, str]]
    faults: Sequence[Fault] = ()
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()
    ignored: Sequence[str] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[Fault] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what check.json holds."""
        return {
            "subject": self.subject,
            "verdict": self.verdict,
            "refused": self.refused,
            "faults": [{"where": fault.where, "reason": fault.reason} for fault in self.faults],
            "skipped": [{"where": fault.where, "reason": fault.reason} for fault in self.skipped],
            "warnings": list(self.warnings),
            "ignored": list(self.ignored),
            **self.numbers,
        }


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 image", "5,000 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
