"""What a model has forgotten, on the prompts of three rings: its noise predictions and its images beside the base's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler

from data.json_files import parsed
from pipelines.evaluation.grid import Arm
from pipelines.evaluation.measuring import Images, Subject
from pipelines.evaluation.opener import PipelineOpener
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.prompt_sets import RINGS
from pipelines.evaluation.result import Drifted, Score
from pipelines.metrics.colour import colour_retention
from pipelines.metrics.estimates import difference
from pipelines.metrics.forgetting import (
    DriftParts,
    DriftPoints,
    PriorDistance,
    drift_parts,
    drift_points,
    paired_drift,
    predicted_noise,
    prior_distance,
    prior_likeness,
)
from pipelines.metrics.heads import fit_leak_head, leak_rate
from pipelines.whole_files import write_text


class Rings:
    """The rings of forgetting prompts: the images of base and model, and the noise predictions at common points."""

    def __init__(
        self,
        plan: Plan,
        images: Images,
        *,
        place: int,
        base: Arm,
        num_timesteps: int,
        images_per_prompt: int,
        seed: int,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        """base: whose images stand for the prior. images_per_prompt: at which noise is predicted, at most.

        progress: called with the number of images at which noise has been predicted.
        """
        self._plan, self._images, self._seed = plan, images, seed
        self.base = Subject(base, place)
        self.asked = {
            number: question
            for number, question in enumerate(plan.asked)
            if question.prompt.ring is not None and (base, place, number) in images.cells
        }
        self._num_timesteps, self._images_per_prompt = num_timesteps, images_per_prompt
        self._predicted: np.ndarray | None = None
        self._progress = progress
        self._priors: dict[Subject, PriorDistance] = {}

    def __bool__(self) -> bool:
        return bool(self.asked)

    def of_ring(self, ring: int | None) -> list[int]:
        """Return the prompts of a ring, or of all."""
        return [number for number, question in self.asked.items() if ring in (None, question.prompt.ring)]

    @cached_property
    def points(self) -> DriftPoints:
        """Where noise predictions are compared."""
        components = self._plan.bases[self.base.arm.base].components
        pictures = {
            _unique(number, question.base_text): self._images.pictures(self.base, number)[: self._images_per_prompt]
            for number, question in self.asked.items()
        }
        return self._texts(drift_points(pictures, components, num_timesteps=self._num_timesteps, seed=self._seed))

    def drift(self, subject: Subject, opener: PipelineOpener, cache: Path) -> DriftParts:
        """Return the sums behind the drift of a model, from the cache where they are known."""
        key = self._cache_key(subject)
        path = cache / f"{key}.json"
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # else it is predicted again
            said = parsed(path.read_bytes())
            return DriftParts(*({k: np.array(v) for k, v in said[name].items()} for name in ("changes", "errors")))
        base = self._plan.bases[self.base.arm.base].components
        if self._predicted is None:
            self._predicted = predicted_noise(base, self.points, progress=self._progress)
        pipeline = opener.open(subject.arm)
        tuned = replace(
            base,
            unet=pipeline.unet,
            text_encoder=pipeline.text_encoder,
            tokenizer=pipeline.tokenizer,
            scheduler=DDPMScheduler.from_config(pipeline.scheduler.config),  # it may predict v, the base not
        )
        parts = drift_parts(predicted_noise(tuned, self.points, progress=self._progress), self._predicted, self.points)
        content = {
            name: {prompt: each.tolist() for prompt, each in group.items()}
            for name, group in (("changes", parts.changes), ("errors", parts.errors))
        }
        write_text(path, json.dumps(content) + "\n")
        return parts

    def _texts(self, points: DriftPoints) -> DriftPoints:
        """Give the points the prompts as they are asked; two prompts of one text were kept apart by their numbers."""
        return replace(points, prompts=tuple(prompt.partition("\0")[2] for prompt in points.prompts))

    def _cache_key(self, subject: Subject) -> str:
        content = [
            self._plan.digests[subject.arm],
            subject.arm.weight,
            self._plan.bases[self.base.arm.base].identity,
            self._num_timesteps,
            self._seed,
            [
                [
                    question.base_text,
                    *(self._plan.key(c) for c in self._images.cells[self.base.arm, self.base.place, n]),
                ]
                for n, question in self.asked.items()
            ],
            self._images_per_prompt,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:40]

    def prior(self, subject: Subject) -> PriorDistance:
        """Return how far a model's images have gone from the base's."""
        if subject not in self._priors:
            tuned, base, other = self._by_prompt(subject, self.of_ring(None))
            extractor_id = self._images.extractor.extractor_id
            self._priors[subject] = prior_distance(tuned, base, other, extractor_id=extractor_id, seed=self._seed)
        return self._priors[subject]

    def scores(self, subject: Subject, drift: DriftParts, concept: np.ndarray | None, seen: Images) -> dict[str, Score]:
        """Return all scores of forgetting.

        concept: features of real images of what was learnt, by the extractor of `seen`; None where there are none.
        """
        extractor_id = self._images.extractor.extractor_id
        scores = {"drift": self._drift_score(drift, None)}
        for ring, name in enumerate(RINGS):
            if self.of_ring(ring):
                scores[f"drift_{name}"] = self._drift_score(drift, ring)
        tuned, base, _ = self._by_prompt(subject, self.of_ring(None))
        paired = paired_drift(tuned, base, extractor_id=extractor_id, seed=self._seed)
        scores["paired"] = (
            Score.none("the base draws one image for all seeds")
            if paired.relative is None
            else Score.of(paired.relative, extractor_id)
        )
        prior = self.prior(subject)
        words = "farther from the base than chance takes it" if prior.has_moved else "no farther than base from base"
        scores["prior"] = Score.of(prior.distance, extractor_id, words, prior.limit)
        scores |= self._colour(subject)
        return scores if concept is None or len(concept) < 4 else scores | self._of_concept(subject, concept, seen)

    def _of_concept(self, subject: Subject, concept: np.ndarray, seen: Images) -> dict[str, Score]:
        """Return how much of the concept is in the images of unrelated prompts, and of the class word."""
        extractor_id, scores = seen.extractor.extractor_id, {}

        def features(of: Subject, ring: int, *, floor: bool = False) -> np.ndarray:
            return np.concatenate([seen.features(of, number, floor=floor) for number in self.of_ring(ring)])

        if self.of_ring(2) and len(other := features(self.base, 2, floor=True)) >= 4:
            head = fit_leak_head(concept, other, extractor_id=extractor_id, seed=self._seed)
            leak = leak_rate(head, features(subject, 2), features(self.base, 2), seed=self._seed)
            scores["leak"] = Score.of(leak.excess, extractor_id, f"{leak.tuned.value:.0%}, base {leak.base.value:.0%}")
        if self.of_ring(0):
            tuned, base = (prior_likeness(features(s, 0), concept, seed=self._seed) for s in (subject, self.base))
            scores["likeness"] = Score.of(difference(tuned, base), extractor_id)
        return scores

    def drifted(self, subject: Subject, model: int) -> list[Drifted]:
        """Return every pair of images of base and model with its distance, the farthest first."""
        tuned, base, _ = self._by_prompt(subject, self.of_ring(None))
        distances = paired_drift(tuned, base, extractor_id="", seed=self._seed).distances
        found = []
        for number in self.of_ring(None):
            cells = self._images.cells
            of_model, of_base = cells[subject.arm, subject.place, number], cells[self.base.arm, self.base.place, number]
            for one, other, distance in zip(of_model, of_base, distances[str(number)], strict=True):
                found.append(
                    Drifted(model, number, one.seed, self._plan.key(other), self._plan.key(one), float(distance))
                )
        return sorted(found, key=lambda pair: -pair.distance)

    def _drift_score(self, parts: DriftParts, ring: int | None) -> Score:
        texts = list(dict.fromkeys(self.asked[number].base_text for number in self.of_ring(ring)))
        return Score.of(parts.estimate(texts, seed=self._seed), "noise predictions of the U-Net")

    def _colour(self, subject: Subject) -> dict[str, Score]:
        numbers = self.of_ring(2)
        if not numbers:
            return {}
        retention = colour_retention(
            [self._images.pictures(subject, n) for n in numbers],
            [self._images.pictures(self.base, n) for n in numbers],
            [self._images.pictures(self.base, n, floor=True) for n in numbers],
            seed=self._seed,
        )
        if retention.saturation is None:
            return {"saturation": Score.none("the base draws these in grey")}
        said = {"lower": "less colour than the base", "higher": "more colour than the base"}
        return {"saturation": Score.of(retention.saturation, "HSV saturation", said.get(retention.verdict or "", ""))}

    def _by_prompt(self, subject: Subject, numbers: Iterable[int]) -> tuple[dict[str, np.ndarray], ...]:
        found: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
        for number in numbers:
            for group, of, floor in zip(found, (subject, self.base, self.base), (False, False, True), strict=True):
                group[str(number)] = self._images.features(of, number, floor=floor)
        return found


def _unique(number: int, text: str) -> str:
    return f"{number}\0{text}"
