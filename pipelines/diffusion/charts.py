"""Charts of this package: lines over a common axis, drawn without a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(size_inches: tuple[float, float]) -> Figure:
    """Return an empty figure that belongs to no global state."""
    figure = Figure(figsize=size_inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a file that stands there is replaced as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def draw_lines(
    axes: Any,
    lines: Mapping[Any, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_y: bool = False,
) -> None:
    """Draw named lines (x values, y values) into axes, with what they are called."""
    for name, (along, values) in lines.items():
        axes.plot(along, values, label=name, linewidth=1.5)
    axes.set(title=title, xlabel=x, ylabel=y)
    if log_y:
        axes.set_yscale("log")
    if len(lines) > 1:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
