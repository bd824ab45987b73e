"""One HTML file of an evaluation: it opens from disk, asks no network, and shows any prompt as text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.evaluation.prompt_sets import RINGS
from pipelines.evaluation.result import KINDS, Model, Result, Score, Verdict
from pipelines.evaluation.store import ImageStore
from pipelines.report.charts import NUM_COLOURS, Point, Series, Value, curves, interval_bar, trade_off
from pipelines.report.pictures import chosen_keys, encoded, sheet_picture
from pipelines.sheets import Row, sheet
from pipelines.whole_files import write_text

SCORES = "scores.csv"
PAIRS_SHOWN = 12  # most drifted pairs of each ring and model
_HERE = Path(__file__).parent
_OVERVIEW_PROMPTS, _OVERVIEW_COLUMNS = 4, 8
# where the small interval bars begin, end, and have their tick
_BARS = {"skill": (-1.0, 1.5, 0.0), "prior": (0.0, 0.5, None), "copy_auc": (0.0, 1.0, 0.5)}
_AXES = {"step": "optimiser step", "image_visits": "image visits", "epochs": "epochs"}


def write_page(result: Result, store: ImageStore, path: Path) -> Path:
    """Write the page, with its scores as CSV beside it, and return its file.

    At most 1,500 pictures or 10 MB are put into it, each once; all of them lie beside it as files.
    """
    panels = {"drifted": _drifted(result), "copied": [vars(copy) for copy in result.copied]}
    shown = [key for pair in panels["copied"] for key in (pair["key"], pair["training_key"])]
    shown += [key for pair in panels["drifted"] for key in (pair["base_key"], pair["key"])]
    pictures = encoded(store, chosen_keys(result, shown))
    data = _data(result, store, pictures, panels)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            result=result,
            verdicts=[_card(result, verdict) for verdict in result.verdicts],
            overview=_overview(result, store),
            trade_off=_trade_off(result),
            curves=_curves(result),
            table=_table(result),
            onsets=[verdict for verdict in result.verdicts if verdict.onset is not None],
            rings=RINGS,
            described=_described(result),
            held_out_ncc=result.held_out_ncc,
            num_embedded=len(pictures),
            num_pictures=len({picture.key for picture in result.pictures}),
            data=script_json(data),
            style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_text(path.with_name(SCORES), _csv(result))
    return write_text(path, html)


def script_json(value: Any) -> Markup:
    """Return JSON that can stand in a script element, whatever texts are in it: none of them can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def run_numbers(result: Result) -> dict[str, int]:
    """Return the number of every run, which is its colour and shape in all charts."""
    runs = dict.fromkeys(model.run for model in result.models if not model.is_base and not model.is_real)
    return {run: number for number, run in enumerate(runs)}


@dataclass(frozen=True)
class Line:
    """One sentence of a verdict with its number. tone: "good", "bad" or "open"."""

    title: str
    words: str
    number: str
    bar: Markup
    tone: str


def _card(result: Result, verdict: Verdict) -> dict[str, Any]:
    scores = result.scores_of(verdict.model)
    model = result.models[verdict.model]
    lines = [
        _line("Learnt", verdict.learnt, scores.get("skill"), "skill"),
        _line("Forgot", verdict.forgot, scores.get("prior"), "prior"),
        _line("Copied", verdict.copied, scores.get("copy_auc"), "copy_auc"),
    ]
    return {
        "verdict": verdict,
        "model": model,
        "lines": lines,
        "colour": run_numbers(result).get(verdict.run, 0) % NUM_COLOURS,
    }


def _line(title: str, words: str, score: Score | None, name: str) -> Line:
    if score is None or score.value is None or score.low is None or score.high is None:
        return Line(title, words, "", Markup(""), "open")
    low, high, neutral = _BARS[name]
    neutral = score.floor if neutral is None else neutral
    high = max(high, score.high) if name == "prior" else high
    bar = interval_bar(Value(score.value, score.low, score.high), low=low, high=high, neutral=neutral)
    number = f"{KINDS[name].title} {score.value:.2f} [{score.low:.2f}, {score.high:.2f}], n = {score.num_images}"
    return Line(title, words, number, bar, _tone(words))


def _tone(words: str) -> str:
    if words.startswith(("no verdict", "inconclusive", "undefined", "not ")):
        return "open"
    bad = words.startswith(("farther from the real", "farther from the base", "nearer to the training"))
    return "bad" if bad else "good"


def _value(score: Score | None) -> Value | None:
    if score is None or score.value is None or score.low is None or score.high is None:
        return None
    return Value(score.value, score.low, score.high)


def _states(result: Result) -> list[tuple[int, Model]]:
    """Return the models that are states of runs, in the order of runs and steps."""
    found = [(n, model) for n, model in enumerate(result.models) if not model.is_base and not model.is_real]
    numbers = run_numbers(result)
    return sorted(found, key=lambda pair: (numbers[pair[1].run], pair[1].weight, pair[1].step or 0))


def _trade_off(result: Result) -> Markup | None:
    """Return skill against forgetting; None where a model has not both."""
    chosen = {verdict.model for verdict in result.verdicts}
    points = []
    for number, model in _states(result):
        scores = result.scores_of(number)
        x, y = _value(scores.get("drift")), _value(scores.get("skill"))
        if x is not None and y is not None:
            points.append(Point(model.label, run_numbers(result)[model.run], x, y, number in chosen))
    if not points:
        return None
    return trade_off(points, x_title="forgetting: noise drift on the rings →", y_title="learning: skill →")


def _curves(result: Result) -> list[dict[str, Any]]:
    """Return, for each measure along checkpoints, its chart against every unit of x; none with one state a run."""
    found = []
    for name, title, holds in (
        ("skill", "learning: skill", (0.0, 1.0)),
        ("drift", "forgetting: noise drift", (0.0,)),
        ("copy_auc", "copying: AUC", (0.5,)),
    ):
        charts = {unit: _curve(result, name, unit, holds) for unit in _AXES}
        if charts["step"] is not None:
            found.append({"name": name, "title": title, "charts": charts})
    return found


def _curve(result: Result, name: str, unit: str, holds: tuple[float, ...]) -> Markup | None:
    series = []
    for run, number in run_numbers(result).items():
        points = []
        for place, model in _states(result):
            x = {"step": model.step, "image_visits": model.image_visits, "epochs": model.epochs}[unit]
            value = _value(result.scores_of(place).get(name))
            if model.run == run and model.weight == 1.0 and x is not None and value is not None:
                points.append((float(x), value))
        if len(points) > 1:
            marks = _marks(result, run, unit)
            series.append(Series(run, number, tuple(points), marks))
    return curves(series, x_title=_AXES[unit], y_title=KINDS[name].title, holds=holds) if series else None


def _marks(result: Result, run: str, unit: str) -> tuple[tuple[float, str], ...]:
    """Return where a run's chosen checkpoint stands."""
    for verdict in result.verdicts:
        model = result.models[verdict.model]
        x = {"step": model.step, "image_visits": model.image_visits, "epochs": model.epochs}[unit]
        if verdict.run == run and x is not None:
            return ((float(x), f"{run}: chosen"),)
    return ()


def _table(result: Result) -> dict[str, Any]:
    """Return the scores as rows of measures and columns of models, under every sampler."""
    columns = [(number, model, place) for place in range(len(result.samplings)) for number, model in _states(result)]
    columns = [column for column in columns if result.scores_of(column[0], column[2])]
    chosen = {verdict.model for verdict in result.verdicts}
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, kind in KINDS.items():
        scores = [result.scores_of(number, place).get(name) for number, _, place in columns]
        if all(score is None for score in scores):
            continue
        floors = {f"{score.floor:.3g}" for score in scores if score is not None and score.floor is not None}
        row = {
            "kind": kind,
            "arrow": {"up": "↑", "down": "↓", "one": "→ 1"}[kind.better],
            "floor": ", ".join(sorted(floors)[:2]),
            "cells": [_cell(score, kind.neutral) for score in scores],
            "extractors": sorted({score.extractor for score in scores if score is not None and score.extractor}),
        }
        sections.setdefault(kind.section, []).append(row)
    heads = [
        {
            "label": model.label,
            "sampling": result.samplings[place] if len(result.samplings) > 1 else "",
            "is_chosen": number in chosen and place == 0,
        }
        for number, model, place in columns
    ]
    return {"heads": heads, "sections": sections}


def _cell(score: Score | None, neutral: float | None) -> dict[str, Any]:
    """Return a number as the table shows it; sure where its interval leaves the neutral value, or the floor, out."""
    if score is None:
        return {"text": "", "interval": "", "words": "", "is_sure": False}
    if score.value is None or score.low is None or score.high is None:
        return {"text": "–", "interval": "", "words": score.words, "is_sure": False}
    against = score.floor if neutral is None else neutral
    is_apart = against is None or not score.low <= against <= score.high
    return {
        "text": f"{score.value:.3g}" if abs(score.value) < 100 else f"{score.value:.0f}",
        "interval": f"{score.low:.2g} to {score.high:.2g}, n {score.num_images}",
        "words": score.words,
        "is_sure": is_apart and not score.words.startswith(("no verdict", "inconclusive", "undefined")),
    }


def _drifted(result: Result) -> list[dict[str, Any]]:
    """Return the pairs that drifted farthest, of each model and ring."""
    taken: dict[tuple[int, int | None], int] = {}
    found = []
    for pair in result.drifted:
        place = pair.model, result.prompts[pair.prompt].ring
        taken[place] = taken.get(place, 0) + 1
        if taken[place] <= PAIRS_SHOWN:
            found.append(vars(pair))
    return found


def _described(result: Result) -> list[dict[str, Any]]:
    """Return the physical descriptors by model and prompt."""
    groups: dict[tuple[int, int], list[Any]] = {}
    for one in result.described:
        groups.setdefault((one.model, one.prompt), []).append(one)
    return [
        {"model": result.models[model].label, "prompt": result.prompts[prompt].text, "rows": rows}
        for (model, prompt), rows in groups.items()
    ]


def _overview(result: Result, store: ImageStore) -> dict[str, Any] | None:
    """Return one still picture: real, base and chosen models on what was learnt, for print and without JavaScript."""
    chosen = [verdict.model for verdict in result.verdicts]
    fixed = [number for number, model in enumerate(result.models) if model.is_real or model.is_base]
    by_place: dict[tuple[int, int], list[str]] = {}
    for picture in result.pictures:
        if picture.sampling == 0:
            by_place.setdefault((picture.prompt, picture.model), []).append(picture.key)
    rows = []
    for prompt in _overview_prompts(result, chosen, by_place):
        for model in sorted({*fixed, *chosen}, key=lambda n: (not result.models[n].is_real, n)):
            keys = by_place.get((prompt, model), [])[:_OVERVIEW_COLUMNS]
            if keys:
                label = f"{result.prompts[prompt].text[:60]} – {result.models[model].label}"
                rows.append(Row(label, [store.read(key) for key in keys]))
    if not rows:
        return None
    return {
        "picture": sheet_picture(sheet(rows)),
        "alt": "one row of images each for " + "; ".join(row.label for row in rows),
    }


def _overview_prompts(
    result: Result, chosen: Sequence[int], by_place: Mapping[tuple[int, int], Sequence[str]]
) -> list[int]:
    """Return one prompt for each chosen model: the first that real images show, or the first that it was asked."""
    real = {prompt for prompt, model in by_place if result.models[model].is_real}
    found = []
    for model in chosen or [0]:
        asked = sorted(prompt for prompt, of in by_place if of == model)
        found += sorted(asked, key=lambda prompt: (prompt not in real, prompt))[:1]
    return list(dict.fromkeys(found))[:_OVERVIEW_PROMPTS]


def _data(
    result: Result, store: ImageStore, pictures: dict[str, str], panels: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return what the page's script reads: pictures by number, the axes of the grid, the panels."""
    numbers = {key: number for number, key in enumerate(pictures)}
    files: dict[str, str] = {}

    def reference(key: str) -> int | str:
        """The number of a picture in the page, or the name of its file beside it."""
        if key not in numbers:
            files[key] = store.path(key).relative_to(store.folder).as_posix()
        return numbers.get(key, key)

    flagged = {copy.key for copy in result.copied if copy.flagged}
    return {
        "pictures": list(pictures.values()),
        "names": [store.path(key).relative_to(store.folder).as_posix() for key in pictures],
        "models": [{"label": m.label, "isBase": m.is_base, "isReal": m.is_real} for m in result.models],
        "prompts": [
            {
                "text": p.text,
                "base": p.base_text,
                "group": p.group,
                "ring": p.ring,
                "negative": p.negative,
                "cut": p.num_tokens_cut,
            }
            for p in result.prompts
        ],
        "samplings": list(result.samplings),
        "seeds": sorted({picture.seed for picture in result.pictures}),
        "cells": [
            [p.model, p.prompt, p.sampling, p.seed, reference(p.key), int(p.key in flagged)] for p in result.pictures
        ],
        "drifted": [
            {**pair, "base_key": reference(pair["base_key"]), "key": reference(pair["key"])}
            for pair in panels["drifted"]
        ],
        "copied": [
            {**pair, "training_key": reference(pair["training_key"]), "key": reference(pair["key"])}
            for pair in panels["copied"]
        ],
        "files": files,
    }


def _csv(result: Result) -> str:
    """Return every score as a line: model, sampler, measure, value, interval, images, extractor, words."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["model", "sampler", "measure", "value", "low", "high", "num_images", "extractor", "words", "floor"]
    )
    for measured in result.measured:
        for name, s in measured.scores.items():
            label, sampler = result.models[measured.model].label, result.samplings[measured.sampling]
            writer.writerow([label, sampler, name, s.value, s.low, s.high, s.num_images, s.extractor, s.words, s.floor])
    return buffer.getvalue()
