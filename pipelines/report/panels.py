"""The panels of the page that need nothing but a result: charts, tables and chosen pairs, ready for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipelines.evaluation.result import KINDS, Between, Confusion, Curve, HeldOutLoss, Model, Profile, Result, Score
from pipelines.metrics.estimates import interval_text
from pipelines.report.charts import NUM_COLOURS, Point, Series, Strip, Value, curves, interval_bar, strips, trade_off
from pipelines.report.words import Key, attribute, label, svg_label

RUNS_NAMED = 3  # of those that a sentence is true of
PAIRS_SHOWN = 12  # most drifted pairs of each ring and model
_UNITS = ("step", "image_visits", "epochs")
_COURSES: Mapping[str, tuple[float, ...]] = {"skill": (0.0, 1.0), "drift": (0.0,), "copy_auc": (0.5,)}

_Stop = tuple[str, Model | HeldOutLoss, Value]  # a run, where in its training, and what was measured there


def run_numbers(result: Result) -> dict[str, int]:
    """Return the number of every run, which is its colour and shape in all charts."""
    runs = dict.fromkeys(model.run for model in result.models if not model.is_base and not model.is_real)
    return {run: number for number, run in enumerate(runs)}


def run_colour(result: Result, model: int) -> int:
    """Return the number of the colour of a model's run."""
    return run_numbers(result).get(result.models[model].run, 0) % NUM_COLOURS


def states(result: Result) -> list[tuple[int, Model]]:
    """Return the models that are states of runs, in the order of runs and steps."""
    found = [(n, model) for n, model in enumerate(result.models) if not model.is_base and not model.is_real]
    numbers = run_numbers(result)
    return sorted(found, key=lambda pair: (numbers[pair[1].run], pair[1].weight, pair[1].step or 0))


def interval_of(score: Score | None) -> Value | None:
    """Return what of a score can be drawn, with no zero below zero."""
    if score is None or score.value is None or score.low is None or score.high is None:
        return None
    return Value(score.value + 0.0, score.low + 0.0, score.high + 0.0)


def shown_prompts(result: Result) -> dict[int, int]:
    """Return, for each model, the prompt that shows best what it learnt.

    The first that it was asked and real images show, or the first that it was asked.
    """
    asked: dict[int, set[int]] = {}
    for picture in result.pictures:
        if picture.sampling == 0:
            asked.setdefault(picture.model, set()).add(picture.prompt)
    real = set().union(*(prompts for model, prompts in asked.items() if result.models[model].is_real))
    return {model: min(prompts, key=lambda p: (p not in real, p)) for model, prompts in asked.items()}


def peeks(result: Result) -> dict[int, str]:
    """Return the key of one picture for each state of a run: what its mark in the trade-off shows."""
    prompts = shown_prompts(result)
    found: dict[int, str] = {}
    numbers = {number for number, _ in states(result)}
    for picture in result.pictures:
        is_shown = picture.sampling == 0 and picture.prompt == prompts.get(picture.model)
        if is_shown and picture.model in numbers:
            found.setdefault(picture.model, picture.key)
    return found


def trade_off_chart(result: Result, pictures: Mapping[int, int]) -> Markup | None:
    """Return skill against forgetting; None where no model has both. pictures: of each model, by their numbers."""
    chosen = {verdict.model for verdict in result.verdicts}
    points = []
    for number, model in states(result):
        scores = result.scores_of(number)
        x, y = interval_of(scores.get("drift")), interval_of(scores.get("skill"))
        if x is not None and y is not None:
            run = run_numbers(result)[model.run]
            alt = attribute("aria-label", "trade_off.mark", model=model.label, y=figures(y), x=figures(x))
            points.append(Point(model.label, run, x, y, number in chosen, pictures.get(number), alt))
    if not points:
        return None
    return trade_off(
        points,
        x_title=svg_label("trade_off.x"),
        y_title=svg_label("trade_off.y"),
        levels=((0.0, svg_label("trade_off.base")), (1.0, svg_label("trade_off.real"))),
        alt=attribute("aria-label", "trade_off.alt", models=len(points)),
    )


def figures(value: Value) -> str:
    """Return a value with its interval, in words."""
    return interval_text(value.value, value.low, value.high)


def course(result: Result) -> list[dict[str, Any]]:
    """Return, for each measure along training, its chart against every unit of x; none with one value a run."""
    along: list[tuple[str, str, tuple[float, ...], list[_Stop]]] = []
    for name, holds in _COURSES.items():
        stops: list[_Stop] = [
            (model.run, model, value)
            for number, model in states(result)
            if model.weight == 1.0 and (value := interval_of(result.scores_of(number).get(name))) is not None
        ]
        along.append((f"course.{name}", f"kind.{name}", holds, stops))
    losses: list[_Stop] = [(loss.run, loss, Value(loss.value, loss.value, loss.value)) for loss in result.losses]
    along.append(("course.loss", "axis.loss", (), losses))
    found = []
    for title, y_title, holds, stops in along:
        charts = {unit: _course(result, stops, y_title, unit, holds) for unit in _UNITS}
        if charts["step"] is not None:
            found.append({"title": title, "charts": charts})
    return found


def _course(result: Result, stops: Sequence[_Stop], y_title: str, unit: str, holds: tuple[float, ...]) -> Markup | None:
    """Return a line for each run with two values or more; None where no run has them."""
    series = []
    for run, number in run_numbers(result).items():
        points = [(x, value) for of, at, value in stops if of == run and (x := _along(at, unit)) is not None]
        if len(points) > 1:
            series.append(Series(run, number, tuple(points), _marks(result, run, unit)))
    if not series:
        return None
    return curves(
        series,
        x_title=svg_label(f"axis.{unit}"),
        y_title=svg_label(y_title),
        holds=holds,
        alt=attribute("aria-label", "chart.alt", x=Key(f"axis.{unit}"), y=Key(y_title)),
    )


def _along(at: Model | HeldOutLoss, unit: str) -> float | None:
    x = {"step": at.step, "image_visits": at.image_visits, "epochs": at.epochs}[unit]
    return None if x is None else float(x)


def _marks(result: Result, run: str, unit: str) -> tuple[tuple[float, str], ...]:
    """Return where a run's chosen checkpoint stands."""
    for verdict in result.verdicts:
        x = _along(result.models[verdict.model], unit)
        if verdict.run == run and x is not None:
            return ((x, result.models[verdict.model].label),)
    return ()


def drifted_pairs(result: Result) -> list[dict[str, Any]]:
    """Return the pairs that drifted farthest, of each model and ring."""
    taken: dict[tuple[int, int | None], int] = {}
    found = []
    for pair in result.drifted:
        place = pair.model, result.prompts[pair.prompt].ring
        taken[place] = taken.get(place, 0) + 1
        if taken[place] <= PAIRS_SHOWN:
            found.append(vars(pair))
    return found


def held_out_likeness(result: Result) -> list[dict[str, str]]:
    """Return how like training images held-out ones are, at most and in the middle, once for runs of the same value."""
    runs: dict[tuple[str, str], list[str]] = {}
    for run, values in result.held_out_ncc.items():
        middle = sorted(values)[len(values) // 2]
        runs.setdefault((f"{max(values):.2f}", f"{middle:.2f}"), []).append(run)
    return [
        {"runs": ", ".join(names[:RUNS_NAMED]) + (f", … ({len(names)})" if len(names) > RUNS_NAMED else "")}
        | {"most": most, "middle": middle}
        for (most, middle), names in runs.items()
    ]


def unjudged_copies(result: Result) -> str:
    """Return the runs whose pictures are near nothing in the data, so that nothing can be said of copies."""
    low = [verdict.run for verdict in result.verdicts if verdict.copied_tone == "open"]
    return ", ".join(low[:RUNS_NAMED]) + (f", … ({len(low)})" if len(low) > RUNS_NAMED else "")


def descriptors(result: Result) -> list[dict[str, Any]]:
    """Return the physical descriptors by model and prompt."""
    groups: dict[tuple[int, int], list[Any]] = {}
    for one in result.described:
        groups.setdefault((one.model, one.prompt), []).append(one)
    return [
        {"model": result.models[model].label, "prompt": result.prompts[prompt].text, "rows": rows}
        for (model, prompt), rows in groups.items()
    ]


def diversity(result: Result) -> dict[str, Any] | None:
    """Return the measures of diversity as bars, a row for each model; None where none has a number."""
    kinds = {name: kind for name, kind in KINDS.items() if kind.section == "diversity"}
    rows = [(number, model, result.scores_of(number)) for number, model in states(result)]
    names = [name for name in kinds if any(interval_of(scores.get(name)) for *_, scores in rows)]
    if not names:
        return None
    values = {name: [scores.get(name) for *_, scores in rows] for name in names}
    return {
        "names": names,
        "rows": [
            {
                "label": model.label,
                "colour": run_colour(result, number),
                "cells": [_bar(scores.get(name), kinds[name].neutral, values[name]) for name in names],
            }
            for number, model, scores in rows
        ],
    }


def _bar(score: Score | None, neutral: float | None, column: Sequence[Score | None]) -> dict[str, Any]:
    """Return a number with its bar; all bars of a column begin at 0 and end at one place."""
    value = interval_of(score)
    if score is None or value is None:
        return {"bar": "", "text": "–", "words": "" if score is None else score.words}
    ends = [each.high for each in map(interval_of, column) if each is not None]
    marked = score.floor if neutral is None else neutral
    bar = interval_bar(value, low=0.0, high=max([1.2, *ends]), neutral=marked)
    return {"bar": bar, "text": figures(value), "words": ""}


def confusions(result: Result) -> list[dict[str, Any]]:
    """Return the tables of what a classifier names, a row for each caption asked."""
    return [
        {
            "model": result.models[one.model].label,
            "colour": run_colour(result, one.model),
            "classes": one.classes,
            "accuracy": _accuracy(one),
            "rows": [
                {"asked": asked, "cells": _shaded(counts, place), "right": right, "images": images}
                for place, (asked, counts, (right, images)) in enumerate(
                    zip(one.classes, one.counts, one.real_counts, strict=True)
                )
            ],
        }
        for one in result.confusions
    ]


def _accuracy(one: Confusion) -> Markup:
    named: dict[str, object] = {"classifier": one.classifier}
    for prefix, score in (("", one.accuracy), ("real_", one.real_accuracy)):
        for name, value in (("value", score.value), ("low", score.low), ("high", score.high)):
            named[prefix + name] = "–" if value is None else f"{value:.2f}"
    images, real_images = (sum(sum(row) for row in one.counts), sum(of for _, of in one.real_counts))
    return label("classes.accuracy", **named, images=images, real_images=real_images)


def _shaded(counts: Sequence[int], place: int) -> list[dict[str, Any]]:
    total = max(1, sum(counts))
    return [
        {"count": count, "percent": round(100 * count / total), "is_right": column == place}
        for column, count in enumerate(counts)
    ]


def between(result: Result) -> list[dict[str, Any]]:
    """Return where images lie between the real images of two captions, each with its chart."""
    return [
        {
            "model": result.models[one.model].label,
            "colour": run_colour(result, one.model),
            "prompt": result.prompts[one.prompt].text,
            "words": one.share.words,
            "numbers": label(
                "between.numbers",
                one=one.one,
                other=one.other,
                share=_with_interval(one.share),
                residual=_with_interval(one.residual),
                mixed=_with_interval(one.mixed),
                images=len(one.places[1]),
            ),
            "chart": _between_chart(result, one),
        }
        for one in result.between
    ]


def _between_chart(result: Result, one: Between) -> Markup:
    first, drawn, second = one.places
    prompt = result.prompts[one.prompt].text
    rows = [
        Strip(one.one, None, first),
        Strip(prompt, run_numbers(result).get(result.models[one.model].run, 0), drawn, interval_of(one.share)),
        Strip(one.other, None, second),
    ]
    alt = attribute("aria-label", "between.alt", prompt=prompt, one=one.one, other=one.other)
    return strips(rows, x_title=svg_label("between.x"), holds=(0.0, 1.0), alt=alt)


def _with_interval(score: Score) -> str:
    found = interval_of(score)
    return "–" if found is None else figures(found)


def profile_charts(result: Result) -> list[dict[str, Any]]:
    """Return the spectra and histograms of every model that has them, beside those of held-out real images."""
    by_model: dict[int, list[Profile]] = {}
    for profile in result.profiles:
        by_model.setdefault(profile.model, []).append(profile)
    return [
        {
            "model": result.models[model].label,
            "colour": run_colour(result, model),
            "generated": min(one.generated.num_images for one in profiles),
            "real": min(one.real.num_images for one in profiles),
            "charts": [(f"profile.{one.name}", _profile_chart(result, one)) for one in profiles],
        }
        for model, profiles in by_model.items()
    ]


def _profile_chart(result: Result, profile: Profile) -> Markup:
    kind = "spectrum" if profile.name == "spectrum" else "tone"
    scale = 1.0 if kind == "spectrum" else 100.0  # shares as percents
    number = run_numbers(result).get(result.models[profile.model].run, 0)
    series = [
        Series("", None, _points(profile.x, profile.real, scale)),
        Series("", number, _points(profile.x, profile.generated, scale)),
    ]
    return curves(
        series,
        x_title=svg_label(f"profile.{kind}.x"),
        y_title=svg_label(f"profile.{kind}.y"),
        holds=() if kind == "spectrum" else (0.0,),
        has_dots=False,
        alt=attribute("aria-label", "chart.alt", x=Key(f"profile.{kind}.x"), y=Key(f"profile.{profile.name}")),
    )


def _points(x: Sequence[float], curve: Curve, scale: float) -> tuple[tuple[float, Value], ...]:
    return tuple(
        (at, Value(scale * value, scale * low, scale * high))
        for at, value, low, high in zip(x, curve.value, curve.low, curve.high, strict=True)
    )
