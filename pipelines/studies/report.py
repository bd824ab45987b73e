"""The table of a study as Markdown, and its page: one file that opens from disk and asks no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.plain_text import escaped
from pipelines.evaluation.result import KINDS
from pipelines.metrics.estimates import interval_text
from pipelines.report.charts import NUM_COLOURS, Point, Value, trade_off
from pipelines.studies.study import Study
from pipelines.studies.summary import LEVEL, MEASURES, Difference, Row, SeedMean, Summary

_HERE = Path(__file__).parent
_STYLE = _HERE.parent / "report" / "page.css"


def markdown(summary: Summary) -> str:
    """Return one table for each data, the differences that are decided, and what is said to claims."""
    lines = []
    for data in dict.fromkeys(row.data for row in summary.rows):
        heads = ["method", *(KINDS[measure].title for measure in MEASURES), "trained", "MB", "core min", "GiB"]
        rows = [row for row in summary.rows if row.data == data]
        lines += [f"### {escaped(data)}", "", f"{intervals(rows)}.", "", _row(heads), _row(["---"] * len(heads))]
        for row in rows:
            cells = [escaped(row.method), *(written(row.scores[measure], row.num_seeds) for measure in MEASURES)]
            lines.append(
                _row([*cells, row.trained, row.artefact_mb, f"{row.cpu_minutes:.1f}", f"{row.peak_mib / 1024:.1f}"])
            )
        lines += ["", *(f"- {escaped(sentence)}" for sentence in decisions(summary.differences, data)), ""]
    if summary.claims:
        lines += ["### claims", "", _row(["claim", "verdict", "effect"]), _row(["---"] * 3)]
        lines += [_row([escaped(claim.text), claim.verdict, claim.effect]) for claim in summary.claims]
        lines.append("")
    return "\n".join(lines)


def written(mean: SeedMean | None, num_seeds: int) -> str:
    """Return a mean with its interval, no zero below zero; or a dash.

    num_seeds: how many trainings there are; said where the mean is of fewer, or of one.
    """
    if mean is None:
        return "–"
    text = interval_text(mean.value, mean.low, mean.high)
    if mean.num_seeds == num_seeds > 1:
        return text
    over = " over images" if mean.num_seeds == 1 else ""
    return f"{text}{over}, {mean.num_seeds} of {num_seeds} seed{'' if num_seeds == 1 else 's'}"


def intervals(rows: Sequence[Row]) -> str:
    """Return what the intervals of rows are taken over: trainings, or the images of a single one."""
    counts = {mean.num_seeds for row in rows for mean in row.scores.values() if mean is not None}
    if counts == {1}:
        return "Intervals: 95 % over the images of one training, which say nothing of another training seed"
    alone = "; over the images of one training where it alone has the number" if 1 in counts else ""
    return f"Intervals: 95 % over training seeds{alone}"


def decisions(differences: Sequence[Difference], data: str) -> list[str]:
    """Return one sentence for each measure: which differences of methods the seeds decide."""
    found = []
    of_data = [each for each in differences if each.data == data]
    for measure in dict.fromkeys(each.measure for each in of_data):
        pairs = [each for each in of_data if each.measure == measure]
        decided = [each for each in pairs if each.is_decided]
        said = "; ".join(
            f"{each.higher} above {each.lower} by {each.difference:.2f} (p = {each.p:.3f})" for each in decided
        )
        found.append(
            f"{KINDS[measure].title}: {len(decided)} of {len(pairs)} pairs decided" + (f": {said}" if said else "")
        )
    return found


def html(study: Study, summary: Summary, pages: Mapping[str, str], provenance: Mapping[str, str]) -> str:
    """Return the page. pages: the address of each data's evaluation, relative to this page."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = {method: number for number, method in enumerate(study.methods)}
    by_data: dict[str, list[Row]] = {}
    for row in summary.rows:
        by_data.setdefault(row.data, []).append(row)
    sections = [
        {
            "data": data,
            "page": pages.get(data),
            "chart": _chart(rows, numbers),
            "rows": rows,
            "intervals": intervals(rows),
            "decisions": decisions(summary.differences, data),
        }
        for data, rows in by_data.items()
    ]
    return environment.get_template("page.html.j2").render(
        title=study.path.stem,
        study=study,
        sections=sections,
        claims=summary.claims,
        measures=[(measure, KINDS[measure]) for measure in MEASURES],
        colours={method: number % NUM_COLOURS for method, number in numbers.items()},
        written=written,
        level=LEVEL,
        provenance=provenance,
        style=Markup(_STYLE.read_text(encoding="utf-8")),
    )


def _chart(rows: Sequence[Row], numbers: Mapping[str, int]) -> Markup:
    """Return learning against forgetting, one point for each method that has both."""
    points = [
        Point(row.method, numbers[row.method], _value(prior), _value(skill))
        for row in rows
        if (skill := row.scores["skill"]) is not None and (prior := row.scores["prior"]) is not None
    ]
    if not points:
        return Markup("")
    return trade_off(points, x_title="forgetting: prior distance (less is better)", y_title="learning: skill")


def _value(mean: SeedMean) -> Value:
    return Value(mean.value, mean.low, mean.high)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
