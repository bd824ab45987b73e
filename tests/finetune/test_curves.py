"""The picture of a run shows what its metrics.jsonl says, and copes with files as crashes leave them."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from data.errors import OutputError
from finetune.core import curves, validation
from finetune.core.curves import draw_curves, figure, read_metrics, smoothed

BINS = ["validation_loss_t0_499", "validation_loss_t500_999"]


def _entries(num_lines: int, *, validation: bool = True) -> list[dict[str, float]]:
    """Return lines of every tenth step, the validation loss on every fourth of them."""
    rng = np.random.default_rng(1)
    entries: list[dict[str, float]] = []
    for number in range(1, num_lines + 1):
        loss, norm = rng.uniform(0.1, 0.5, 2).tolist()
        entries.append({"step": 10 * number, "loss": loss, "grad_norm": norm, "lr": 1e-4 / number})
        if validation and number % 4 == 0:
            low, high = rng.uniform(0.1, 0.5, 2).tolist()
            entries[-1] |= {"validation_loss": (low + high) / 2, BINS[0]: low, BINS[1]: high}
    return entries


def _file(folder: Path, entries: list[dict[str, float]], ending: str = "") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + ending, encoding="utf-8")
    return path


def _lines(whole: Figure) -> dict[str, Line2D]:
    return {line.get_gid(): line for axes in whole.axes for line in axes.get_lines()}


def _axes_of(whole: Figure, name: str) -> Axes:
    (axes,) = [axes for axes in whole.axes if name in {line.get_gid() for line in axes.get_lines()}]
    return axes


def _points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def test_every_series_is_drawn_as_it_was_logged(tmp_path: Path) -> None:
    entries = _entries(40)
    lines = _lines(figure(read_metrics(_file(tmp_path, entries))))
    for name in ("loss", "grad_norm", "lr", "validation_loss", *BINS):
        assert _points(lines[name]) == [(entry["step"], entry[name]) for entry in entries if name in entry], name
    assert len(_points(lines["validation_loss"])) == 10
    losses = np.array([entry["loss"] for entry in entries])
    assert _points(lines["loss smoothed"]) == list(zip(range(10, 401, 10), smoothed(losses).tolist(), strict=True))


def test_the_lowest_validation_loss_is_marked(tmp_path: Path) -> None:
    entries = _entries(40)
    whole = figure(read_metrics(_file(tmp_path, entries)))
    value, step = min((entry["validation_loss"], entry["step"]) for entry in entries if "validation_loss" in entry)
    assert _points(_lines(whole)["lowest"]) == [(step, value)]
    legend = _axes_of(whole, "lowest").get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "t = 0 to 499",
        "t = 500 to 999",
        "all timesteps",
        f"lowest: {value:.4g} at step {step}",
    ]


def test_panels_say_what_they_show_on_which_scale(tmp_path: Path) -> None:
    whole = figure(read_metrics(_file(tmp_path, _entries(40))), title="a run")
    assert whole.get_suptitle() == "a run"
    assert [(axes.get_title(), axes.get_ylabel(), axes.get_yscale()) for axes in whole.axes] == [
        ("training loss", "mean squared error", "linear"),
        ("validation loss, held-out images", "mean squared error (log scale)", "log"),
        ("gradient norm before clipping", "norm (log scale)", "log"),
        ("learning rate", "rate (per optimiser step)", "linear"),
    ]
    for axes in whole.axes:
        assert axes.get_xlabel() == "optimiser step"
        assert axes.get_xlim() == pytest.approx((0, 408))  # the same for all, so that panels can be compared
        assert all(grid.get_visible() for grid in axes.get_xgridlines() + axes.get_ygridlines())


def test_without_validation_there_are_three_panels(tmp_path: Path) -> None:
    whole = figure(read_metrics(_file(tmp_path, _entries(20, validation=False))))
    assert [axes.get_title() for axes in whole.axes] == [
        "training loss",
        "gradient norm before clipping",
        "learning rate",
    ]
    assert not any(name.startswith(("validation", "lowest")) for name in _lines(whole))


def test_other_names_have_panels_of_their_own(tmp_path: Path) -> None:
    entries = [entry | {"token_distance": 0.5 * entry["step"]} for entry in _entries(4)]
    whole = figure(read_metrics(_file(tmp_path, entries)))
    assert [axes.get_title() for axes in whole.axes][3:] == ["learning rate", "token distance"]
    assert _points(_lines(whole)["token_distance"]) == [(10, 5.0), (20, 10.0), (30, 15.0), (40, 20.0)]


def test_one_line_is_one_visible_point(tmp_path: Path) -> None:
    (entry,) = _entries(1)
    lines = _lines(figure(read_metrics(_file(tmp_path, [entry]))))
    assert lines.keys() == {"loss", "grad_norm", "lr"}  # nothing to smooth
    for name, line in lines.items():
        assert _points(line) == [(10, entry[name])]
        assert line.get_marker() == "o"


@pytest.mark.parametrize(
    "skipped",
    [[0], [39], [0, 1, 2, 20, 39], list(range(35)), list(range(40))],
    ids=["first", "last", "several", "most", "all"],
)
def test_steps_that_the_loss_scaler_skipped_leave_a_gap_and_no_trace_in_the_mean(
    skipped: list[int], tmp_path: Path
) -> None:
    """Under fp16 their gradient norm is infinite, the first step's as a rule."""
    entries = _entries(40)
    for number in skipped:
        entries[number]["grad_norm"] = math.inf
    path = _file(tmp_path, entries)
    draw_curves(path, tmp_path / "curves.png")
    whole = figure(read_metrics(path))
    lines = _lines(whole)
    assert _points(lines["grad_norm"]) == [(entry["step"], entry["grad_norm"]) for entry in entries]
    left = [(float(entry["step"]), entry["grad_norm"]) for entry in entries if math.isfinite(entry["grad_norm"])]
    assert ("grad_norm smoothed" in lines) == (len(left) >= 10)
    if len(left) >= 10:
        steps, values = zip(*left, strict=True)
        assert _points(lines["grad_norm smoothed"]) == list(zip(steps, smoothed(np.array(values)), strict=True))
    assert np.isfinite(_axes_of(whole, "grad_norm").get_ylim()).all()


def test_parts_with_rates_of_their_own_stand_in_one_panel(tmp_path: Path) -> None:
    entries = [entry | {"lr_text_encoder": 5 * entry["lr"]} for entry in _entries(4)]
    whole = figure(read_metrics(_file(tmp_path, entries)))
    axes = _axes_of(whole, "lr")
    assert axes is _axes_of(whole, "lr_text_encoder")
    for name in ("lr", "lr_text_encoder"):
        assert _points(_lines(whole)[name]) == [(entry["step"], entry[name]) for entry in entries]
    assert axes.get_ylim() == pytest.approx((0, 1.1 * 5e-4))
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["lr", "lr_text_encoder"]


def test_zeros_can_be_drawn(tmp_path: Path) -> None:
    """Neither a learning rate that starts at zero nor a logarithmic scale without a value may end a run."""
    names = ("loss", "grad_norm", "lr", "validation_loss")
    path = _file(tmp_path, [{"step": step, **dict.fromkeys(names, 0.0)} for step in range(1, 13)])
    draw_curves(path, tmp_path / "curves.png")
    lines = _lines(figure(read_metrics(path)))
    for name in names:
        assert [value for _, value in _points(lines[name])] == [0.0] * 12


# files


@pytest.mark.parametrize("length", [1, 10, 40, -1])
def test_a_last_line_that_was_torn_is_left_out(length: int, tmp_path: Path) -> None:
    entries = _entries(3)
    torn = json.dumps({"step": 40, "loss": 0.25, "grad_norm": 0.5, "lr": 1e-4})[:length]
    metrics = read_metrics(_file(tmp_path, entries, ending=torn))
    assert metrics["loss"].steps.tolist() == [10, 20, 30]
    assert metrics["loss"].values.tolist() == [entry["loss"] for entry in entries]


def test_a_line_torn_within_a_character_is_left_out(tmp_path: Path) -> None:
    path = _file(tmp_path, _entries(2))
    path.write_bytes(path.read_bytes() + '{"step": 3, "verlusté'.encode()[:-1])
    assert read_metrics(path)["loss"].steps.tolist() == [10, 20]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing; expected the metrics of a run"),
        ("", "holds no logged step yet"),
        ('{"step": 1, "lo', "holds no logged step yet"),
        ('{"step": 1, "loss": 2}\n{"step": 2, "lo\n{"step": 3, "loss": 2}\n', 'line 2: found \'{"step": 2, "lo\''),
        ('{"loss": 2}\n', "line 1: found"),
        ('{"step": 1, "loss": "low"}\n[1]\n', "2 problems"),
    ],
)
def test_what_is_no_metrics_file_is_named(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OutputError) as caught:
        draw_curves(path, tmp_path / "curves.png")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "curves.png").exists()


def test_the_picture_is_a_png_that_replaces_the_one_before(tmp_path: Path) -> None:
    path, target = _file(tmp_path, _entries(40)), tmp_path / "curves.png"
    target.write_text("old")
    draw_curves(path, target)
    with Image.open(target, formats=["PNG"]) as picture:
        assert picture.size == (1430, 792)
        shades = np.asarray(picture.convert("L"))
    assert (shades == 255).mean() > 0.5
    assert (shades < 128).mean() > 0.005
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_drawing_needs_no_display_and_leaves_pyplot_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is an error
    monkeypatch.delitem(sys.modules, "finetune.core.curves")
    monkeypatch.setenv("MPLBACKEND", "GTK4Agg")
    fresh = importlib.import_module("finetune.core.curves")
    fresh.draw_curves(_file(tmp_path, _entries(5)), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_validation_loss_goes_by_one_name() -> None:
    assert curves.TOTAL == validation.TOTAL


# smoothing


@pytest.mark.parametrize("count", [10, 11, 29, 30, 200])
def test_smoothing_keeps_a_slope_and_lessens_noise(count: int) -> None:
    slope = 3.0 - 0.5 * np.arange(count)
    np.testing.assert_allclose(smoothed(slope), slope, atol=1e-9)
    noise = np.random.default_rng(2).standard_normal(count)
    assert smoothed(noise).std() < 0.8 * noise.std()


def test_smoothing_is_the_mean_of_a_tenth_around_each_point() -> None:
    impulse = np.zeros(100)
    impulse[50] = 11.0
    expected = np.where(np.abs(np.arange(100) - 50) <= 5, 1.0, 0.0)
    np.testing.assert_allclose(smoothed(impulse), expected, atol=1e-12)
