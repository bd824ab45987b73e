"""One round of cases, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy


def run_round(
    cases: SearchStrategy[Any], look: Callable[[Any], None], *, seed: int, num_cases: int, shrink: bool = True
) -> None:
    """Look at a number of cases; raise what the first wrong one raised, made as small as can be."""

    def test(case: Any) -> None:
        look(case)

    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    checked = settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )(given(case=cases)(test))
    _seeded(seed)(checked)()


_seeded = seed
