"""The images of an evaluation by model, and what they say of learning: skill, adherence, diversity, descriptors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from data.errors import DataError
from pipelines.evaluation.grid import Arm, Asked, Cell
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.result import Between, Confusion, Curve, Described, Profile, Score
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.adherence import Adherence, Head, Labelled, adherence, class_coverage, fit_head
from pipelines.metrics.coverage import coverage
from pipelines.metrics.distances import Estimate
from pipelines.metrics.diversity import pairwise_distance, vendi_ratio
from pipelines.metrics.estimates import mean_over_prompts, prompt_seed, ratio
from pipelines.metrics.extractors import Extractor
from pipelines.metrics.fidelity import IN_WORDS, Fidelity, fidelity
from pipelines.metrics.interpolation import interpolation
from pipelines.metrics.slices import compare_slices
from pipelines.metrics.spectra import Band, Tone, radial_spectrum, tone_histogram

FEWEST_FOR_COVERAGE = 20


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
    """What one run can be compared with: its captions, as places among those asked, and real features of each.

    asked: by caption.
    """

    asked: Mapping[str, int]
    training: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]
    extractor_id: str

    @staticmethod
    def of(run: str, plan: Plan, real: RealImages, extractor: Extractor) -> Learning:
        """Return it for the captions of a run that are asked and have real images."""
        asked: dict[str, int] = {}
        for place, question in enumerate(plan.asked):
            if run in question.caption_of and question.text in real.captions:
                asked.setdefault(question.text, place)
        return Learning(
            asked,
            {caption: extractor.extract(real.training[caption]) for caption in asked},
            {caption: extractor.extract(real.held_out[caption]) for caption in asked},
            extractor.extractor_id,
        )

    @cached_property
    def concept(self) -> np.ndarray:
        """Features of all real images."""
        return np.concatenate([*self.training.values(), *self.held_out.values()])

    @cached_property
    def head(self) -> Head | None:
        """The classifier that tells the captions apart; None where there is one only."""
        if len(self.asked) < 2:
            return None
        training, held_out = Labelled.of(self.training), Labelled.of(self.held_out)
        return fit_head("caption", training, held_out, extractor_id=self.extractor_id)


def learning_scores(
    subject: Subject, images: Images, learning: Learning, *, seed: int
) -> tuple[dict[str, Score], Estimate | None]:
    """Return skill, adherence and diversity of a model, means over its captions; and the skill with its draws.

    The skill is None where it is undefined for one of the captions.
    """
    if not learning.asked:
        return {}, None
    found = _fidelities(subject, images, learning, seed)
    scores = {
        "skill": _mean_skill(found, "scd", learning.extractor_id, seed),
        "kid_skill": _mean_skill(found, "kid", learning.extractor_id, seed),
        **_diversity(subject, images, learning, seed),
    }
    adhered = _adherence(subject, images, learning, seed)
    if adhered is not None:
        scores["adherence"] = (
            Score.none("; ".join(adhered.caveats) or "the classifier names hardly any real image")
            if adhered.ratio is None
            else Score.of(
                adhered.ratio,
                learning.extractor_id,
                "; ".join(adhered.caveats),
                1 / len(adhered.classes) / adhered.real_accuracy.value,  # what naming by chance gives
            )
        )
    else:
        scores["adherence"] = Score.none("one caption only: nothing to tell apart")
    return scores, _mean_of_all(found, seed)


def mean_skill(subject: Subject, images: Images, learning: Learning, *, seed: int) -> Estimate | None:
    """Return the skill of a model as `learning_scores` does, and nothing else."""
    return _mean_of_all(_fidelities(subject, images, learning, seed), seed) if learning.asked else None


def _fidelities(subject: Subject, images: Images, learning: Learning, seed: int) -> list[Fidelity]:
    base = images.base_of(subject)
    return [
        fidelity(
            images.features(subject, asked),
            images.features(base, asked),
            learning.held_out[caption],
            learning.training[caption],
            extractor_id=learning.extractor_id,
            seed=prompt_seed(seed, place),
            num_permutations=200,
        )
        for place, (caption, asked) in enumerate(learning.asked.items())
    ]


def _mean_of_all(found: Sequence[Fidelity], seed: int) -> Estimate | None:
    skills = [one.scd.skill for one in found if one.scd.skill is not None]
    return mean_over_prompts(skills, seed=seed) if len(skills) == len(found) else None


def _adherence(subject: Subject, images: Images, learning: Learning, seed: int) -> Adherence | None:
    if learning.head is None:
        return None
    drawn = Labelled.of({caption: images.features(subject, asked) for caption, asked in learning.asked.items()})
    return adherence(learning.head, drawn, seed=seed)


def confusion(subject: Subject, images: Images, learning: Learning, model: int, *, seed: int) -> Confusion | None:
    """Return what the classifier of the captions names a model's images; None where there is one caption only."""
    adhered = _adherence(subject, images, learning, seed)
    if adhered is None or learning.head is None:
        return None
    labels = np.repeat(list(learning.held_out), [len(features) for features in learning.held_out.values()])
    right = {label: learning.head.real[labels == label] for label in adhered.classes}
    return Confusion(
        model,
        adhered.classes,
        adhered.kind,
        tuple(tuple(int(count) for count in row) for row in adhered.confusion),
        tuple((int(right[label].sum()), len(right[label])) for label in adhered.classes),
        Score.of(adhered.accuracy, learning.extractor_id),
        Score.of(adhered.real_accuracy, learning.extractor_id),
    )


def class_coverage_score(
    subject: Subject, images: Images, learning: Learning, asked: Sequence[int], *, seed: int
) -> dict[str, Score]:
    """Return how evenly the captions are named in a model's images of prompts without any; {} with one caption only.

    asked: the prompts of the class word, as places among those asked. The floor is the base's value.
    """
    if learning.head is None or not asked:
        return {}
    tuned, base = (
        class_coverage(learning.head, np.concatenate([images.features(of, place) for place in asked]), seed=seed)
        for of in (subject, images.base_of(subject))
    )
    return {"class_coverage": Score.of(tuned, learning.extractor_id, "", base.value)}


def _mean_skill(found: Sequence[Fidelity], kernel: str, extractor_id: str, seed: int) -> Score:
    each = [one.scd if kernel == "scd" else one.kid for one in found]
    undefined = [one.verdict for one in each if one.skill is None]
    if undefined:
        of = f" ({len(undefined)} of {len(each)} captions)" if len(each) > 1 else ""
        return Score.none(IN_WORDS[undefined[0]] + of)
    mean = mean_over_prompts([one.skill for one in each if one.skill is not None], seed=seed)
    words = _skill_words(mean, [one.verdict == "as near as real images" for one in each])
    caveats = {caveat for one in found for caveat in one.caveats}
    return Score.of(mean, extractor_id, "; ".join([words, *sorted(caveats)]))


def _skill_words(skill: Estimate, alike: Sequence[bool]) -> str:
    """alike: for each caption whether its images are not told apart from real ones, by a test of their own."""
    if skill.high < 0:
        return IN_WORDS["worse"]
    if skill.low <= 0:
        return IN_WORDS["inconclusive"]
    return IN_WORDS["as near as real images"] if all(alike) else IN_WORDS["better"]


def _diversity(subject: Subject, images: Images, learning: Learning, seed: int) -> dict[str, Score]:
    measures: dict[str, Callable[[np.ndarray, np.ndarray, int], Estimate | None]] = {
        "vendi": lambda drawn, real, s: vendi_ratio(drawn, real, seed=s),
        "pairwise": lambda drawn, real, s: ratio(pairwise_distance(drawn, seed=s), pairwise_distance(real, seed=s + 1)),
        "coverage": lambda drawn, real, s: (
            coverage(drawn, real, seed=s).ratio if len(real) >= FEWEST_FOR_COVERAGE else None
        ),
    }
    scores = {}
    for name, measure in measures.items():
        found = [
            measure(images.features(subject, asked), learning.held_out[caption], prompt_seed(seed, place))
            for place, (caption, asked) in enumerate(learning.asked.items())
        ]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            scores[name] = Score.none(f"fewer than {FEWEST_FOR_COVERAGE} held-out images of a caption")
        else:
            scores[name] = Score.of(mean_over_prompts(known, seed=seed), learning.extractor_id)
    return scores


def described(
    subject: Subject, images: Images, learning: Learning, real: RealImages, model: int, *, seed: int
) -> tuple[list[Described], str]:
    """Return the physical descriptors of a model's slices by caption; and why not, where they cannot be had."""
    found = []
    for caption, asked in learning.asked.items():
        drawn = images.pictures(subject, asked)
        training, held_out, generated = (
            each.mean(-1) for each in (real.training[caption], real.held_out[caption], drawn)
        )
        try:
            comparison = compare_slices(training, held_out, generated, um_per_px=real.um_per_px, seed=seed)
        except DataError as error:
            return [], " ".join(error.problems)
        for name, one in comparison.items():
            found.append(
                Described(
                    model,
                    asked,
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
            )
    return found, ""


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
