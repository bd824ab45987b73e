"""Known cases made of drawn textures: the verdict ranks each as the eye does."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from benchmarks.known_cases import CASES, NUM_PICTURES, each, judged, table
from pipelines.metrics.learnt import Learnt
from tests.planted import textures

CAPTIONS = {"zigzags": "zigzagged", "stripes": "banded"}


def pictures(start: int, count: int = NUM_PICTURES, names: dict[str, str] = CAPTIONS) -> dict[str, np.ndarray]:
    """Grey, as slices are."""
    return {c: textures(name, count, start).mean(-1, keepdims=True).repeat(3, -1) for c, name in names.items()}


@cache
def answers() -> dict[str, Learnt]:
    training, held_out, fresh = (pictures(start) for start in (0, 48, 96))
    base = pictures(0, names={"zigzags": "bubbly", "stripes": "marbled"})
    cases = {"base": base} | {name: case.make(fresh, training) for name, case in CASES.items()}
    cases["eight steps"] = {c: (1 - 0.1) * base[c] + 0.1 * fresh[c] for c in base}
    real = {"training": training, "held_out": held_out}
    return judged(cases, base, real, training, are_slices=False)


@pytest.mark.parametrize("name", CASES)
def test_a_case_stands_on_a_rung_that_the_eye_allows(name: str) -> None:
    found = answers()[name]
    assert found.standing.rung in CASES[name].rungs, found.standing.words


def test_the_base_is_unchanged_and_a_little_of_the_data_in_it_is_moved() -> None:
    assert answers()["base"].standing.rung == 0
    assert answers()["eight steps"].standing.rung == 1


def test_worse_defects_are_farther() -> None:
    def times(name: str) -> float:
        drawn = answers()[name].times.drawn
        assert drawn is not None
        return drawn.value

    assert times("real") < times("blur 0.5 px") < times("blur 1 px") < times("blur 3 px")
    assert times("real") < times("noise 0.02") < times("noise 0.1")
    assert times("gamma 1.1") < times("gamma 2")
    assert 0.7 < times("real") < 1.3


def test_the_table_has_a_row_for_each() -> None:
    rows = table({name: one.as_json() for name, one in answers().items()}).splitlines()
    assert len(rows) == 2 + len(answers())
    assert rows[0].count("|") == rows[-1].count("|")


def test_a_case_changes_every_caption() -> None:
    fresh = pictures(0, 2)
    found = each(lambda one: one * 2)(fresh, fresh)
    assert set(found) == set(fresh)
    assert max(p.max() for p in found.values()) <= 1
