"""A check as one HTML page that needs nothing beside itself, and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.checks.report import Chart, Report

TEMPLATE = "page.html.j2"
_WIDTH, _HEIGHT = 300.0, 168.0  # of a chart, in the units of its drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 10.0, 14.0, 34.0  # of the area of the data
_MOST_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A chart in the coordinates of its drawing: bars (x, y, width, height), or the points of a line."""

    chart: Chart
    bars: tuple[tuple[float, float, float, float], ...]
    line: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_marks: tuple[Tick, ...]
    y_marks: tuple[Tick, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM


def write_page(report: Report, folder: Path) -> Path:
    """Write check.html and check.json, each as a whole, and return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "check.json", json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
    page = folder / "check.html"
    _write(page, render(report))
    return page


def render(report: Report) -> str:
    """Return the page. Every text of the report is escaped; nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plot"] = plot
    return environment.get_template(TEMPLATE).render(report=report)


def plot(chart: Chart) -> Plot:
    """Return where the parts of a chart lie in its drawing."""
    low_x, high_x = chart.x_range
    low_y, high_y = chart.y_range or (0.0, max(chart.values, default=0.0) or 1.0)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def x(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low_x) / span_x, 2)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low_y) / span_y, 2)

    step = span_x / max(1, len(chart.values) - (0 if chart.bars else 1))
    starts = [low_x + number * step for number in range(len(chart.values))]
    bars: list[tuple[float, float, float, float]] = []
    line = ""
    if chart.bars:
        for start, value in zip(starts, chart.values, strict=True):
            if value > 0:
                left, top = x(start), y(value)
                bars.append((left, top, round(x(start + step) - left, 2), round(y(low_y) - top, 2)))
    else:
        line = " ".join(f"{x(start)},{y(value)}" for start, value in zip(starts, chart.values, strict=True))
    inside = [mark for mark in chart.marks if not mark.across and low_x <= mark.value <= high_x]
    return Plot(
        chart,
        tuple(bars),
        line,
        tuple(Tick(x(value), _number(value)) for value in _ticks(low_x, high_x, whole=_counts([low_x, high_x]))),
        tuple(Tick(y(value), _number(value)) for value in _ticks(low_y, high_y, whole=_counts(chart.values))),
        tuple(Tick(x(mark.value), mark.label) for mark in inside),
        tuple(Tick(y(mark.value), mark.label) for mark in chart.marks if mark.across and low_y <= mark.value <= high_y),
    )


def _counts(values: Sequence[float]) -> bool:
    """Return whether values count something: whole numbers that are not all 0 or 1."""
    return all(value == int(value) for value in values) and max(values, default=0) > 1


def _ticks(low: float, high: float, *, whole: bool) -> Sequence[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(_MOST_TICKS, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(value) for value in found if low - slack <= value <= high + slack]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}" if abs(value) > 1e-12 else "0"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # names of files may hold bytes that are no text: they are shown as such
    temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    temporary.replace(path)
