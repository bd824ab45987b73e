"""One HTML file of an evaluation: it opens from disk, asks no network, and shows any prompt as text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.evaluation.prompt_sets import RINGS
from pipelines.evaluation.result import KINDS, Result, Score, Tone, Verdict
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.ladder import RUNGS
from pipelines.report import panels
from pipelines.report.charts import interval_bar
from pipelines.report.pictures import chosen_keys, encoded, sheet_picture
from pipelines.report.script_data import script_data, script_json
from pipelines.report.words import Key, attribute, keyed, label, said
from pipelines.sheets import Row, sheet
from pipelines.whole_files import write_text

SCORES = "scores.csv"
_HERE = Path(__file__).parent
_SCRIPTS = ("words.js", "page.js", "vote.js")  # in this order: each uses what those before it define
_OVERVIEW_PROMPTS, _OVERVIEW_COLUMNS = 4, 8
# where the small interval bars begin, end, and have their tick
_BARS = {"times": (0.0, 2.0, 1.0), "prior": (0.0, 0.5, None), "copy_auc": (0.0, 1.0, 0.5)}


def write_page(result: Result, store: ImageStore, path: Path) -> Path:
    """Write the page, with its scores as CSV beside it, and return its file.

    At most 1,500 pictures or 10 MB are put into it, each once; all of them lie beside it as files.
    """
    pairs = {"drifted": panels.drifted_pairs(result), "copied": [vars(copy) for copy in result.copied]}
    peeks = panels.peeks(result)
    shown = [key for pair in pairs["copied"] for key in (pair["key"], pair["training_key"], pair["difference_key"])]
    shown += [key for pair in pairs["drifted"] for key in (pair["base_key"], pair["key"])]
    shown += peeks.values()
    pictures = encoded(store, chosen_keys(result, shown))
    numbers = {key: number for number, key in enumerate(pictures)}
    script = _script()
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            result=result,
            verdicts=[_card(result, verdict) for verdict in result.verdicts],
            overview=_overview(result, store),
            trade_off=panels.trade_off_chart(
                result, {model: numbers[key] for model, key in peeks.items() if key in numbers}
            ),
            curves=panels.course(result),
            table=_table(result),
            onsets=[verdict for verdict in result.verdicts if verdict.onset is not None],
            rings=RINGS,
            diversity=panels.diversity(result),
            confusions=panels.confusions(result),
            between=panels.between(result),
            profiles=panels.profile_charts(result),
            described=panels.descriptors(result),
            held_out_likeness=panels.held_out_likeness(result),
            unjudged_copies=panels.unjudged_copies(result),
            num_embedded=len(pictures),
            num_pictures=len({picture.key for picture in result.pictures}),
            data=script_json(script_data(result, store, pictures, pairs)),
            style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_text(path.with_name(SCORES), _csv(result))
    return write_text(path, html)


def _script() -> str:
    """Return the scripts as one, in a scope of its own."""
    parts = [(_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"t": label, "attribute": attribute, "keyed": keyed, "said": said, "rung_key": _rung_key}
    return environment


def _rung_key(rung: int) -> Key:
    return Key(f"rung.{rung}")


@dataclass(frozen=True)
class Line:
    """One sentence of a verdict with its number. title: key of its label. tone: "good", "bad" or "open"."""

    title: str
    words: str
    number: Markup
    bar: Markup
    tone: Tone


def _card(result: Result, verdict: Verdict) -> dict[str, Any]:
    scores = result.scores_of(verdict.model)
    model = result.models[verdict.model]
    lines = [
        _line("verdict.learnt", verdict.learnt, verdict.learnt_tone, scores.get("times"), "times"),
        *(
            [Line("verdict.next", verdict.advice, Markup(""), Markup(""), verdict.learnt_tone)]
            if verdict.advice
            else []
        ),
        _line("verdict.forgot", verdict.forgot, verdict.forgot_tone, scores.get("prior"), "prior"),
        _line("verdict.copied", verdict.copied, verdict.copied_tone, scores.get("copy_auc"), "copy_auc"),
    ]
    return {
        "verdict": verdict,
        "model": model,
        "lines": lines,
        "rungs": range(len(RUNGS)),
        "colour": panels.run_colour(result, verdict.model),
    }


def _line(title: str, words: str, tone: Tone, score: Score | None, name: str) -> Line:
    value = panels.interval_of(score)
    if score is None or value is None:
        return Line(title, words, Markup(""), Markup(""), tone)
    low, high, neutral = _BARS[name]
    neutral = score.floor if neutral is None else neutral
    bar = interval_bar(value, low=low, high=high if name == "copy_auc" else max(high, value.high), neutral=neutral)
    number = label(f"kind.{name}") + f" {panels.figures(value)}, n = {score.num_images}"
    return Line(title, words, number, bar, tone)


def _table(result: Result) -> dict[str, Any]:
    """Return the scores as rows of measures and columns of models, under every sampler."""
    columns = [
        (number, model, place) for place in range(len(result.samplings)) for number, model in panels.states(result)
    ]
    columns = [column for column in columns if result.scores_of(column[0], column[2])]
    chosen = {verdict.model for verdict in result.verdicts}
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, kind in KINDS.items():
        scores = [result.scores_of(number, place).get(name) for number, _, place in columns]
        if all(score is None for score in scores):
            continue
        floors = {f"{score.floor:.3g}" for score in scores if score is not None and score.floor is not None}
        row = {
            "name": name,
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
    """Return a number as the table shows it; sure where its interval leaves the neutral value, or the floor, out.

    One with neither is never sure: nothing says what the base, chance or real images would give.
    """
    if score is None:
        return {"text": "", "interval": None, "words": "", "is_sure": False}
    value = panels.interval_of(score)
    if value is None:
        text = "–" if score.value is None else f"{score.value:.3g}"
        return {"text": text, "interval": None, "words": score.words, "is_sure": False}
    against = score.floor if neutral is None else neutral
    is_apart = against is not None and not value.low <= against <= value.high
    return {
        "text": f"{value.value:.3g}" if abs(value.value) < 100 else f"{value.value:.0f}",
        "interval": {"low": f"{value.low:.2g}", "high": f"{value.high:.2g}", "images": score.num_images},
        "words": score.words,
        "is_sure": is_apart and not score.words.startswith(("no verdict", "inconclusive", "undefined")),
    }


def _overview(result: Result, store: ImageStore) -> dict[str, Any] | None:
    """Return one still picture: real, base and chosen models on what was learnt, for print and without JavaScript."""
    chosen = [verdict.model for verdict in result.verdicts]
    fixed = [number for number, model in enumerate(result.models) if model.is_real or model.is_base]
    by_place: dict[tuple[int, int], list[str]] = {}
    for picture in result.pictures:
        if picture.sampling == 0:
            by_place.setdefault((picture.prompt, picture.model), []).append(picture.key)
    prompts = panels.shown_prompts(result)
    asked = dict.fromkeys(prompts[model] for model in chosen or [0] if model in prompts)
    rows = []
    for prompt in list(asked)[:_OVERVIEW_PROMPTS]:
        for model in sorted({*fixed, *chosen}, key=lambda n: (not result.models[n].is_real, n)):
            keys = by_place.get((prompt, model), [])[:_OVERVIEW_COLUMNS]
            if keys:
                label = f"{result.prompts[prompt].text[:60]} – {result.models[model].label}"
                rows.append(Row(label, [store.read(key) for key in keys]))
    if not rows:
        return None
    return {
        "picture": sheet_picture(sheet(rows)),
        "rows": "; ".join(row.label for row in rows),
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
