"""What the numbers of an evaluation say to claims: confirmed, contradicted, or left open."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from pipelines.evaluation.asked_claims import AskedClaim, Side
from pipelines.evaluation.result import Claim, Result
from pipelines.metrics.distances import FEWEST_FOR_A_VERDICT
from pipelines.metrics.permutations import holm

LEVEL = 0.05


@dataclass(frozen=True)
class Quantity:
    """A mean with its standard error and the degrees of freedom of that error, infinite where it is known."""

    mean: float
    error: float = 0.0
    freedom: float = math.inf

    @staticmethod
    def of_values(values: Sequence[float]) -> Quantity | None:
        """Return the mean of two values or more, which vary as they do; None of fewer."""
        if len(values) < 2:
            return None
        found = np.asarray(values, dtype=np.float64)
        return Quantity(float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found))), len(found) - 1)

    @staticmethod
    def of_interval(value: float, low: float, high: float) -> Quantity:
        """Return a value by its 95 % interval, as if it were normal."""
        return Quantity(value, (high - low) / (2 * float(stats.norm.ppf(0.975))))


def judge_claims(asked: Sequence[AskedClaim], quantity: Callable[[AskedClaim, str], Quantity | None]) -> list[Claim]:
    """Return what the numbers say to each claim, adjusted so that one wrong word among all has a chance of 5 %.

    quantity: of a claim's measure and one of its runs; None where it was not measured. Sources: B. Welch, Biometrika
    1947 (means of different variances); D. Schuirmann, J. Pharmacokinet. Biopharm. 1987 (two one-sided tests of
    sameness); S. Holm, Scand. J. Stat. 1979 (all claims together).
    """
    sides = {claim: tuple(_quantity(claim, side, quantity) for side in (claim.first, claim.second)) for claim in asked}
    tests: dict[AskedClaim, tuple[bool, float]] = {}
    for claim, (first, second) in sides.items():
        if first is not None and second is not None:
            tests[claim] = _test(first, second, claim.within)
    names = {claim: str(number) for number, claim in enumerate(tests)}
    adjusted = holm({names[claim]: p for claim, (_, p) in tests.items()}) if tests else {}
    found = []
    for claim in asked:
        first, second = sides[claim]
        if claim not in tests or first is None or second is None:
            found.append(Claim(claim.text, "inconclusive", "not measured, or on too few images"))
            continue
        p = adjusted[names[claim]]
        found.append(Claim(claim.text, _verdict(tests[claim][0], p), _effect(claim, first, second, p)))
    return found


def claimed(result: Result) -> Callable[[AskedClaim, str], Quantity | None]:
    """Return the quantities of an evaluation: of a run in the state that was chosen, or of a model by its label."""
    models = {model.label: number for number, model in enumerate(result.models)}
    models |= {verdict.run: verdict.model for verdict in result.verdicts}

    def quantity(claim: AskedClaim, run: str) -> Quantity | None:
        score = result.scores_of(models[run]).get(claim.measure)
        if score is None or score.value is None or score.low is None or score.high is None:
            return None
        if score.num_images < FEWEST_FOR_A_VERDICT:
            return None
        return Quantity.of_interval(score.value, score.low, score.high)

    return quantity


def _verdict(holds: bool, p: float) -> Literal["confirmed", "contradicted", "inconclusive"]:
    if p >= LEVEL:
        return "inconclusive"
    return "confirmed" if holds else "contradicted"


def _quantity(claim: AskedClaim, side: Side, quantity: Callable[[AskedClaim, str], Quantity | None]) -> Quantity | None:
    return quantity(claim, side) if isinstance(side, str) else Quantity(side)


def _test(first: Quantity, second: Quantity, within: float | None) -> tuple[bool, float]:
    """Return whether the numbers lean towards the claim, and how likely they would lean as far by chance."""
    gap, error, freedom = first.mean - second.mean, math.hypot(first.error, second.error), _freedom(first, second)
    if within is None:
        return gap > 0, welch(first, second)
    inside = _above(within - abs(gap), error, freedom)
    outside = _above(abs(gap) - within, error, freedom)
    return inside < outside, min(1.0, 2 * min(inside, outside))


def welch(first: Quantity, second: Quantity) -> float:
    """Return the two-sided p-value of equal means (B. Welch, Biometrika 1947); without spread 1 if equal, else 0."""
    error = math.hypot(first.error, second.error)
    return 2 * _above(abs(first.mean - second.mean), error, _freedom(first, second))


def _above(distance: float, error: float, freedom: float) -> float:
    """Return the one-sided probability of a distance as large, where the truth is none."""
    if error == 0:
        return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
    return float(stats.t.sf(distance / error, freedom) if math.isfinite(freedom) else stats.norm.sf(distance / error))


def _freedom(first: Quantity, second: Quantity) -> float:
    """Return Welch's degrees of freedom of a difference (1947, the Satterthwaite form)."""
    parts = [(each.error**4) / each.freedom for each in (first, second) if math.isfinite(each.freedom)]
    return (first.error**2 + second.error**2) ** 2 / sum(parts) if sum(parts) > 0 else math.inf


def _effect(claim: AskedClaim, first: Quantity, second: Quantity, p: float) -> str:
    said = f"{_shown(claim.first, first)} against {_shown(claim.second, second)}"
    margin = "" if claim.within is None else f", margin {claim.within:g}"
    where = f"{claim.data}, " if claim.data else ""
    return f"{where}{claim.measure}: {said}{margin} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"


def _shown(side: Side, quantity: Quantity) -> str:
    return f"{side} {quantity.mean:.3g}" if isinstance(side, str) else f"{side:g}"
