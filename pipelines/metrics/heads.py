"""Classifiers fitted on labelled real images: which class, how evenly classes are drawn, where a concept leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from data.randomness import generator
from pipelines.metrics.classifiers import Classifier, NearestCentroid, NearestNeighbours, ShrinkageLDA
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import share, written
from pipelines.metrics.inputs import check_widths, checked_features


@dataclass(frozen=True)
class Labelled:
    """Features (N, D) with one label of one attribute each: the state, the view, the class."""

    features: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, by_label: Mapping[str, np.ndarray]) -> Labelled:
        """Return the features of every label, (N_label, D) each, one after another."""
        groups = [checked_features(features, label) for label, features in by_label.items()]
        check_widths(**dict(zip(by_label, groups, strict=True)))
        return cls(np.concatenate(groups), np.repeat(list(by_label), [len(group) for group in groups]))


@dataclass(frozen=True)
class Head:
    """A classifier of one attribute: the best of several on real images that it was not fitted on.

    kind: which one it is. candidates: balanced accuracy of every kind on held-out images.
    """

    kind: str
    classifier: Classifier
    candidates: Mapping[str, float]
    extractor_id: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels it knows, sorted."""
        return tuple(str(label) for label in self.classifier.labels)


def fit_head(attribute: str, training: Labelled, held_out: Labelled, *, extractor_id: str) -> Head:
    """Return the classifier of an attribute that errs least on held-out real images.

    Candidates, the first at a tie: linear discriminants with shrinkage, nearest centroid, three nearest neighbours.
    Raises DataError for one class only, a held-out label that is not among the training labels, and bad features.
    """
    known, asked = np.unique(training.labels), np.unique(held_out.labels)
    problems = []
    if len(known) < 2:
        problems.append(f"found the one label {', '.join(known) or '(none)'}, expected two or more to tell apart.")
    unknown = sorted(set(asked) - set(known))
    if unknown:
        problems.append(f"held-out images have labels that no training image has: {', '.join(unknown)}.")
    if problems:
        raise DataError(f"labels of {attribute}", *problems)
    features = checked_features(training.features, f"training images of {attribute}", at_least=2)
    judged = checked_features(held_out.features, f"held-out images of {attribute}")
    check_widths(training=features, held_out=judged)
    fitted: dict[str, Classifier] = {}
    if any(len(np.unique(features[training.labels == label], axis=0)) > 1 for label in known):
        fitted["linear discriminants"] = ShrinkageLDA.fit(features, training.labels)
    fitted["nearest centroid"] = NearestCentroid.fit(features, training.labels)
    fitted["three nearest neighbours"] = NearestNeighbours.fit(features, training.labels)
    right = {kind: each.predict(judged) == held_out.labels for kind, each in fitted.items()}
    candidates = {name: _balanced(hits, held_out.labels) for name, hits in right.items()}
    kind = max(candidates, key=lambda name: candidates[name])
    return Head(
        kind=kind,
        classifier=fitted[kind],
        candidates=candidates,
        extractor_id=extractor_id,
    )


def _balanced(hits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def posterior_entropy(posterior: np.ndarray) -> np.ndarray:
    """Return the entropy of each row of probabilities (N, K) over ln K, (N,): 0 is certain, 1 all classes alike."""
    logs = np.log(posterior, out=np.zeros_like(posterior), where=posterior > 0)
    return np.asarray(-(posterior * logs).sum(1) / np.log(posterior.shape[1]))


def class_coverage(head: Head, features: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the entropy of the classes named in images of a prompt without any, over ln K: 1 is all as often.

    features: (N, D), images of "a texture", say. Resampled over images, with the entropy's bias of
    (classes - 1) / 2 N nats left in (G. Miller 1955).
    """
    features = checked_features(features, "class coverage")
    named = head.classifier.predict(features)[:, None] == head.classifier.labels

    def entropy(counts: np.ndarray) -> np.ndarray:
        return posterior_entropy((counts @ named) / counts.sum(1, keepdims=True))

    return bootstrap_interval(entropy, [len(features)], seed=seed)


@dataclass(frozen=True)
class Leak:
    """The share of images of unrelated prompts that are taken for the concept.

    tuned, base: of their images, same prompts and seeds. excess: tuned - base, paired by image.
    """

    tuned: Estimate
    base: Estimate
    excess: Estimate
    extractor_id: str

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "tuned": written(self.tuned),
            "base": written(self.base),
            "excess": written(self.excess),
            "extractor": self.extractor_id,
        }


CONCEPT, NOT_THE_CONCEPT = "the concept", "not the concept"


def fit_leak_head(concept: np.ndarray, unrelated: np.ndarray, *, extractor_id: str, seed: int = 0) -> Head:
    """Return the head that tells the concept's real images from the base's images of unrelated prompts.

    concept: features (N, D) of real images. unrelated: features (M, D) of base images of the ring's prompts, with
    seeds other than those that are then judged. Fitted on a random half of each and chosen on the other half.
    Raises DataError for fewer than four images in a set.
    """
    halves: list[dict[str, np.ndarray]] = [{}, {}]
    for name, features in ((CONCEPT, concept), (NOT_THE_CONCEPT, unrelated)):
        rows = checked_features(features, name, at_least=4)
        order = generator(seed, "leak", len(rows)).permutation(len(rows))
        for half, part in zip(halves, np.array_split(order, 2), strict=True):
            half[name] = rows[part]
    return fit_head("leak", Labelled.of(halves[0]), Labelled.of(halves[1]), extractor_id=extractor_id)


def leak_rate(
    head: Head, tuned: np.ndarray, base: np.ndarray, *, concept: Sequence[str] = (CONCEPT,), seed: int = 0
) -> Leak:
    """Return the share of images of unrelated prompts that the head calls the concept, for the tuned and base model.

    tuned, base: features (N, D), same prompts and seeds in the same order. concept: the labels that are the concept.
    Raises DataError for sets of different sizes.
    """
    tuned, base = checked_features(tuned, "tuned images"), checked_features(base, "base images")
    check_widths(tuned=tuned, base=base)
    if len(tuned) != len(base):
        raise DataError("leak rate", f"found {len(tuned)} tuned and {len(base)} base images, expected as many.")
    is_concept = [np.isin(head.classifier.predict(each), list(concept)) for each in (tuned, base)]
    excess = is_concept[0].astype(float) - is_concept[1]
    return Leak(
        tuned=share(is_concept[0], seed=seed, purpose="tuned leak"),
        base=share(is_concept[1], seed=seed, purpose="base leak"),
        excess=_mean(excess, seed),
        extractor_id=head.extractor_id,
    )


def _mean(scores: np.ndarray, seed: int) -> Estimate:
    return bootstrap_interval(lambda counts: counts @ scores / counts.sum(1), [len(scores)], seed=seed)
