"""Runs of the same images share one search of all of them; others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.whole_images import WholeImage, WholeImages
from pipelines.evaluation.copies import Copies, Searches
from pipelines.evaluation.real_images import RealImages, images_hash
from tests.planted import textures


def _whole(pictures: np.ndarray) -> WholeImages:
    return WholeImages(
        len(pictures), lambda place: WholeImage(pictures[place].transpose(2, 0, 1) * 2 - 1, "a", f"picture {place}")
    )


def test_a_search_is_made_once_for_the_same_images() -> None:
    pictures = textures("bubbly", 8)
    searches = Searches(100)
    real = RealImages({"a": pictures[:3]}, {"a": pictures[5:]}, _whole(pictures[:5]), "x", None, are_slices=False)
    search = searches.of(real, (64, 64))
    assert len(search.index) == search.num_training == 5  # also those that nothing else is measured with
    assert search.words == "copies were searched in all 5 training images, at every place of each"
    np.testing.assert_allclose(search.pictures[3], pictures[3], atol=1e-6)
    assert search.pictures.place(3, (4, 5)) == "picture 3 @ (4, 5) px"
    assert searches.of(replace(real, held_out={}), (64, 64)) is search
    assert searches.of(replace(real, images_hash="y"), (64, 64)) is not search
    assert searches.of(real, (32, 32)) is not search


def test_a_real_image_is_searched_for_once_under_any_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = textures("bubbly", 9)
    real = RealImages({"a": pictures[:3]}, {}, _whole(pictures[:5]), "x", None, are_slices=False)
    search = Searches(100).of(real, (64, 64))
    expected = search.index.nearest(pictures[5:])
    searched: list[int] = []
    nearest = search.index.nearest
    monkeypatch.setattr(search.index, "nearest", lambda images, _: [searched.append(len(images)), *nearest(images)][1:])
    one = Copies(search, {"a": pictures[5:7], "b": pictures[7:]}, {}).held_out_matches
    other = Copies(search, {"c": pictures[[8, 5]]}, {}).held_out_matches
    assert searched == [2, 2]
    assert [match.ncc for match in (*one["a"], *one["b"])] == pytest.approx([match.ncc for match in expected])
    assert [(match.image, match.training) for match in other["c"]] == [
        (0, expected[3].training),
        (1, expected[0].training),
    ]


def test_which_images_a_run_has_does_not_depend_on_how_it_samples_and_calls_them() -> None:
    data = {"cells": [1, 2], "seed": 0, "random_flip": False, "center_crop": False, "proportion_empty_prompts": 0.0}
    assert images_hash(data | {"seed": 1, "random_flip": True, "wording": {"a": ["b"]}}) == images_hash(data)
    assert images_hash(data | {"cells": [1, 3]}) != images_hash(data)


def test_of_more_training_images_than_are_searched_an_even_choice_is_and_it_is_said() -> None:
    pictures = textures("bubbly", 9)
    real = RealImages({"a": pictures[:3]}, {}, _whole(pictures), "x", None, are_slices=False)
    search = Searches(3).of(real, (64, 64))
    assert [search.pictures.images[number].name for number in range(3)] == ["picture 1", "picture 4", "picture 7"]
    assert search.words == ("copies were searched in 3 of 9, evenly spaced, training images, at every place of each")
