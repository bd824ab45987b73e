"""A check in the terminal: plain, aligned, short; the page has the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from data.checks.report import Report, Table
from data.faults import Fault
from data.plain_text import plain

WIDTH = 100
_MOST_FAULTS = 20
_MOST_ROWS = 12
_MOST_IGNORED = 5


def terminal_page(report: Report) -> str:
    """Return the check as lines of at most WIDTH characters, but for names that are longer."""
    parts = [f"{plain(report.subject)}\n{_wrapped(plain(report.verdict))}"]
    width = max(len(name) for name, _ in report.overview)
    parts.append(
        "\n".join(_wrapped(f"  {name:<{width}}  {plain(value)}", width + 4) for name, value in report.overview)
    )
    table = next((table for section in report.sections[:1] for table in section.tables), None)
    if table is not None and any(table.columns) and len(table.rows) > 1:
        parts.append(_table(table))
    if report.warnings:
        parts.append("Look at\n" + "\n".join(_wrapped(f"  {plain(warning)}", 4) for warning in report.warnings))
    if report.faults:
        parts.append(_faults("Training refuses", report.faults))
    if report.skipped:
        parts.append(_faults("Left out, as --skip_bad asks", report.skipped))
    if report.ignored:
        parts.append(_ignored(report.ignored))
    return "\n\n".join(parts)


def _wrapped(text: str, indent: int = 0) -> str:
    """Return a text in lines of WIDTH; the first begins as the text does, the others with an indent."""
    start = text[: len(text) - len(text.lstrip())]
    lines = wrap(
        text.strip(),
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def _table(table: Table) -> str:
    """Return a table with two blanks between its columns, numbers at the right, and how many rows are left out."""
    rows = [[plain(cell) for cell in cells] for cells in (table.columns, *table.rows[:_MOST_ROWS])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [table.is_numeric(place) for place in range(len(table.columns))]
    lines = [_line(cells, widths, right) for cells in rows]
    left_out = max(0, len(table.rows) - _MOST_ROWS) + table.num_left_out
    return "\n".join([*lines, *([f"  and {left_out:,} more"] if left_out else [])])


def _line(cells: Sequence[str], widths: Iterable[int], right: Iterable[bool]) -> str:
    aligned = (
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right, strict=True)
    )
    return ("  " + "  ".join(aligned)).rstrip()


def _faults(title: str, faults: Sequence[Fault]) -> str:
    lines = [title]
    for fault in faults[:_MOST_FAULTS]:
        lines.append(f"  {plain(fault.where)}")
        lines.append(_wrapped(f"    {plain(fault.reason)}", 4))
    if len(faults) > _MOST_FAULTS:
        lines.append(f"  and {len(faults) - _MOST_FAULTS:,} more")
    return "\n".join(lines)


def _ignored(names: Sequence[str]) -> str:
    shown = ", ".join(plain(name) for name in names[:_MOST_IGNORED])
    more = f" and {len(names) - _MOST_IGNORED:,} more" if len(names) > _MOST_IGNORED else ""
    return _wrapped(f"No part of the data ({len(names):,}): {shown}{more}", 2)
