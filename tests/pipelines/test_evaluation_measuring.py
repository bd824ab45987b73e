"""What is measured of a model's images as a whole: which classes a classifier names, spectra and tones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from data.whole_images import WholeImage, WholeImages
from pipelines.evaluation import measuring
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
)
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.states import State
from pipelines.metrics.distances import Estimate

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
    return Learning({c: ASKED[c] for c in images.training}, training, held_out, extractor.extractor_id)


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
    found = confusion(TUNED, drawn, learning(real()), 4, seed=0)
    assert found is not None
    assert found.model == 4
    assert found.classes == (GREEN, RED)
    assert found.counts == ((COUNT, 0), (3, COUNT - 3))
    assert found.real_counts == ((COUNT, COUNT), (COUNT, COUNT))
    assert found.accuracy.value == pytest.approx((2 * COUNT - 3) / (2 * COUNT))
    assert found.real_accuracy.value == 1
    assert found.accuracy.num_images == 2 * COUNT
    assert found.accuracy.extractor == "mean colour"


def test_held_out_images_are_counted_under_their_own_class(drawn: Drawn) -> None:
    images = real()
    images.held_out[RED][:5] = of_colour(GREEN, 5)
    found = confusion(TUNED, drawn, learning(images), 4, seed=0)
    assert found is not None
    assert found.real_counts == ((COUNT, COUNT), (COUNT - 5, COUNT))


def test_adherence_stands_beside_what_chance_gives(drawn: Drawn) -> None:
    """One of two captions by chance, over the share of real images that the classifier names."""
    images = real()
    images.held_out[RED][:5] = of_colour(GREEN, 5)
    scores, _ = learning_scores(TUNED, drawn, learning(images), seed=0)
    assert scores["adherence"].floor == pytest.approx(0.5 / ((2 * COUNT - 5) / (2 * COUNT)))


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
    assert found.share.words == "between the two; nearer to the first"
    assert found.share.num_images == COUNT
    assert [len(each) for each in found.places] == [2 * COUNT, COUNT, 2 * COUNT]
    assert missing == ["'b' is not placed: there are no real images of a blue one."]


@pytest.mark.parametrize(
    ("low", "high", "alike", "said"),
    [
        (-0.5, -0.1, [False], "farther from the real images than the base model"),
        (-0.1, 0.4, [True], "inconclusive: the interval holds the base model's value"),
        (0.2, 0.9, [False, False], "nearer to the real images than the base model"),
        (0.2, 1.1, [True, False], "nearer to the real images than the base model"),
        (0.8, 1.1, [True, True], "not told apart from the real images, at this number of images"),
    ],
)
def test_a_mean_skill_is_as_near_as_real_only_where_every_caption_is(
    low: float, high: float, alike: list[bool], said: str
) -> None:
    """One caption far from real ones makes the interval of the mean wide, which is no reason to call it real."""
    assert measuring._skill_words(Estimate((low + high) / 2, np.linspace(low, high, 1001), 20), alike).startswith(said)


def test_one_caption_has_no_classes_to_tell_apart(drawn: Drawn) -> None:
    alone = learning(real((RED,)))
    assert confusion(TUNED, drawn, alone, 4, seed=0) is None
    assert class_coverage_score(TUNED, drawn, alone, CLASS_WORDS, seed=0) == {}
    assert class_coverage_score(TUNED, drawn, learning(real()), (), seed=0) == {}
    scores, _ = learning_scores(TUNED, drawn, alone, seed=0)
    assert scores["adherence"].words == "one caption only: nothing to tell apart"


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
