"""Known cases made of drawn textures: the verdict ranks each as the eye does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from benchmarks.known_cases import CASES, NUM_PICTURES, each, judged, table
from data.synthetic.weave import weave
from pipelines.metrics.learnt import Learnt
from tests.planted import WHITE, textures

CAPTIONS = {"dry": "dry", "injected": "injected"}
ROWS = range(10, 90, 13)  # seven slices of a volume


def slices(start: int) -> dict[str, np.ndarray]:
    """Grey warp slices of small volumes of two states, the volumes from a number on."""
    found = {}
    for caption, state in CAPTIONS.items():
        volumes = [weave(state, start + seed, (80, 96, 72)).grey for seed in range(-(-NUM_PICTURES // len(ROWS)))]
        grey = np.stack([volume[8:72, row, 4:68] for volume in volumes for row in ROWS])[:NUM_PICTURES]
        found[caption] = np.clip(grey / WHITE, 0, 1).astype(np.float32)[..., None].repeat(3, -1)
    return found


def moved(base: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What few steps make of a base: its own pictures in other colours."""
    return {c: np.clip(0.6 * base[c] + 0.3 * np.array([1, 1, 0]), 0, 1).astype(np.float32) for c in base}


def base_of(*names: str) -> dict[str, np.ndarray]:
    return dict(zip(CAPTIONS, (textures(name, NUM_PICTURES) for name in names), strict=True))


@cache
def real() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return slices(0), slices(20)


@cache
def answers() -> dict[str, Learnt]:
    training, held_out = real()
    fresh, base = slices(40), base_of("bubbly", "marbled")
    cases = {"base": base, "moved": moved(base)}
    cases |= {name: case.make(fresh, training) for name, case in CASES.items()}
    return judged(cases, base, {"training": training, "held_out": held_out}, training, are_slices=False)


@dataclass(frozen=True)
class Coarse:
    """Mean colours of 64 squares: nothing of a texture."""

    extractor_id: str = "coarse"
    is_network: bool = False

    def extract(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(pictures), -1).astype(np.float64)


@pytest.mark.parametrize("names", [("bubbly", "marbled"), ("dotted", "striped")])
def test_a_few_steps_are_the_first_rung_on_another_base_and_by_another_extractor(names: tuple[str, str]) -> None:
    training, held_out = real()
    base = base_of(*names)
    cases, sides = {"base": base, "moved": moved(base)}, {"training": training, "held_out": held_out}
    found = judged(cases, base, sides, training, are_slices=False, extractor=Coarse())
    assert {name: one.standing.rung for name, one in found.items()} == {"base": 0, "moved": 1}


@pytest.mark.parametrize("name", CASES)
def test_a_case_stands_on_a_rung_that_the_eye_allows(name: str) -> None:
    found = answers()[name]
    assert found.standing.rung in CASES[name].rungs, found.standing.words


def test_the_base_is_unchanged_and_its_pictures_in_other_colours_have_moved() -> None:
    assert answers()["base"].standing.rung == 0
    assert answers()["moved"].standing.rung == 1


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
    fresh = {c: textures("bubbly", 2) for c in CAPTIONS}
    found = each(lambda one: one * 2)(fresh, fresh)
    assert set(found) == set(fresh)
    assert max(p.max() for p in found.values()) <= 1
