"""Classifiers of the user's own images: closed forms, the choice among them, and generated images of another class."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import stats

from data.errors import DataError
from pipelines.metrics.classifiers import NearestCentroid, NearestNeighbours, ShrinkageLDA, shrunk_covariance
from pipelines.metrics.distances import unit_vectors
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.heads import (
    CONCEPT,
    Labelled,
    class_coverage,
    fit_head,
    fit_leak_head,
    leak_rate,
    posterior_entropy,
)
from tests.planted import directions, textures


def test_the_shrinkage_is_that_of_an_explicit_loop() -> None:
    """Ledoit and Wolf 2004: b^2 = 1/n^2 sum |x x' - S|^2, d^2 = |S - m 1|^2, norms over the width."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 5)) * [1, 2, 3, 1, 1]
    rows -= rows.mean(0)
    sample = rows.T @ rows / 12
    mean = np.trace(sample) / 5
    apart = ((sample - mean * np.eye(5)) ** 2).sum() / 5
    error = sum(((np.outer(x, x) - sample) ** 2).sum() / 5 for x in rows) / 12**2
    covariance, shrinkage = shrunk_covariance(rows)
    assert shrinkage == pytest.approx(error / apart)
    assert 0 < shrinkage < 1
    np.testing.assert_allclose(
        covariance, (1 - shrinkage) * sample + shrinkage * mean * np.eye(5), rtol=1e-6, atol=1e-8
    )


def test_many_samples_are_hardly_shrunk_and_few_nearly_wholly() -> None:
    rng = np.random.default_rng(1)
    spread = np.array([1, 2, 4, 1])
    assert shrunk_covariance(rng.normal(size=(5000, 4)) * spread)[1] < 0.01
    assert shrunk_covariance(rng.normal(size=(3, 60)))[1] > 0.5


def test_the_posterior_is_that_of_normal_laws_of_the_shrunk_covariance() -> None:
    rng = np.random.default_rng(2)
    features = np.concatenate([directions(rng, 20, mean, 0.2) for mean in ([1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1])])
    labels = np.repeat(["a", "b", "c"], 20)
    lda = ShrinkageLDA.fit(features, labels)
    units = unit_vectors(features)
    means = [units[labels == label].mean(0) for label in "abc"]
    covariance, _ = shrunk_covariance(units - np.repeat(means, 20, axis=0))
    densities = np.stack([stats.multivariate_normal(mean, covariance).pdf(units) for mean in means], axis=1)
    np.testing.assert_allclose(lda.posterior(features), densities / densities.sum(1, keepdims=True), atol=1e-6)
    assert (lda.predict(features) == lda.labels[densities.argmax(1)]).all()


def test_discriminants_see_what_the_centroids_miss() -> None:
    """Two classes that differ little along a quiet number, beside a loud one that says nothing."""
    rng = np.random.default_rng(3)

    def drawn(offset: float) -> np.ndarray:
        loud, quiet = rng.normal(0, 1, 200), rng.normal(offset, 0.02, 200)
        return np.stack([np.full(200, 3.0), loud, quiet], axis=1)

    training, held_out = ([drawn(offset) for offset in (0.0, 0.2)] for _ in range(2))
    of = lambda pair: Labelled.of({"a": pair[0], "b": pair[1]})  # noqa: E731
    head = fit_head("state", of(training), of(held_out), extractor_id="x")
    assert head.kind == "linear discriminants"
    assert head.candidates["linear discriminants"] > 0.95 > head.candidates["nearest centroid"]


def test_the_neighbours_are_chosen_where_a_class_has_two_places() -> None:
    rng = np.random.default_rng(4)

    def drawn() -> Labelled:
        a = np.concatenate([directions(rng, 20, [1, 0], 0.1), directions(rng, 20, [-1, 0], 0.1)])
        b = np.concatenate([directions(rng, 20, [0, 1], 0.1), directions(rng, 20, [0, -1], 0.1)])
        return Labelled.of({"a": a, "b": b})

    head = fit_head("place", drawn(), drawn(), extractor_id="x")
    assert head.kind == "three nearest neighbours"
    assert head.candidates[head.kind] == 1


def test_three_neighbours_vote_and_the_nearest_decides_between_three() -> None:
    angles = np.array([0.0, 0.1, 0.5, 1.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    voting = NearestNeighbours.fit(features, ["b", "a", "a", "c"])
    assert voting.predict(features[:1]).tolist() == ["a"]  # b itself, and twice a
    np.testing.assert_allclose(voting.posterior(features[:1]), [[2 / 3, 1 / 3, 0]])
    tied = NearestNeighbours.fit(features[[0, 2, 3]], ["c", "b", "a"])
    assert tied.predict(np.array([[1.0, 0.05]])).tolist() == ["c"]
    assert NearestNeighbours.fit(features[:2], ["a", "b"]).k == 2


def test_the_posterior_of_centroids_is_even_half_way_and_sure_at_one() -> None:
    classifier = NearestCentroid.fit(
        np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]]), ["warp", "warp", "weft", "weft"]
    )
    found = classifier.posterior(np.array([[1.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(found[0], [0.5, 0.5])
    assert found[1, 0] > 0.99


def test_the_entropy_runs_from_certain_to_all_alike() -> None:
    rows = np.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
    np.testing.assert_allclose(posterior_entropy(rows), [0, 1, np.log(2) / np.log(3)])


CLASSES = ("banded", "bubbly", "zigzagged")


@cache
def features(name: str, start: int) -> np.ndarray:
    return TextureStatistics.fitting(64).extract(textures(name, 20, start))


def labelled(start: int, asked: tuple[str, ...] = CLASSES, drawn: tuple[str, ...] = CLASSES) -> Labelled:
    """Images of classes as they are drawn, labelled as they were asked for."""
    return Labelled(np.concatenate([features(name, start) for name in drawn]), np.repeat(asked, 20))


@cache
def head() -> object:
    return fit_head("class", labelled(0), labelled(20), extractor_id="texstat")


def test_all_classes_as_often_are_covered_and_a_single_one_is_not() -> None:
    every = class_coverage(head(), labelled(40).features)  # type: ignore[arg-type]
    assert every.value > 0.95
    one = class_coverage(head(), features("bubbly", 40))  # type: ignore[arg-type]
    assert one.high < 0.5


def test_a_concept_that_leaks_into_unrelated_prompts_is_counted() -> None:
    detector = fit_leak_head(
        features("zigzagged", 0),
        np.concatenate([features("bubbly", 0), features("marbled", 0)]),
        extractor_id="texstat",
    )
    base = np.concatenate([features("bubbly", 40), features("marbled", 40)])
    leaking = np.concatenate([features("zigzagged", 40)[:15], base[15:]])
    found = leak_rate(detector, leaking, base)
    assert found.tuned.value == pytest.approx(15 / 40, abs=0.06)
    assert found.base.value < 0.06
    assert found.excess.low > 0.15
    nothing = leak_rate(detector, base, base)
    assert (nothing.excess.low, nothing.excess.high) == (0, 0)
    assert CONCEPT in detector.classes


@pytest.mark.parametrize(
    ("training", "held_out", "message"),
    [
        ({"a": np.eye(3)}, {"a": np.eye(3)}, "found the one label a"),
        ({"a": np.eye(3), "b": np.eye(3)}, {"c": np.eye(3)}, "no training image has: c"),
        ({"a": np.eye(3), "b": np.eye(3)}, {"a": np.eye(2)}, "training 3, held_out 2"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(training: dict, held_out: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_head("state", Labelled.of(training), Labelled.of(held_out), extractor_id="x")


@pytest.mark.parametrize("bad", [np.empty((0, 3)), np.full((2, 3), np.nan), np.zeros((2, 3))])
def test_features_that_are_none_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"found 0 images|not finite|length zero"):
        Labelled.of({"a": bad})


def test_prompts_and_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="20 tuned and 60 base images"):
        leak_rate(head(), features("bubbly", 40), labelled(40).features)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the concept: found 3 images, expected at least 4"):
        fit_leak_head(np.eye(3), np.eye(4), extractor_id="x")


def test_one_image_of_each_class_leaves_no_spread_for_discriminants() -> None:
    single = Labelled.of({"a": np.eye(3)[:1], "b": np.eye(3)[1:2]})
    assert set(fit_head("state", single, single, extractor_id="x").candidates) == {
        "nearest centroid",
        "three nearest neighbours",
    }
