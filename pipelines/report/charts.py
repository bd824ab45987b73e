"""Charts as SVG text, drawn here so that the page needs no library: a trade-off, and curves along checkpoints.

Colours come from the page's style sheet by class (run-0, run-1, …), so that they follow light, dark and print. Titles
are texts, or Markup of what may stand in a text of SVG. alt: attributes that name a chart, in place of its titles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

NUM_COLOURS = 8  # of the style sheet; beyond, a run's shape tells it from the one of the same colour
LEVELS = ((0.0, "as the base"), (1.0, "as real images"))  # of a skill
_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 18, 50


@dataclass(frozen=True)
class Value:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A model in a chart. run: number of its run, for its colour and shape. is_chosen: gets a ring.

    picture: number of an image in the page, which its script shows beside the point; None for none. alt: attributes
    that name the point, in place of its label and numbers.
    """

    label: str
    run: int
    x: Value
    y: Value
    is_chosen: bool = False
    picture: int | None = None
    alt: Markup | None = None


@dataclass(frozen=True)
class Series:
    """The course of one run: (x, value) by x. marks: where along x a dotted line stands, with its words.

    run: None for real images, which are grey and dashed.
    """

    label: str
    run: int | None
    points: tuple[tuple[float, Value], ...]
    marks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Strip:
    """Single values in a row of their own. run: as of a Series. mean: with its interval; None shows none."""

    label: str
    run: int | None
    values: tuple[float, ...]
    mean: Value | None = None


@dataclass(frozen=True)
class _Frame:
    """Where the numbers of a chart lie on the paper."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + min(max(share, -0.02), 1.02) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.height - _BOTTOM - min(max(share, -0.02), 1.02) * (self.height - _TOP - _BOTTOM)


def trade_off(
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
    levels: Sequence[tuple[float, str]] = LEVELS,
    alt: Markup | None = None,
) -> Markup:
    """Return a scatter of models with error bars; the states of one run are joined in the order given."""
    frame = _frame([p.x for p in points], [p.y for p in points], _WIDTH, _HEIGHT, y_holds=(0.0, 1.0), x_holds=(0.0,))
    parts = [_axes(frame, x_title, y_title)]
    for value, words in levels:
        parts.append(_level(frame, value, words))
    for run in sorted({point.run for point in points}):
        own = [point for point in points if point.run == run]
        path = " ".join(f"{frame.x(p.x.value):.1f},{frame.y(p.y.value):.1f}" for p in own)
        parts.append(f'<polyline class="path run-{run % NUM_COLOURS}" points="{path}"/>')
        for point in own:
            parts.append(_errors(frame, point))
        for point in own:
            parts.append(_marker(frame, point))
    said = alt or _alt(f"{y_title} against {x_title} for {len(points)} models")
    return _svg(parts, _WIDTH, _HEIGHT, said, role="group" if any(p.picture is not None for p in points) else "img")


def curves(
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    holds: tuple[float, ...] = (),
    has_dots: bool = True,
    alt: Markup | None = None,
) -> Markup:
    """Return lines with bands of their intervals.

    holds: values that the vertical axis must show. has_dots: whether each value gets a dot that tells it.
    """
    width, height = 420, 260
    xs = [Value(x, x, x) for each in series for x, _ in each.points]
    frame = _frame(xs, [v for each in series for _, v in each.points], width, height, y_holds=holds, x_holds=(0.0,))
    parts = [_axes(frame, x_title, y_title)]
    for each in series:
        colour = "run-real" if each.run is None else f"run-{each.run % NUM_COLOURS}"
        upper = [f"{frame.x(x):.1f},{frame.y(v.high):.1f}" for x, v in each.points]
        lower = [f"{frame.x(x):.1f},{frame.y(v.low):.1f}" for x, v in reversed(each.points)]
        parts.append(f'<polygon class="band {colour}" points="{" ".join(upper + lower)}"/>')
        line = " ".join(f"{frame.x(x):.1f},{frame.y(v.value):.1f}" for x, v in each.points)
        parts.append(f'<polyline class="line {colour}" points="{line}"/>')
        for x, value in each.points if has_dots else ():
            label = f"{each.label}, {x:g}: {value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
            parts.append(
                f'<circle class="dot {colour}" cx="{frame.x(x):.1f}" cy="{frame.y(value.value):.1f}" r="3">'
                f"<title>{escape(label)}</title></circle>"
            )
        for x, words in each.marks:
            parts.append(
                f'<line class="mark {colour}" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{_TOP}" '
                f'y2="{height - _BOTTOM}"><title>{escape(words)}</title></line>'
            )
    return _svg(parts, width, height, alt or _alt(f"{y_title} along {x_title}"))


def strips(rows: Sequence[Strip], *, x_title: str, holds: tuple[float, ...] = (), alt: Markup | None = None) -> Markup:
    """Return a row of strokes for each set of values, on one axis. holds: values where a line stands in all rows."""
    row_height = 54
    width, height = 420, _TOP + len(rows) * row_height + _BOTTOM
    xs = [Value(x, x, x) for row in rows for x in row.values]
    frame = _Frame(*_range(xs, holds), 0, 1, width, height)
    bottom = height - _BOTTOM
    parts = [_x_axis(frame, x_title)]
    for x in holds:
        parts.append(f'<line class="level" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{_TOP}" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        top = _TOP + number * row_height
        colour = "run-real" if row.run is None else f"run-{row.run % NUM_COLOURS}"
        strokes = "".join(f"M{frame.x(x):.1f} {top + 20}v16" for x in row.values)
        parts.append(f'<text class="tick" x="6" y="{top + 12}">{escape(row.label)}</text>')
        parts.append(f'<path class="strokes {colour}" d="{strokes}"/>')
        if row.mean is not None:
            x, low, high = (frame.x(each) for each in (row.mean.value, row.mean.low, row.mean.high))
            parts.append(
                f'<line class="span {colour}" x1="{low:.1f}" x2="{high:.1f}" y1="{top + 44}" y2="{top + 44}"/>'
            )
            parts.append(f'<circle class="dot {colour}" cx="{x:.1f}" cy="{top + 44}" r="4"/>')
    return _svg(parts, width, height, alt or _alt(x_title))


def interval_bar(value: Value, *, low: float, high: float, neutral: float | None) -> Markup:
    """Return a small bar of an interval between two ends, with a tick at the neutral value."""
    width = 120

    def place(number: float) -> float:
        return 2 + min(max((number - low) / (high - low), 0.0), 1.0) * (width - 4)

    parts = [f'<line class="rail" x1="2" x2="{width - 2}" y1="8" y2="8"/>']
    if neutral is not None:
        parts.append(f'<line class="neutral" x1="{place(neutral):.1f}" x2="{place(neutral):.1f}" y1="2" y2="14"/>')
    parts.append(f'<line class="span" x1="{place(value.low):.1f}" x2="{place(value.high):.1f}" y1="8" y2="8"/>')
    parts.append(f'<circle class="here" cx="{place(value.value):.1f}" cy="8" r="3.5"/>')
    head = f'<svg class="interval" viewBox="0 0 {width} 16" preserveAspectRatio="xMinYMid" aria-hidden="true">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _frame(
    xs: Sequence[Value],
    ys: Sequence[Value],
    width: int,
    height: int,
    *,
    x_holds: tuple[float, ...] = (),
    y_holds: tuple[float, ...] = (),
) -> _Frame:
    """Return a frame that shows all values, and intervals as far as they do not flatten everything else."""
    return _Frame(*_range(xs, x_holds), *_range(ys, y_holds), width, height)


def _range(values: Sequence[Value], holds: tuple[float, ...]) -> tuple[float, float]:
    centre = [value.value for value in values] + list(holds)
    low, high = min(centre), max(centre)
    reach = (high - low) or abs(high) or 1.0
    low = max(min([low, *(value.low for value in values)]), low - reach)
    high = min(max([high, *(value.high for value in values)]), high + reach)
    pad = 0.06 * ((high - low) or 1.0)
    return low - pad, high + pad


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between two ends: steps of 1, 2 or 5 times a power of ten, about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw - 1e-12 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(frame: _Frame, x_title: str, y_title: str) -> str:
    bottom, right = frame.height - _BOTTOM, frame.width - _RIGHT
    parts = [_x_axis(frame, x_title)]
    for y in ticks(frame.y_low, frame.y_high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{frame.y(y):.1f}" y2="{frame.y(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{frame.y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    parts.append(
        f'<text class="title" transform="translate(14 {(_TOP + bottom) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text>'
    )
    return "".join(parts)


def _x_axis(frame: _Frame, x_title: str) -> str:
    bottom, right = frame.height - _BOTTOM, frame.width - _RIGHT
    parts = []
    for x in ticks(frame.x_low, frame.x_high, 6 if frame.width > 500 else 4):
        parts.append(f'<line class="grid" x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{frame.x(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="title" x="{middle:.0f}" y="{frame.height - 12}" text-anchor="middle">{escape(x_title)}</text>'
    )
    return "".join(parts)


def _level(frame: _Frame, value: float, words: str) -> str:
    y = frame.y(value)
    return (
        f'<line class="level" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{frame.width - _RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(words)}</text>'
    )


def _errors(frame: _Frame, point: Point) -> str:
    x, y, colour = frame.x(point.x.value), frame.y(point.y.value), f"run-{point.run % NUM_COLOURS}"
    return (
        f'<line class="error {colour}" x1="{frame.x(point.x.low):.1f}" x2="{frame.x(point.x.high):.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line class="error {colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(point.y.low):.1f}" '
        f'y2="{frame.y(point.y.high):.1f}"/>'
    )


def _marker(frame: _Frame, point: Point) -> str:
    x, y, colour = frame.x(point.x.value), frame.y(point.y.value), f"run-{point.run % NUM_COLOURS}"
    shapes: tuple[Callable[[], str], ...] = (
        lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        lambda: f'<rect x="{x - 5.5:.1f}" y="{y - 5.5:.1f}" width="11" height="11"/>',
        lambda: f'<path d="M{x:.1f} {y - 7:.1f}l7 12h-14z"/>',
        lambda: f'<path d="M{x:.1f} {y - 7.5:.1f}l7.5 7.5l-7.5 7.5l-7.5 -7.5z"/>',
        lambda: f'<path d="M{x:.1f} {y + 7:.1f}l7 -12h-14z"/>',
        lambda: f'<path d="M{x - 6:.1f} {y - 2:.1f}h4v-4h4v4h4v4h-4v4h-4v-4h-4z"/>',
        lambda: f'<path d="M{x - 3:.1f} {y - 6:.1f}h6l4 6l-4 6h-6l-4 -6z"/>',
        lambda: f'<path d="M{x - 7:.1f} {y - 3:.1f}h14v6h-14z"/>',
        lambda: f'<path d="M{x - 3:.1f} {y - 7:.1f}h6v14h-6z"/>',
    )
    ring = f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="11"/>' if point.is_chosen else ""
    said = (
        f"{point.label}: {point.y.value:.2f} [{point.y.low:.2f}, {point.y.high:.2f}] against "
        f"{point.x.value:.3g} [{point.x.low:.3g}, {point.x.high:.3g}]"
    )
    shape = shapes[point.run % len(shapes)]()
    if point.picture is None:
        return f'<g class="marker {colour}">{shape}{ring}<title>{escape(said)}</title></g>'
    return (
        f'<g class="marker {colour}" tabindex="0" role="img" {point.alt or _alt(said)} '
        f'data-peek="{point.picture}">{shape}{ring}</g>'
    )


def _alt(words: str) -> Markup:
    return Markup('aria-label="{}"').format(words)


def _svg(parts: Sequence[str], width: int, height: int, alt: Markup, role: str = "img") -> Markup:
    # every text in the parts has been escaped where it was put in
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="{role}" {alt}>'
    return Markup(head + "".join(parts) + "</svg>")
