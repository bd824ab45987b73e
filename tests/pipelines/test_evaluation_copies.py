"""Runs of the same images share one search; others do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.evaluation.copies import Searches
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.store import ImageStore
from tests.planted import textures


def test_a_search_is_made_once_for_the_same_images(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    searches, pictures = Searches(store), textures("bubbly", 8)
    real = RealImages({"a": pictures[:3], "b": pictures[3:5]}, {"a": pictures[5:]}, None, are_slices=False)
    search = searches.of(real)
    assert len(search.index) == 5
    assert [match.ncc for match in search.held_out_matches] == [m.ncc for m in search.index.nearest(pictures[5:])]
    np.testing.assert_array_equal(store.read(search.training_keys[3]), np.rint(pictures[3] * 255))
    assert searches.of(replace(real, training=dict(real.training))) is search
    fewer = searches.of(replace(real, held_out={"a": pictures[6:]}))
    assert len(fewer.held_out_matches) == 2
    assert fewer is not search
    assert searches.of(replace(real, training={"a": pictures[:3]})) is not search
    assert searches.of(replace(real, held_out={})).held_out_matches == []
