"""The plan of an evaluation: sets of one image are refused before anything is drawn; runs are judged as trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import SettingsError
from pipelines.evaluation.grid import Sampling, asked_of
from pipelines.evaluation.plan import Axes, make_plan
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.states import AskedRun, State

RUN = (AskedRun(Path("run"), "run", {}), "base", (State(10, None),))
SAMPLINGS = (Sampling("own", 20, 3.0),)


@pytest.mark.parametrize(
    ("prompt", "is_refused"),
    [
        (Prompt("{caption}", "s"), True),
        (Prompt("a cat", "r", ring=1), True),
        (Prompt("mixed", "s", between=("a", "b")), True),
        (Prompt("{caption}", "s", seeds=(1, 2)), False),
        (Prompt("to look at", "s"), False),
    ],
    ids=["caption", "ring", "between", "seeds of its own", "not measured"],
)
def test_what_is_compared_as_a_set_has_two_seeds_or_more(prompt: Prompt, is_refused: bool) -> None:
    asked = asked_of([prompt], {"run": ("a slice",)}, {})
    for seeds, refused in (((0,), is_refused), ((0, 0), is_refused), ((0, 1), False)):
        axes = Axes((1.0,), SAMPLINGS, seeds, 64)
        if refused:
            with pytest.raises(SettingsError, match="--seeds: found one seed for"):
                make_plan(asked, axes, {}, [RUN])
        else:
            assert make_plan(asked, axes, {}, [RUN]).asked == asked


@pytest.mark.parametrize(("weights", "judged"), [((0.5, 1.0), 1.0), ((0.0, 1.0, 2.0), 1.0), ((0.7, 0.3), 0.7)])
def test_a_run_is_judged_at_the_strength_it_was_trained_with(weights: tuple[float, ...], judged: float) -> None:
    assert Axes(weights, SAMPLINGS, (0, 1), 64).judged_weight == judged
