"""What is measured of a model's images as a whole: which classes a classifier names, spectra and tones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from data.whole_images import WholeImage, WholeImages
from pipelines.evaluation.grid import Arm, Asked
from pipelines.evaluation.measuring import (
    Images,
    Learning,
    Subject,
    class_coverage_score,
    confusion,
    learning_scores,
    lying_between,
    profiles,
    what_is_learnt,
)
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.states import State
from pipelines.metrics.learnt import Learnt, RealSets

SIZE, COUNT = 16, 24
RED, GREEN = "a red one", "a green one"
COLOURS = {RED: (0.8, 0.2, 0.2), GREEN: (0.2, 0.8, 0.2)}
BASE = Subject(Arm("base", None, 1.0, "base"), 0)
TUNED = Subject(Arm("lora", State(10, None), 1.0, "base"), 0)
ASKED = {RED: 0, GREEN: 1}
CLASS_WORDS = (2, 3)


@dataclass(frozen=True)
class MeanColour:
    """Features that are the mean of each channel."""

    extractor_id: str = "mean colour"

    def extract(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.mean((1, 2)).astype(np.float64)


class Drawn(Images):
    """Images that are given, by model and prompt, in place of a store's."""

    def __init__(self, by_place: Mapping[tuple[Subject, int], np.ndarray]) -> None:
        self._by_place = by_place
        self.extractor = MeanColour()

    def pictures(self, subject: Subject, asked: int, *, floor: bool = False) -> np.ndarray:
        assert not floor
        return self._by_place[subject, asked]

    def features(self, subject: Subject, asked: int, *, floor: bool = False) -> np.ndarray:
        return self.extractor.extract(self.pictures(subject, asked, floor=floor))

    def base_of(self, subject: Subject) -> Subject:
        return Subject(BASE.arm, subject.place)


def _unread(place: int) -> WholeImage:
    raise AssertionError(place)


NO_WHOLE = WholeImages(0, _unread)


def of_colour(caption: str, count: int = COUNT, seed: int = 1, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.05, (count, size, size, 3)) + rng.normal(0, 0.03, (count, 1, 1, 3))
    return np.clip(np.array(COLOURS[caption]) + noise, 0, 1).astype(np.float32)


def real(captions: tuple[str, ...] = (RED, GREEN), *, are_slices: bool = False) -> RealImages:
    training, held_out = ({c: of_colour(c, seed=seed + len(c)) for c in captions} for seed in (10, 40))
    return RealImages(training, held_out, NO_WHOLE, "", None, are_slices)


def learning(images: RealImages) -> Learning:
    extractor = MeanColour()
    training, held_out = (
        {c: extractor.extract(each) for c, each in group.items()} for group in (images.training, images.held_out)
    )
    noise = {c: np.tile([0.2, 0.2, 0.8], (4, 1)) for c in training}
    sets = RealSets(training, held_out, training, noise, extractor.extractor_id)
    return Learning({c: ASKED[c] for c in images.training}, images, sets)


def known(drawn: Drawn, images: RealImages) -> Learnt:
    found = what_is_learnt(TUNED, drawn, learning(images), seed=0)
    assert found is not None
    return found


@pytest.fixture
def drawn() -> Drawn:
    """A model that draws green for three of its reds; for the class words, the base draws both, the model green."""
    reds = np.concatenate([of_colour(RED, COUNT - 3), of_colour(GREEN, 3)])
    return Drawn(
        {
            (TUNED, 0): reds,
            (TUNED, 1): of_colour(GREEN),
            (BASE, 0): of_colour(GREEN, seed=7),
            (BASE, 1): of_colour(RED, seed=8),
            (BASE, 2): of_colour(RED, 12),
            (BASE, 3): of_colour(GREEN, 12),
            (TUNED, 2): of_colour(GREEN, 12),
            (TUNED, 3): of_colour(GREEN, 12, seed=3),
        }
    )


def test_a_confusion_counts_what_is_named_by_what_was_asked(drawn: Drawn) -> None:
    found = confusion(known(drawn, real()), "mean colour", 4)
    assert found.model == 4
    assert found.classes == (GREEN, RED)
    counts = np.array(found.counts)
    assert counts.sum(1).tolist() == [COUNT, COUNT]
    assert counts[1, 0] in (2, 3)  # of its three greens one in twenty may be called none of these
    assert counts[0, 1] == 0
    assert found.accuracy.value == pytest.approx((counts[0, 0] + counts[1, 1]) / (2 * COUNT))
    assert found.real_accuracy.value == 1
    assert found.accuracy.num_images == 2 * COUNT
    assert found.accuracy.extractor == "mean colour"


def test_held_out_images_are_counted_under_their_own_class(drawn: Drawn) -> None:
    images = real()
    images.held_out[RED][:5] = of_colour(GREEN, 5)
    found = confusion(known(drawn, images), "mean colour", 4)
    assert found.real_counts[0][1] == found.real_counts[1][1] == COUNT
    assert found.real_counts[1][0] <= COUNT - 5 + 1


def test_the_scores_of_what_was_learnt_stand_beside_what_real_pictures_give(drawn: Drawn) -> None:
    scores = learning_scores(known(drawn, real()), TUNED, drawn, learning(real()), seed=0)
    assert scores["right_caption"].floor == 0.5
    assert scores["right_caption"].value == confusion(known(drawn, real()), "x", 4).accuracy.value
    assert scores["rung"].value == 4  # three greens among 24 reds are not seen at this number
    assert scores["rung"].words == known(drawn, real()).standing.words
    assert scores["times"].words.startswith("base ")
    for name in ("density", "coverage", "told"):
        assert scores[name].floor is not None
    assert "tint" not in scores  # of slices alone
    sliced = learning_scores(known(drawn, real()), TUNED, drawn, learning(real(are_slices=True)), seed=0)
    assert sliced["tint"].value == pytest.approx(0.6, abs=0.15)


def test_class_coverage_stands_beside_that_of_the_base(drawn: Drawn) -> None:
    score = class_coverage_score(TUNED, drawn, learning(real()), CLASS_WORDS, seed=0)["class_coverage"]
    assert score.value == 0
    assert score.floor == pytest.approx(1)
    assert score.num_images == 24
    both = class_coverage_score(BASE, drawn, learning(real()), CLASS_WORDS[:1], seed=0)["class_coverage"]
    assert both.floor == both.value == 0


def test_images_are_placed_between_the_real_images_of_two_captions() -> None:
    """Of 24 images, 18 red and 6 green: a quarter of the way from red to green."""
    mixed = np.concatenate([of_colour(RED, 18, 5), of_colour(GREEN, 6, 6)])
    drawn = Drawn({(TUNED, 0): mixed, (TUNED, 1): mixed, (TUNED, 2): mixed, (TUNED, 3): mixed[:0]})
    asked = [
        Asked(text, text, Prompt(text, "s", between=between), None, frozenset())
        for text, between in (("a", (RED, GREEN)), ("b", (RED, "a blue one")), ("c", None), ("d", (RED, GREEN)))
    ]
    (found,), missing = lying_between(TUNED, drawn, asked, real(), 4, seed=0)
    assert (found.model, found.prompt, found.one, found.other) == (4, 0, RED, GREEN)
    assert found.share.value == pytest.approx(0.25, abs=0.03)
    assert found.share.words.startswith("a mixture")
    assert found.mixed.value == pytest.approx(1, abs=0.15)
    assert found.share.num_images == COUNT
    assert [len(each) for each in found.places] == [2 * COUNT, COUNT, 2 * COUNT]
    assert missing == ["'b' is not placed: there are no real images of a blue one."]


def test_one_caption_has_no_classes_to_tell_apart(drawn: Drawn) -> None:
    alone = learning(real((RED,)))
    assert class_coverage_score(TUNED, drawn, alone, CLASS_WORDS, seed=0) == {}
    assert class_coverage_score(TUNED, drawn, learning(real()), (), seed=0) == {}
    found = known(drawn, real((RED,)))
    assert found.naming.chance == 0.5  # it is there, or it is not
    assert found.naming.right.value == pytest.approx((COUNT - 3) / COUNT, abs=0.1)


def test_profiles_hold_generated_images_against_held_out_ones(drawn: Drawn) -> None:
    found, left_out = profiles(TUNED, drawn, learning(real()), real(), 4, seed=0)
    assert left_out == ""
    by_name = {one.name: one for one in found}
    assert list(by_name) == ["spectrum", "grey", "red", "green", "blue"]
    assert len(by_name["spectrum"].x) == SIZE // 2
    assert {one.model for one in found} == {4}
    assert by_name["red"].generated.num_images == COUNT
    # a half of the real images is red at 0.8; three in 48 fewer of the generated ones are
    x = np.array(by_name["red"].x)
    shares = [float(np.sum(np.array(c.value)[x > 0.5])) for c in (by_name["red"].real, by_name["red"].generated)]
    assert shares == pytest.approx([0.5, 0.5 - 3 / 48], abs=1e-3)


def test_slices_have_greys_and_no_colours(drawn: Drawn) -> None:
    found, _ = profiles(TUNED, drawn, learning(real()), real(are_slices=True), 4, seed=0)
    assert [one.name for one in found] == ["spectrum", "grey"]


def test_spectra_of_other_sizes_are_left_out_and_it_is_said(drawn: Drawn) -> None:
    images = real()
    larger = replace(images, held_out={c: of_colour(c, size=32) for c in COLOURS})
    found, left_out = profiles(TUNED, drawn, learning(images), larger, 4, seed=0)
    assert [one.name for one in found] == ["grey", "red", "green", "blue"]
    assert left_out == "images are not of the size of its held-out images, so spectra are not compared."
