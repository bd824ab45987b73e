"""What a model's pictures have of the real ones: one computation, from features to the rung, for every report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pipelines.metrics.coverage import MEASURES, Measure, Overlap, overlap
from pipelines.metrics.distances import Estimate, cubic_kernel
from pipelines.metrics.diversity import vendi_ratio
from pipelines.metrics.estimates import mean_of_all, prompt_seed, written
from pipelines.metrics.ladder import FEWEST_REAL, Descriptors, Evidence, Standing, stand
from pipelines.metrics.naming import Namer, Naming, naming
from pipelines.metrics.permutations import permutation_p_value_of_all
from pipelines.metrics.real_units import set_distance, skill, times_as_far
from pipelines.metrics.two_sample import TwoSample, evenly, two_sample

NUM_PERMUTATIONS = 200

ByCaption = Mapping[str, np.ndarray]  # features (n, D)


@dataclass(frozen=True, eq=False)
class RealSets:
    """Features of real pictures by caption, the same captions in each.

    training: what was learnt from. held_out: what was not. through: of `others` after the base's autoencoder, which is
    as near to real ones as a fine-tune of this base can come. shuffled: of some training pictures after
    `naming.shuffle_pixels`.
    """

    training: ByCaption
    held_out: ByCaption
    through: ByCaption
    shuffled: ByCaption
    extractor_id: str
    _floors: dict[tuple[int, int], Floor] = field(default_factory=dict)

    @cached_property
    def namer(self) -> Namer:
        """What names the caption of a picture, or none."""
        return Namer.fit(self.training, self.held_out, self.shuffled, extractor_id=self.extractor_id)

    @cached_property
    def references(self) -> ByCaption:
        """What drawn pictures are compared with."""
        return references_and_others(self.training, self.held_out)[0]

    @cached_property
    def others(self) -> ByCaption:
        """Real pictures that are none of these, in whose units distances are told."""
        return references_and_others(self.training, self.held_out)[1]

    @property
    def num_real(self) -> int:
        """Real pictures of the caption with the fewest, on the smaller side."""
        return min(min(len(self.others[c]), len(self.references[c])) for c in self.references)

    def floor(self, num_drawn: int, seed: int) -> Floor:
        """Return what other real pictures come to in the place of drawn ones, as many of each caption as were drawn."""
        key = num_drawn, seed
        if key not in self._floors:
            self._floors[key] = Floor.of(self, num_drawn, seed)
        return self._floors[key]


def references_and_others(training: ByCaption, held_out: ByCaption) -> tuple[ByCaption, ByCaption]:
    """Return the real pictures or features that drawn ones are compared with, and others of the same law.

    The held-out ones and the training ones; the two halves of the held-out ones where there are too few training ones
    to stand for the law and enough held-out ones.
    """
    few = min(map(len, training.values())) < FEWEST_REAL
    if not few or min(map(len, held_out.values())) < 2 * FEWEST_REAL:
        return held_out, {c: training[c] for c in held_out}
    return (
        {c: rows[: len(rows) // 2] for c, rows in held_out.items()},
        {c: rows[len(rows) // 2 :] for c, rows in held_out.items()},
    )


@dataclass(frozen=True, eq=False)
class Floor:
    """Other real pictures, and those through the autoencoder, held against the references in the place of drawn ones.

    distances, ceilings: by caption, of `set_distance`. overlaps, ceiling_overlaps, told: see `ladder.Evidence`.
    """

    distances: Mapping[str, Estimate]
    ceilings: Mapping[str, Estimate]
    overlaps: Mapping[str, Overlap]
    ceiling_overlaps: Mapping[str, Overlap]
    told: TwoSample | None

    @classmethod
    def of(cls, real: RealSets, num_drawn: int, seed: int) -> Floor:
        seeds = {caption: prompt_seed(seed, place) for place, caption in enumerate(real.references)}
        distances, ceilings = (
            {c: set_distance(real.references[c], others[c], seed=seeds[c]) for c in seeds}
            for others in (real.others, real.through)
        )
        if real.num_real < FEWEST_REAL:
            return cls(distances, ceilings, {}, {}, None)
        others, through = (
            {c: evenly(features[c], num_drawn) for c in seeds} for features in (real.others, real.through)
        )
        overlaps, ceiling_overlaps = (
            {c: overlap(sides[c], real.references[c], seed=seeds[c]) for c in seeds} for sides in (others, through)
        )
        told = two_sample(others, real.references) if num_drawn >= FEWEST_REAL // 2 else None
        return cls(distances, ceilings, overlaps, ceiling_overlaps, told)


class Times(NamedTuple):
    """How many times as far from held-out pictures as training pictures are.

    Of the drawn pictures, of the base's, and of training pictures through the base's autoencoder. None where no real
    picture differs from another.
    """

    drawn: Estimate | None
    base: Estimate | None
    ceiling: Estimate | None


@dataclass(frozen=True, eq=False)
class Learnt:
    """Everything that is said of what was learnt, means over the captions; Estimates with 95 % intervals over pictures.

    times, and by_caption. skill: see `real_units.skill`. overlap, real_overlap: by measure; {} with too few real
    pictures, and told, real_told None. alike: the Vendi score of the drawn pictures over that of as many real ones.
    """

    naming: Naming
    times: Times
    by_caption: Mapping[str, Times]
    skill: Estimate | None
    overlap: Mapping[Measure, Estimate]
    real_overlap: Mapping[Measure, Estimate]
    told: Estimate | None
    real_told: Estimate | None
    moved_p: float
    alike: Estimate
    standing: Standing

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "verdict": self.standing.as_json(),
            **{f"times_{name}": written(each) for name, each in self.times._asdict().items()},
            "skill": written(self.skill),
            "right_caption": written(self.naming.right),
            "right_caption_real": written(self.naming.real_right),
            "right_caption_chance": self.naming.chance,
            "none_of_these": written(self.naming.none),
            **{name: written(self.overlap.get(name)) for name in MEASURES},
            **{f"{name}_real": written(self.real_overlap.get(name)) for name in MEASURES},
            "told": written(self.told),
            "told_real": written(self.real_told),
            "moved_p": self.moved_p,
        }


def learnt(
    drawn: ByCaption,
    base: ByCaption,
    real: RealSets,
    *,
    descriptors: Callable[[], Descriptors] | None = None,
    seed: int = 0,
) -> Learnt:
    """Return what drawn pictures have of real ones. drawn, base: features of the captions of `real`, the same seeds.

    descriptors: of slices; asked only where everything else speaks for rung 4. Raises DataError for fewer than two
    pictures in a set, features that are not finite or of different widths.
    """
    captions = list(real.references)
    num_drawn = min(len(drawn[c]) for c in captions)
    floor = real.floor(num_drawn, seed)
    seeds = {c: prompt_seed(seed, place) for place, c in enumerate(captions)}
    of_drawn, of_base = (
        {c: set_distance(real.references[c], pictures[c], seed=seeds[c]) for c in captions}
        for pictures in (drawn, base)
    )
    by_caption = {
        c: Times(*(times_as_far(each[c], floor.distances[c]) for each in (of_drawn, of_base, floor.ceilings)))
        for c in captions
    }
    times = Times(*(_mean(list(each)) for each in zip(*by_caption.values(), strict=True)))
    gained = skill(*times)
    overlaps: dict[str, Overlap] = {}
    told = None
    if floor.overlaps:
        # no more than there are other real pictures to stand in for them: coverage grows with the number
        as_many = {c: evenly(drawn[c], min(num_drawn, len(real.others[c]))) for c in captions}
        overlaps = {c: overlap(as_many[c], real.references[c], seed=seeds[c]) for c in captions}
        told = None if floor.told is None else two_sample(as_many, real.references)
    named = naming(real.namer, drawn, seed=seed)
    alike = mean_of_all([vendi_ratio(drawn[c], real.references[c], seed=seeds[c]) for c in captions])
    evidence = Evidence(
        num_drawn,
        real.num_real,
        permutation_p_value_of_all(
            [(drawn[c], base[c]) for c in captions], cubic_kernel, seed=seed, num_permutations=NUM_PERMUTATIONS
        ),
        named,
        overlaps,
        floor.overlaps,
        told,
        floor.told,
        descriptors,
        gained,
        times.drawn,
        times.ceiling,
        alike,
        floor.ceiling_overlaps,
    )
    return Learnt(
        named,
        times,
        by_caption,
        gained,
        _means(overlaps),
        _means(floor.overlaps),
        None if told is None else told.estimate(seed=seed),
        None if floor.told is None else floor.told.estimate(seed=seed),
        evidence.moved_p,
        alike,
        stand(evidence),
    )


def _mean(estimates: list[Estimate | None]) -> Estimate | None:
    known = [each for each in estimates if each is not None]
    return mean_of_all(known) if known and len(known) == len(estimates) else None


def _means(overlaps: Mapping[str, Overlap]) -> dict[Measure, Estimate]:
    if not overlaps:
        return {}
    return {name: mean_of_all([getattr(each, name) for each in overlaps.values()]) for name in MEASURES}
