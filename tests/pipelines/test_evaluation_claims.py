"""Claims against numbers: confirmed, contradicted, left open, and written wrongly."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from pipelines.evaluation.asked_claims import AskedClaim, read_claims
from pipelines.evaluation.claims import Quantity, claimed, judge_claims
from pipelines.evaluation.result import Result, Score

A, B = [0.70, 0.72, 0.76], [0.50, 0.53, 0.58]


def _judged(claim: AskedClaim, values: dict[str, list[float]]) -> tuple[str, str]:
    found = judge_claims([claim], lambda _, run: Quantity.of_values(values[run]))[0]
    return found.verdict, found.effect


@pytest.mark.parametrize(
    ("first", "second", "within", "verdict"),
    [
        ("a", "b", None, "confirmed"),
        ("b", "a", None, "contradicted"),
        ("a", 0.71, None, "inconclusive"),
        ("a", 0.5, None, "confirmed"),
        ("a", "a2", 0.1, "confirmed"),
        ("a", "b", 0.05, "contradicted"),
        ("a", "b", 0.2, "inconclusive"),
        ("still", 0.0, 0.01, "confirmed"),
        ("still", 0.0, None, "inconclusive"),
    ],
)
def test_a_claim_is_decided_by_its_numbers(first: str, second: str | float, within: float | None, verdict: str) -> None:
    values = {"a": A, "b": B, "a2": [0.71, 0.715, 0.74], "still": [0.0, 0.0, 0.0]}
    assert _judged(AskedClaim("said", "skill", first, second, within), values)[0] == verdict


def test_the_test_is_welchs() -> None:
    _, effect = _judged(AskedClaim("said", "skill", "a", "b"), {"a": A, "b": B})
    p = stats.ttest_ind(A, B, equal_var=False).pvalue
    assert p < 0.05
    assert effect == f"skill: a 0.727 against b 0.537 (p = {p:.3f})"


def test_an_interval_is_taken_as_normal() -> None:
    found = Quantity.of_interval(0.3, 0.104, 0.496)
    assert found.error == pytest.approx(0.1, abs=1e-4)
    assert math.isinf(found.freedom)
    claim = AskedClaim("said", "skill", "a", 0.0)
    (judged,) = judge_claims([claim], lambda _, __: found)
    assert judged.verdict == "confirmed"
    assert f"p = {2 * stats.norm.sf(0.3 / found.error):.3f}" in judged.effect


def test_claims_are_adjusted_together() -> None:
    """One of fifty that chance alone would decide is left open."""
    rng = np.random.default_rng(0)
    alone = Quantity(2.1, 1.0)
    assert judge_claims([AskedClaim("x", "skill", "x", 0.0)], lambda _, __: alone)[0].verdict == "confirmed"
    claims = [AskedClaim(f"{n}", "skill", f"{n}", 0.0) for n in range(50)]
    noise = {f"{n}": Quantity(float(rng.standard_normal()), 1.0) for n in range(49)} | {"49": alone}
    assert {claim.verdict for claim in judge_claims(claims, lambda _, run: noise[run])} == {"inconclusive"}


def test_what_was_not_measured_is_left_open() -> None:
    (found,) = judge_claims([AskedClaim("said", "skill", "a", "b")], lambda _, __: None)
    assert (found.verdict, found.effect) == ("inconclusive", "not measured, or on too few images")
    assert Quantity.of_values([1.0]) is None


def test_a_score_without_a_verdict_decides_no_claim() -> None:
    """Four images have an interval, and nothing may be said of them."""

    def judged(num_images: int) -> str:
        score = Score(0.5, 0.49, 0.51, num_images, "x", "", None)
        result = SimpleNamespace(
            models=[SimpleNamespace(label="run")], verdicts=[], scores_of=lambda _: {"drift": score}
        )
        return judge_claims([AskedClaim("t", "drift", "run", 0.0)], claimed(cast(Result, result)))[0].verdict

    assert [judged(9), judged(10)] == ["inconclusive", "confirmed"]


def test_claims_are_read_as_written() -> None:
    problems: list[str] = []
    entries = [
        {"text": "t", "measure": "skill", "greater": "a", "than": 0},
        {"text": "u", "measure": "drift", "same": ["a", "b"], "within": 0.1, "data": "d"},
    ]
    assert read_claims(entries, ("skill", "drift"), problems) == (
        AskedClaim("t", "skill", "a", 0.0),
        AskedClaim("u", "drift", "a", "b", 0.1, "d"),
    )
    assert problems == []
    assert AskedClaim("t", "skill", "a", 0.0).runs == ("a",)


GOOD = {"text": "t", "measure": "skill", "greater": "a", "than": "b"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("lora wins", "claims: found str"),
        (["lora wins"], r"claims\[0\]: found 'lora wins'"),
        ([{**GOOD, "measure": "skil"}], "did you mean"),
        ([{**GOOD, "text": 3}], r"claims\[0\].text: found 3"),
        ([{**GOOD, "better": 1}], "better: unknown key"),
        ([{**GOOD, "within": 0.1}], "expected greater and than, or same and within"),
        ([{"text": "t", "measure": "skill"}], "expected greater and than, or same and within"),
        ([{**GOOD, "greater": 1, "than": 2}], "expected a run with a run or a number"),
        ([{**GOOD, "than": None}], "expected a run with a run or a number"),
        ([{"text": "t", "measure": "skill", "same": ["a", "b"], "within": -1}], "within: found -1"),
        ([{"text": "t", "measure": "skill", "same": ["a"], "within": 1}], "expected two sides"),
    ],
)
def test_claims_written_wrongly_are_named(entries: Any, said: str) -> None:
    problems: list[str] = []
    assert read_claims(entries, ("skill",), problems) == ()
    assert problems
    assert any(re.search(said, problem, re.IGNORECASE) for problem in problems), problems
