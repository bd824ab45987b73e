"""The course of a run as one picture: loss, validation loss, gradient norm and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.signal import savgol_filter

from data.errors import OutputError
from finetune.core import files
from pipelines import run_records

# Okabe and Ito's blue and vermilion differ for every kind of colour vision
BLUE, VERMILION, BLACK = "#0072B2", "#D55E00", "#000000"
TOTAL = "validation_loss"  # the names of its ranges of timesteps go on with _t<first>_<last>
RATE = "lr"  # the names of further parts' rates go on with _<part>
_FEWEST_SMOOTHED = 10  # fewer points are seen one by one
_SMOOTHED_SHARE = 0.1  # of all points, averaged into one


@dataclass(frozen=True)
class Series:
    """The values of one name in metrics.jsonl, at the steps where it was logged."""

    steps: np.ndarray
    values: np.ndarray


def draw_curves(metrics_file: Path, target: Path) -> None:
    """Write the picture of a run's metrics.jsonl as a PNG; a reader finds the old one or this one.

    Raises OutputError as `read_metrics` does.
    """
    picture = BytesIO()
    figure(read_metrics(metrics_file), title=metrics_file.absolute().parent.name).savefig(picture, format="png")
    files.write_bytes_atomic(target, picture.getvalue())


def read_metrics(metrics_file: Path) -> dict[str, Series]:
    """Return each name's series in the order of the file, without the step.

    Raises OutputError for a file that holds nothing, and as `run_records.read_metrics` does.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for record in run_records.read_metrics(metrics_file):
        for name, value in record.items():
            points.setdefault(name, []).append((record["step"], value))
    points.pop("step", None)
    if not points:
        raise OutputError(str(metrics_file), "holds no logged step yet. Draw it once --logging_steps steps are done.")
    return {name: Series(*np.array(pairs, dtype=np.float64).T) for name, pairs in points.items()}


def figure(metrics: dict[str, Series], title: str = "") -> Figure:
    """Return the picture: a panel for each of loss, validation loss, gradient norm, learning rate, and other names.

    Lines carry the name of their series as their id (gid), so that they can be found.
    """
    validation = [name for name in metrics if name.startswith(TOTAL)]
    rates = [name for name in metrics if name == RATE or name.startswith(f"{RATE}_")]
    panels = {"loss": ["loss"], TOTAL: validation, "grad_norm": ["grad_norm"], RATE: rates}
    known = {name for names in panels.values() for name in names}
    shown = [panel for panel, names in panels.items() if any(name in metrics for name in names)]
    shown += [name for name in metrics if name not in known]
    num_rows = (len(shown) + 1) // 2
    whole = Figure(figsize=(13, 3.6 * num_rows), dpi=110, layout="constrained")
    FigureCanvasAgg(whole)
    whole.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)  # a folder may be called $x$
    grid = whole.add_gridspec(num_rows, 2)
    last_step = max(float(series.steps.max()) for series in metrics.values())
    odd = len(shown) % 2  # the first panel has a row for itself then
    for place, panel in enumerate(shown):
        row, column = divmod(place + odd, 2)
        axes = whole.add_subplot(grid[0, :] if odd and place == 0 else grid[row, column])
        match panel:
            case "loss":
                _noisy(axes, "loss", metrics["loss"])
                axes.set(title="training loss", ylabel="mean squared error")
            case "grad_norm":
                _noisy(axes, "grad_norm", metrics["grad_norm"])
                axes.set(title="gradient norm before clipping", ylabel="norm (log scale)")
                _logarithmic(axes, [metrics["grad_norm"]])
            case "lr":
                _rates(axes, {name: metrics[name] for name in rates})
            case "validation_loss":
                _validation(axes, {name: metrics[name] for name in validation})
            case other:
                _plain(axes, other, metrics[other])
                axes.set(title=other.replace("_", " "), ylabel="value as logged")
        axes.set_xlabel("optimiser step")
        axes.set_xlim(0, max(last_step * 1.02, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, which="major", color="0.85", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return whole


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a tenth of the points (3 at least), centred; at both ends a line fitted to as many.

    values: finite. Savitzky and Golay 1964, of the first degree: a straight slope stays as it is, to its ends.
    """
    window = max(3, round(len(values) * _SMOOTHED_SHARE) // 2 * 2 + 1)
    return np.asarray(savgol_filter(values, window, polyorder=1))


def _noisy(axes: Axes, name: str, series: Series) -> None:
    finite = np.isfinite(series.values)  # under fp16 the norm of a step that was skipped is infinite
    if finite.sum() < _FEWEST_SMOOTHED:
        axes.plot(series.steps, series.values, color=BLUE, gid=name, marker="o", markersize=4)
        return
    axes.plot(series.steps, series.values, color=BLUE, alpha=0.3, linewidth=0.8, gid=name, label="logged")
    steps, course = series.steps[finite], smoothed(series.values[finite])
    axes.plot(steps, course, color=BLUE, linewidth=2, gid=f"{name} smoothed", label="smoothed")
    axes.legend(frameon=False, loc="upper right")


def _plain(axes: Axes, name: str, series: Series) -> None:
    axes.plot(series.steps, series.values, color=BLUE, gid=name, **_marked(series))


def _rates(axes: Axes, metrics: dict[str, Series]) -> None:
    for colour, (name, series) in zip(cycle((BLUE, VERMILION, BLACK)), metrics.items(), strict=False):
        axes.plot(series.steps, series.values, color=colour, label=name, gid=name, **_marked(series))
    highest = max(float(np.nanmax(series.values, initial=0.0)) for series in metrics.values())
    axes.set(title="learning rate", ylabel="rate (per optimiser step)", ylim=(0.0, 1.1 * highest or 1.0))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if len(metrics) > 1:
        axes.legend(frameon=False)


def _validation(axes: Axes, metrics: dict[str, Series]) -> None:
    bins = [name for name in metrics if name != TOTAL]
    for place, name in enumerate(bins):
        colour = colormaps["viridis"](0.85 * place / max(1, len(bins) - 1))  # its bright end is lost on white
        first, _, last = name.removeprefix(f"{TOTAL}_t").partition("_")
        series = metrics[name]
        axes.plot(
            series.steps, series.values, color=colour, label=f"t = {first} to {last}", gid=name, **_marked(series)
        )
    if TOTAL in metrics:
        total = metrics[TOTAL]
        axes.plot(
            total.steps, total.values, color=BLACK, linewidth=2.2, label="all timesteps", gid=TOTAL, **_marked(total)
        )
        if np.isfinite(total.values).any():
            best = int(np.nanargmin(np.where(np.isfinite(total.values), total.values, np.nan)))
            step, value = total.steps[best], total.values[best]
            axes.plot(
                [step],
                [value],
                linestyle="none",
                marker="*",
                markersize=14,
                color=VERMILION,
                zorder=5,
                clip_on=False,
                gid="lowest",
                label=f"lowest: {value:.4g} at step {step:.0f}",
            )
    axes.set(title="validation loss, held-out images", ylabel="mean squared error (log scale)")
    _logarithmic(axes, list(metrics.values()))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")


def _marked(series: Series) -> dict[str, Any]:
    """Return the options that show single points where a line between them would be short or none."""
    return {"marker": "o", "markersize": 3.5} if len(series.values) < 3 * _FEWEST_SMOOTHED else {}


def _logarithmic(axes: Axes, series: Sequence[Series]) -> None:
    """Give an axis a logarithmic scale with plain numbers at 1, 2 and 5, where any value can stand on it."""
    values = np.concatenate([one.values for one in series])
    if not (values[np.isfinite(values)] > 0).any():
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
