"""The images of an evaluation by model, and what they say of learning: rung, distance, names, descriptors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from data.errors import DataError
from pipelines.evaluation.grid import Arm, Asked, Cell
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.result import Between, Confusion, Curve, Described, Profile, Score
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.colour import tint
from pipelines.metrics.coverage import Measure
from pipelines.metrics.diversity import pairwise_distance
from pipelines.metrics.estimates import mean_of_all, prompt_seed, ratio
from pipelines.metrics.extractors import Extractor
from pipelines.metrics.heads import class_coverage
from pipelines.metrics.interpolation import interpolation
from pipelines.metrics.ladder import FEWEST_REAL, Descriptors
from pipelines.metrics.learnt import Learnt, RealSets, learnt, references_and_others
from pipelines.metrics.naming import NUM_SHUFFLED, shuffle_pixels
from pipelines.metrics.network_scores import FEWEST_FOR_FID, cmmd, fid, kid
from pipelines.metrics.slices import compare_slices
from pipelines.metrics.spectra import Band, Tone, radial_spectrum, tone_histogram
from pipelines.metrics.two_sample import evenly

# precision calls one picture again and again right, and recall a mixture with another caption (docs/results.md)
SHOWN: tuple[Measure, ...] = ("density", "coverage")


@dataclass(frozen=True)
class Subject:
    """A model under one sampler: what is measured."""

    arm: Arm
    place: int


class Images:
    """The images of an evaluation and their features, by model, sampler and prompt, in the order of the seeds."""

    def __init__(self, plan: Plan, store: ImageStore, extractor: Extractor) -> None:
        self._plan, self._store, self.extractor = plan, store, extractor
        self.cells: dict[tuple[Arm, int, int], list[Cell]] = {}
        self._floor: dict[tuple[Arm, int, int], list[Cell]] = {}
        for group, cells in ((self.cells, plan.cells), (self._floor, plan.floor)):
            for cell in cells:
                group.setdefault((cell.arm, cell.place, cell.asked), []).append(cell)
        self._features: dict[str, np.ndarray] = {}

    def pictures(self, subject: Subject, asked: int, *, floor: bool = False) -> np.ndarray:
        """Return float32 (N, H, W, 3) in [0, 1]; N = 0 where the model was not asked this prompt.

        floor: those of the base with other seeds.
        """
        cells = (self._floor if floor else self.cells).get((subject.arm, subject.place, asked), [])
        if not cells:
            return np.empty((0, self._plan.axes.size_px, self._plan.axes.size_px, 3), dtype=np.float32)
        return self._store.read_all(self._plan.key(cell) for cell in cells).astype(np.float32) / 255

    def features(self, subject: Subject, asked: int, *, floor: bool = False) -> np.ndarray:
        """Return the features of the same images, (N, D)."""
        cells = (self._floor if floor else self.cells).get((subject.arm, subject.place, asked), [])
        keys = [self._plan.key(cell) for cell in cells]
        missing = [key for key in dict.fromkeys(keys) if key not in self._features]
        if missing:
            found = self.extractor.extract(self._store.read_all(missing).astype(np.float32) / 255)
            self._features.update(zip(missing, found, strict=True))
        return np.stack([self._features[key] for key in keys])

    def base_of(self, subject: Subject) -> Subject:
        """Return the base of a model under the same sampler."""
        return Subject(
            next(arm for arm in self._plan.arms if arm.is_base and arm.run == subject.arm.base), subject.place
        )


@dataclass(frozen=True, eq=False)
class Learning:
    """What one run can be compared with: its captions, as places among those asked, and the real pictures of each.

    asked: by caption. real: the pictures. sets: their features. is_network: see `Extractor`.
    """

    asked: Mapping[str, int]
    real: RealImages
    sets: RealSets
    is_network: bool = False
    _described: dict[Subject, Descriptors] = field(default_factory=dict)

    @staticmethod
    def of(
        run: str, plan: Plan, real: RealImages, extractor: Extractor, through: Callable[[np.ndarray], np.ndarray]
    ) -> Learning:
        """Return it for the captions of a run that are asked and have real images.

        through: gives pictures, float32 (N, H, W, 3) in [0, 1], after encoding and decoding by the base.
        """
        asked: dict[str, int] = {}
        for place, question in enumerate(plan.asked):
            if run in question.caption_of and question.text in real.captions:
                asked.setdefault(question.text, place)
        training, held_out = ({caption: side[caption] for caption in asked} for side in (real.training, real.held_out))
        others = references_and_others(training, held_out)[1] if asked else {}
        sets = RealSets(
            {caption: extractor.extract(pictures) for caption, pictures in training.items()},
            {caption: extractor.extract(pictures) for caption, pictures in held_out.items()},
            {c: extractor.extract(through(evenly(each, len(plan.axes.seeds)))) for c, each in others.items()},
            {c: extractor.extract(shuffle_pixels(evenly(each, NUM_SHUFFLED))) for c, each in training.items()},
            extractor.extractor_id,
        )
        return Learning(asked, real, sets, extractor.is_network)

    @cached_property
    def concept(self) -> np.ndarray:
        """Features of all real images."""
        return np.concatenate([*self.sets.training.values(), *self.sets.held_out.values()])

    def descriptors(self, subject: Subject, images: Images, seed: int) -> Descriptors:
        """Return the physical descriptors of a model's slices by caption. Raises DataError where they cannot be had."""
        if subject not in self._described:
            self._described[subject] = {
                caption: compare_slices(
                    self.real.training[caption].mean(-1),
                    self.real.held_out[caption].mean(-1),
                    images.pictures(subject, asked).mean(-1),
                    um_per_px=self.real.um_per_px,
                    seed=seed,
                )
                for caption, asked in self.asked.items()
            }
        return self._described[subject]


def what_is_learnt(subject: Subject, images: Images, learning: Learning, *, seed: int) -> Learnt | None:
    """Return what a model's pictures have of the real ones; None where it was asked none of its captions."""
    if not learning.asked:
        return None
    drawn, base = (
        {caption: images.features(of, asked) for caption, asked in learning.asked.items()}
        for of in (subject, images.base_of(subject))
    )

    def descriptors() -> Descriptors:
        try:
            return learning.descriptors(subject, images, seed)
        except DataError:  # the page says why there are none
            return {}

    return learnt(drawn, base, learning.sets, descriptors=descriptors if learning.real.are_slices else None, seed=seed)


def learning_scores(
    found: Learnt, subject: Subject, images: Images, learning: Learning, *, seed: int
) -> dict[str, Score]:
    """Return what a model learnt as scores: its rung, distances, names, overlap and diversity."""
    extractor_id, standing, named = learning.sets.extractor_id, found.standing, found.naming
    rung = None if standing.rung is None else float(standing.rung)
    num_drawn = named.right.num_images // len(learning.asked)
    scores = {"rung": Score(rung, rung, rung, num_drawn, extractor_id, standing.words)}
    times = found.times
    if times.drawn is None or times.base is None or times.ceiling is None:
        scores["times"] = Score.none("the real pictures do not differ from each other")
    else:
        words = f"base {times.base.value:.2f}, real pictures through the autoencoder {times.ceiling.value:.2f}"
        scores["times"] = Score.of(times.drawn, extractor_id, words)
    scores["skill"] = (
        Score.none("undefined: the base is no farther than real pictures through its autoencoder, or too few pictures")
        if found.skill is None
        else Score.of(found.skill, extractor_id)
    )
    none = f"{named.none.value:.0%} show none of the captions"
    scores["right_caption"] = Score.of(named.right, extractor_id, none, named.chance)
    scores["told"] = (
        Score.none(f"fewer than {FEWEST_REAL} real pictures of a caption")
        if found.told is None or found.real_told is None
        else Score.of(found.told, extractor_id, "", max(0.5, found.real_told.value))
    )
    for name in SHOWN:
        scores[name] = (
            Score.of(found.overlap[name], extractor_id, "", found.real_overlap[name].value)
            if found.overlap
            else Score.none(f"fewer than {FEWEST_REAL} real pictures of a caption")
        )
    scores["vendi"] = Score.of(found.alike, extractor_id)
    pairs = [
        ratio(
            pairwise_distance(images.features(subject, asked), seed=prompt_seed(seed, place)),
            pairwise_distance(learning.sets.held_out[caption], seed=prompt_seed(seed, place) + 1),
        )
        for place, (caption, asked) in enumerate(learning.asked.items())
    ]
    known = [each for each in pairs if each is not None]
    scores["pairwise"] = (
        Score.of(mean_of_all(known), extractor_id)
        if len(known) == len(pairs)
        else Score.none("the real pictures do not differ from each other")
    )
    if learning.real.are_slices:
        drawn = [images.pictures(subject, asked) for asked in learning.asked.values()]
        scores["tint"] = Score.of(tint(np.concatenate(drawn), seed=seed), "channel difference", "", 0.0)
    return scores | _of_papers(subject, images, learning, seed) if learning.is_network else scores


def _of_papers(subject: Subject, images: Images, learning: Learning, seed: int) -> dict[str, Score]:
    """Return FID, KID and CMMD over all captions together, with those of training images in place of drawn ones."""
    few = {
        caption: min(len(learning.sets.training[caption]), len(images.features(subject, asked)))
        for caption, asked in learning.asked.items()
    }
    drawn = np.concatenate([evenly(images.features(subject, asked), few[c]) for c, asked in learning.asked.items()])
    other = np.concatenate([evenly(learning.sets.training[c], few[c]) for c in few])
    real = np.concatenate([learning.sets.held_out[c] for c in few])
    extractor_id, count = learning.sets.extractor_id, min(len(drawn), len(real))
    value, floor = (fid(each, real) for each in (drawn, other))
    words = (
        "" if count >= FEWEST_FOR_FID else f"of {count} images, where papers take {FEWEST_FOR_FID} or more: too large"
    )
    return {
        "fid": Score(value, None, None, count, extractor_id, words, floor),
        "kid": Score.of(kid(drawn, real, seed=seed), extractor_id, "", kid(other, real, seed=seed).value),
        "cmmd": Score.of(cmmd(drawn, real, seed=seed), extractor_id, "", cmmd(other, real, seed=seed).value),
    }


def confusion(found: Learnt, extractor_id: str, model: int) -> Confusion:
    """Return what the classifier of the captions names a model's images."""
    named = found.naming
    return Confusion(
        model,
        named.captions,
        named.classifier,
        tuple(tuple(int(count) for count in row) for row in named.counts),
        named.real_counts,
        Score.of(named.right, extractor_id),
        Score.of(named.real_right, extractor_id),
    )


def class_coverage_score(
    subject: Subject, images: Images, learning: Learning, asked: Sequence[int], *, seed: int
) -> dict[str, Score]:
    """Return how evenly the captions are named in a model's images of prompts without any; {} with one caption only.

    asked: the prompts of the class word, as places among those asked. The floor is the base's value.
    """
    if len(learning.asked) < 2 or not asked or learning.sets.namer.head is None:
        return {}
    tuned, base = (
        class_coverage(
            learning.sets.namer.head, np.concatenate([images.features(of, place) for place in asked]), seed=seed
        )
        for of in (subject, images.base_of(subject))
    )
    return {"class_coverage": Score.of(tuned, learning.sets.extractor_id, "", base.value)}


def described(
    subject: Subject, images: Images, learning: Learning, model: int, *, seed: int
) -> tuple[list[Described], str]:
    """Return the physical descriptors of a model's slices by caption; and why not, where they cannot be had."""
    try:
        by_caption = learning.descriptors(subject, images, seed)
    except DataError as error:
        return [], " ".join(error.problems)
    return [
        Described(
            model,
            learning.asked[caption],
            name,
            one.meaning,
            one.unit,
            one.value_real,
            one.value_generated,
            one.ratio,
            one.ratio_low,
            one.ratio_high,
            one.reason or one.verdict,
        )
        for caption, comparison in by_caption.items()
        for name, one in comparison.items()
    ], ""


def lying_between(
    subject: Subject, images: Images, asked: Sequence[Asked], real: RealImages, model: int, *, seed: int
) -> tuple[list[Between], list[str]]:
    """Return where a model's images lie of prompts that say between what; and what cannot be placed, in words."""
    found, missing = [], []
    for place, question in enumerate(asked):
        if question.prompt.between is None or len(images.pictures(subject, place)) < 2:
            continue
        pair = question.prompt.between
        known = [[group[caption] for group in (real.training, real.held_out) if caption in group] for caption in pair]
        lacking = [caption for caption, each in zip(pair, known, strict=True) if sum(map(len, each)) < 2]
        if lacking:
            missing.append(f"{question.text!r} is not placed: there are no real images of {' and '.join(lacking)}.")
            continue
        one, other = (images.extractor.extract(np.concatenate(each)) for each in known)
        measured = interpolation(images.features(subject, place), one, other, seed=seed)
        if measured is None:
            missing.append(f"{question.text!r} is not placed: real images of {' and '.join(pair)} do not differ.")
            continue
        found.append(
            Between(
                model,
                place,
                *pair,
                Score.of(measured.share, images.extractor.extractor_id, measured.words),
                Score.of(measured.residual, images.extractor.extractor_id),
                Score.of(measured.mixed, images.extractor.extractor_id),
                (_numbers(measured.one), _numbers(measured.generated), _numbers(measured.other)),
            )
        )
    return found, missing


def profiles(
    subject: Subject, images: Images, learning: Learning, real: RealImages, model: int, *, seed: int
) -> tuple[list[Profile], str]:
    """Return spectrum and tones of a model's images beside held-out real ones; and what is left out, in words."""
    if not learning.asked:
        return [], ""
    drawn = [images.pictures(subject, place) for place in learning.asked.values()]
    held_out = [real.held_out[caption] for caption in learning.asked]
    found, why = [], ""
    if {each.shape[1:3] for each in drawn} == {each.shape[1:3] for each in held_out}:
        generated, true = (radial_spectrum(groups, seed=seed) for groups in (drawn, held_out))
        found.append(_profile(model, "spectrum", generated, true))
    else:
        why = "images are not of the size of its held-out images, so spectra are not compared."
    tones: tuple[Tone, ...] = ("grey",) if real.are_slices else ("grey", "red", "green", "blue")
    for tone in tones:
        generated, true = (tone_histogram(groups, tone, seed=seed) for groups in (drawn, held_out))
        found.append(_profile(model, tone, generated, true))
    return found, why


def _profile(model: int, name: Literal["spectrum"] | Tone, generated: Band, real: Band) -> Profile:
    return Profile(model, name, _numbers(generated.x), _curve(generated), _curve(real))


def _curve(band: Band) -> Curve:
    return Curve(_numbers(band.value), _numbers(band.low), _numbers(band.high), band.num_images)


def _numbers(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values)
