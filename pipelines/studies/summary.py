"""What a study found: for each data and method the mean over training seeds, and which differences are decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from pipelines.evaluation.asked_claims import AskedClaim
from pipelines.evaluation.claims import Quantity, judge_claims, welch
from pipelines.evaluation.result import Claim
from pipelines.metrics.permutations import holm
from pipelines.studies.training import Cost, TrainedRun

# by the names of `evaluation.result.KINDS`, in the order of the table
MEASURES = ("rung", "times", "skill", "right_caption", "prior", "drift", "leak", "copy_auc", "vendi", "coverage")
DECIDED_ON = ("skill", "prior", "copy_auc")  # one measure each of learning, forgetting and copying
LEVEL = 0.05


@dataclass(frozen=True)
class SeedMean:
    """The mean of a measure over training seeds with its 95 % interval.

    num_seeds: how many trainings had the measure. The interval is Student's over trainings; with one training it is
    that over images, and says nothing of another training.
    """

    value: float
    low: float
    high: float
    num_seeds: int


@dataclass(frozen=True)
class Row:
    """One method on one data. num_seeds: how many trainings it has.

    scores: by measure; None where no training had it. why: by measure, what is said of a training that had it not.
    values: of every measure and of `study.COSTS`, one for each training that had it.
    cpu_minutes: mean time of a training on one core. peak_mib: largest memory of one. trained, artefact_mb: parameters,
    and the size of the result.
    """

    data: str
    method: str
    num_seeds: int
    scores: Mapping[str, SeedMean | None]
    why: Mapping[str, str]
    cpu_minutes: float
    peak_mib: float
    trained: str
    artefact_mb: str
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Difference:
    """Two methods on one data and measure. p: of equal means, adjusted for all pairs of this data and measure."""

    data: str
    measure: str
    higher: str
    lower: str
    difference: float
    p: float

    @property
    def is_decided(self) -> bool:
        """Whether the seeds suffice to tell the two apart."""
        return self.p < LEVEL


@dataclass(frozen=True)
class Summary:
    """The table of a study and its decisions."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    claims: tuple[Claim, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "differences": [asdict(each) | {"is_decided": each.is_decided} for each in self.differences],
            "claims": [asdict(claim) for claim in self.claims],
        }


def summarise(data: str, trained: Sequence[TrainedRun], labels: Sequence[str], result: Mapping[str, Any]) -> Summary:
    """Return the summary of one data: its trained runs, their labels in the evaluation, and its result.json."""
    scores = _scores(result)
    costs = {row["run"]: row for row in result["cost"]}
    by_method: dict[str, list[int]] = {}
    for place, each in enumerate(trained):
        by_method.setdefault(each.run.method, []).append(place)
    rows = []
    values: dict[str, dict[str, list[float]]] = {measure: {} for measure in DECIDED_ON}
    for method, places in by_method.items():
        means: dict[str, SeedMean | None] = {}
        why: dict[str, str] = {}
        for measure in MEASURES:
            found = [scores[labels[place]].get(measure) for place in places]
            known = [score for score in found if score is not None and score["value"] is not None]
            means[measure] = seed_mean(known) if known else None
            if len(known) < len(found):
                missing = [score["words"] for score in found if score is not None and score["value"] is None]
                why[measure] = missing[0] if missing else "not measured"
            if measure in values:
                values[measure][method] = [score["value"] for score in known]
        costs_of = [trained[place].cost for place in places]
        first = costs[labels[places[0]]]
        rows.append(
            Row(
                data,
                method,
                len(places),
                means,
                why,
                float(np.mean([cost.cpu_seconds for cost in costs_of])) / 60,
                max(cost.peak_mib for cost in costs_of),
                first.get("trained parameters", ""),
                first.get("artefact, MB", ""),
                _values([scores[labels[place]] for place in places], costs_of, [costs[labels[p]] for p in places]),
            )
        )
    differences = [found for measure in DECIDED_ON for found in differences_of(data, measure, values[measure])]
    return Summary(tuple(rows), tuple(differences))


def _values(
    scores: Sequence[Mapping[str, Any]], trainings: Sequence[Cost], costs: Sequence[Mapping[str, str]]
) -> dict[str, list[float]]:
    """Return all numbers of one method by measure, in the order of the trainings."""
    found: dict[str, list[float]] = {
        "core_minutes": [each.cpu_seconds / 60 for each in trainings],
        "memory_gib": [each.peak_mib / 1024 for each in trainings],
    }
    for name, title in (("artefact_mb", "artefact, MB"), ("trained_parameters", "trained parameters")):
        found[name] = [float(cost[title].replace(",", "")) for cost in costs if title in cost]
    for name in dict.fromkeys(name for of_run in scores for name in of_run):
        found[name] = [of_run[name]["value"] for of_run in scores if of_run[name]["value"] is not None]
    return found


def judged(claims: Sequence[AskedClaim], rows: Sequence[Row]) -> list[Claim]:
    """Return what the trainings say to claims, of which each method's values vary over the training seeds."""
    by_row = {(row.data, row.method): row.values for row in rows}

    def values(claim: AskedClaim, method: str) -> Sequence[float]:
        return by_row.get((claim.data, method), {}).get(claim.measure, ())

    found = []
    said = judge_claims(claims, lambda claim, method: Quantity.of_values(values(claim, method)))
    for asked, claim in zip(claims, said, strict=True):
        counts = {method: len(values(asked, method)) for method in asked.runs}
        once = " and ".join(method for method, count in counts.items() if count == 1)
        if once and all(counts.values()):
            claim = replace(
                claim, effect=f"{asked.data}, {asked.measure}: one training seed of {once}, where two are needed"
            )
        found.append(claim)
    return found


def seed_mean(scores: Sequence[Mapping[str, Any]]) -> SeedMean:
    """Return the mean of scores, each {"value", "low", "high"} of one training, with Student's interval over them."""
    values = np.array([score["value"] for score in scores], dtype=np.float64)
    if len(values) == 1:
        return SeedMean(float(values[0]), float(scores[0]["low"]), float(scores[0]["high"]), 1)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return SeedMean(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


def differences_of(data: str, measure: str, values: Mapping[str, Sequence[float]]) -> list[Difference]:
    """Return every pair of methods with two trainings or more each, by Welch's test and Holm's adjustment.

    Source: B. Welch, "The generalization of Student's problem when several different population variances are
    involved", Biometrika 1947; `holm`.
    """
    means = {method: Quantity.of_values(found) for method, found in values.items()}
    known = {method: mean for method, mean in means.items() if mean is not None}
    pairs = list(combinations(known, 2))
    raw = {f"{a}\n{b}": welch(known[a], known[b]) for a, b in pairs}
    adjusted = holm(raw)
    found = []
    for a, b in pairs:
        higher, lower = (a, b) if known[a].mean >= known[b].mean else (b, a)
        gap = known[higher].mean - known[lower].mean
        found.append(Difference(data, measure, higher, lower, gap, adjusted[f"{a}\n{b}"]))
    return found


def _scores(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the scores of each run's result under the first sampler, by the run's label."""
    runs = {number: model["run"] for number, model in enumerate(result["models"]) if not model["is_base"]}
    return {
        runs[measured["model"]]: measured["scores"]
        for measured in result["measured"]
        if measured["sampling"] == 0 and measured["model"] in runs
    }
