"""Runs of the same images share one search of all of them; others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data.whole_images import WholeImage, WholeImages
from pipelines.evaluation.copies import Searches
from pipelines.evaluation.real_images import RealImages
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
    found = [match.ncc for match in search.held_out_matches["a"]]
    assert found == [match.ncc for match in search.index.nearest(pictures[5:])]
    np.testing.assert_allclose(search.pictures[3], pictures[3], atol=1e-6)
    assert search.pictures.place(3, (4, 5)) == "picture 3 @ (4, 5) px"
    assert searches.of(replace(real), (64, 64)) is search
    other = searches.of(replace(real, data_hash="y", held_out={}), (64, 64))
    assert other is not search
    assert other.held_out_matches == {}


def test_of_more_training_images_than_are_searched_an_even_choice_is_and_it_is_said() -> None:
    pictures = textures("bubbly", 9)
    real = RealImages({"a": pictures[:3]}, {}, _whole(pictures), "x", None, are_slices=False)
    search = Searches(3).of(real, (64, 64))
    assert [search.pictures.images[number].name for number in range(3)] == ["picture 1", "picture 4", "picture 7"]
    assert search.words == ("copies were searched in 3 of 9, evenly spaced, training images, at every place of each")
