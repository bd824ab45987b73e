"""The verdict on drawn pictures: the highest of five rungs whose condition holds, and what stops it from the next.

    0 unchanged       not told apart from the base's own pictures
    1 moved           told apart from them by a permutation test
    2 recognisable    a classifier that may say "none of these" names the right caption more often than a guess
    3 overlapping     as many real pictures have a drawn neighbour as have a real one, and drawn ones lie as densely
    4 not told apart  no classifier tells drawn from real on pictures it has not seen; slices also share the material

Rungs 2 to 4 are of the real pictures alone, so they mean the same on any base; each asks for those below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.metrics.coverage import Overlap
from pipelines.metrics.distances import FEWEST_FOR_A_VERDICT, Estimate
from pipelines.metrics.estimates import difference, mean_of_all
from pipelines.metrics.naming import Naming
from pipelines.metrics.slices import SliceComparison
from pipelines.metrics.two_sample import LEVEL, TwoSample

RUNGS = ("unchanged", "moved", "recognisable", "overlapping", "not told apart")
FEWEST_REAL = 20  # real pictures of a caption, on each side, that rungs 3 and 4 rest on
GREEN = 3  # the rung from which on the pictures may stand for real ones
NEAR_CEILING = 0.9  # share of the way to what the autoencoder allows, from which on it is the limit

Descriptors = Mapping[str, Mapping[str, SliceComparison]]  # by caption and name


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the rungs are decided by.

    num_drawn, num_real: of the caption with the fewest; real ones on the smaller side of the split. moved_p: that the
    drawn pictures are as far from the base's by chance. overlaps, real_overlaps: by caption, of the drawn pictures, and
    of as many other real ones in their place; {} with fewer than FEWEST_REAL real ones. told, real_told: a classifier
    of drawn against real, and of real against other real; None likewise. descriptors: of slices, asked only where it
    comes to them; None for other pictures. skill, times, ceiling: see `real_units`. alike: the drawn pictures' Vendi
    score over that of as many real ones. ceiling_overlaps: by caption, of real pictures through the autoencoder.
    """

    num_drawn: int
    num_real: int
    moved_p: float
    naming: Naming
    overlaps: Mapping[str, Overlap]
    real_overlaps: Mapping[str, Overlap]
    told: TwoSample | None
    real_told: TwoSample | None
    descriptors: Callable[[], Descriptors] | None
    skill: Estimate | None
    times: Estimate | None
    ceiling: Estimate | None
    alike: Estimate | None = None
    ceiling_overlaps: Mapping[str, Overlap] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """Where drawn pictures stand.

    rung: 0 to 4; None where nothing can be said. words: one sentence, with the number that stops them from the next
    rung. advice: what to do next; "" from rung 3 on.
    """

    rung: int | None
    words: str
    advice: str

    @property
    def name(self) -> str:
        """The rung in words."""
        return "cannot be judged" if self.rung is None else RUNGS[self.rung]

    @property
    def is_good(self) -> bool:
        """Whether the pictures may stand for real ones."""
        return self.rung is not None and self.rung >= GREEN

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {"rung": self.rung, "name": self.name, "words": self.words, "advice": self.advice}


def stand(evidence: Evidence) -> Standing:
    """Return the highest rung whose condition holds; with fewer than 10 pictures of a caption, none."""
    if evidence.num_drawn < FEWEST_FOR_A_VERDICT:
        few = f"{evidence.num_drawn} pictures of a caption; {FEWEST_FOR_A_VERDICT} are needed"
        return Standing(None, f"Cannot be judged: {few}.", "Draw more pictures of each caption.")
    if (why := _not_recognisable(evidence)) is not None:
        if evidence.moved_p > LEVEL:
            stop = f"the pictures are not told apart from the base's own (p = {evidence.moved_p:.2f})"
            return _standing(0, stop, "Train longer, or with a larger learning rate: the pictures have not moved.")
        return _standing(1, why, _advice_to_recognise(evidence))
    if (why := _not_overlapping(evidence)) is not None:
        return _standing(2, why, _advice_to_overlap(evidence))
    if (why := _told_apart(evidence)) is not None:
        return _standing(3, why, "")
    assert evidence.told is not None
    return _standing(4, f"a classifier of drawn and real pictures is right on {_right(evidence.told)}", "")


def _standing(rung: int, why: str, advice: str) -> Standing:
    return Standing(rung, f"{RUNGS[rung].capitalize()}: {why}.", advice)


def _not_recognisable(evidence: Evidence) -> str | None:
    """Return what stops rung 2, None where it holds."""
    named = evidence.naming
    if named.right.low > named.chance:
        return None
    return (
        f"a classifier of real pictures names the right caption of {named.right.value:.0%} of the drawn ones, where "
        f"guessing gives {named.chance:.0%}, and {named.none.value:.0%} show none of these"
    )


def _not_overlapping(evidence: Evidence) -> str | None:
    if not evidence.overlaps:
        return (
            f"{evidence.num_real} real pictures of a caption, where {FEWEST_REAL} on both sides are needed to say more"
        )
    covered, real_covered = (
        mean_of_all([each.coverage for each in sides.values()]) for sides in (evidence.overlaps, evidence.real_overlaps)
    )
    if difference(covered, real_covered).high < 0:
        found, expected = (
            sum(each.num_covered for each in sides.values()) for sides in (evidence.overlaps, evidence.real_overlaps)
        )
        total = sum(each.num_real for each in evidence.overlaps.values())
        return f"{found} of {total} real pictures have a drawn neighbour, where {expected} have another real one"
    dense, real_dense = (
        mean_of_all([each.density for each in sides.values()]) for sides in (evidence.overlaps, evidence.real_overlaps)
    )
    if difference(dense, real_dense).high < 0:
        return (
            f"drawn pictures lie among the real ones with a density of {dense.value:.2f}, where other real ones have "
            f"{real_dense.value:.2f}"
        )
    return None


def _told_apart(evidence: Evidence) -> str | None:
    assert evidence.told is not None
    assert evidence.real_told is not None
    # two blocks of one specimen may differ: what is told apart must be so beyond that, too
    if max(evidence.told.p_value, evidence.told.p_value_beyond(evidence.real_told)) <= LEVEL:
        return (
            f"a classifier of drawn and real pictures is right on {_right(evidence.told)}, where real against other "
            f"real ones give {evidence.real_told.hits.mean():.0%} and a coin 50%"
        )
    if evidence.descriptors is None:
        return None
    far = [
        (one.ratio_low, one.ratio, name, caption)
        for caption, by_name in evidence.descriptors().items()
        for name, one in by_name.items()
        if one.verdict in ("apart", "far") and one.ratio is not None and one.ratio_low is not None
    ]
    if not far:
        return None
    _, ratio, name, caption = max(far)
    return f"{name} of {caption} is {ratio:.1f} times as far as between real blocks, where 2 is allowed"


def _right(told: TwoSample) -> str:
    return f"{told.hits.mean():.0%} of {len(told.hits)} pictures that it has not seen"


def _advice_to_recognise(evidence: Evidence) -> str:
    named = evidence.naming
    if named.none.high < 0.5:
        return "The pictures are of the data, but not under their captions. Train longer, or check the captions."
    if evidence.skill is not None and evidence.skill.low > 0:
        return "Train longer, or with a larger learning rate: the pictures move towards the real ones."
    return "Train longer, or with a larger learning rate: the pictures have moved, but not towards the real ones."


def _advice_to_overlap(evidence: Evidence) -> str:
    if not evidence.overlaps:
        return "Give more images, or hold more of them out."
    if evidence.alike is not None and evidence.alike.high < 0.5:
        return "The pictures are too alike. Train less long, or on more images."
    if (evidence.skill is not None and evidence.skill.high >= NEAR_CEILING) or _is_limited(evidence):
        limit = "" if evidence.ceiling is None else f" ({evidence.ceiling.value:.1f} times as far as real pictures)"
        return (
            f"The base's autoencoder is the limit: real pictures that go through it are no longer among the real ones"
            f"{limit}. Take a finer scale or another base; pipelines/vae_ceiling.py shows what it keeps."
        )
    return "Train longer, or with a larger learning rate: the right pictures, but not as they are in the data."


def _is_limited(evidence: Evidence) -> bool:
    """Whether real pictures through the autoencoder would not reach rung 3, and the drawn ones are half way there."""
    if not evidence.ceiling_overlaps or evidence.skill is None or evidence.skill.low < 0.5:
        return False
    through, real = (
        mean_of_all([each.coverage for each in sides.values()])
        for sides in (evidence.ceiling_overlaps, evidence.real_overlaps)
    )
    return difference(through, real).high < 0
