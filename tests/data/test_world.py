"""The drawn world of the embedded base: pure, complete in its captions, and honest about what is held out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from data.randomness import generator
from data.synthetic.pictures import WorldDataset
from data.synthetic.words import ALL
from data.synthetic.world import (
    COLOUR_JITTER,
    NUMBERS,
    PALETTE,
    SHAPES,
    TEXTURES,
    Scene,
    World,
    all_scenes,
    draw,
    draw_anything,
    texture_mask,
)


def test_every_combination_stands_once_and_says_everything() -> None:
    scenes = all_scenes()
    assert len(scenes) == 56 * (8 + 4 * 4 + 8 * 4)
    captions = [scene.caption for scene in scenes]
    assert len(set(captions)) == len(scenes)
    for scene, caption in zip(scenes, captions, strict=True):
        words = caption.replace("an ", "a ").split()
        assert scene.colour in words
        assert scene.background in words
        assert not scene.texture or scene.texture in words
        assert not scene.shape or scene.number in words


def test_captions_are_english() -> None:
    assert Scene("striped", "", "a", "orange", "blue").caption == "an orange and blue striped texture"
    assert Scene("", "star", "two", "red", "orange").caption == "two red stars on an orange background"
    assert Scene("grid", "circle", "a", "blue", "white").caption == "a grid blue circle on a white background"


def test_held_out_scenes_are_never_drawn_for_training_and_share_no_word_alone() -> None:
    held_out = [scene for scene in all_scenes() if scene.held_out]
    assert 500 <= len(held_out) <= 560
    world = World(0, 3000)
    drawn = {world.scene(index) for index in range(len(world))}
    assert not drawn & set(held_out)
    for names, field in ((PALETTE, "colour"), (TEXTURES, "texture"), (SHAPES, "shape"), (NUMBERS, "number")):
        seen = {getattr(scene, field) for scene in drawn}
        assert set(names) <= seen, field


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.6, 1.0])
def test_the_share_of_textured_shapes_is_as_asked_and_the_rest_is_even(share: float) -> None:
    world = World(0, 3000, textured_shape_share=share)
    scenes = [world.scene(index) for index in range(len(world))]
    textured = sum(bool(scene.shape and scene.texture) for scene in scenes)
    textures = sum(not scene.shape for scene in scenes)
    assert textured / 3000 == pytest.approx(share, abs=0.03)
    assert textures / 3000 == pytest.approx((1 - share) / 2, abs=0.03)
    assert WorldDataset(0, 3000, textured_shape_share=share).manifest()["textured_shape_share"] == share


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    a, b = World(3, 10), World(3, 1000)
    assert np.array_equal(a.pixels(7), b.pixels(7))
    assert a.caption(7) == b.caption(7)
    assert not np.array_equal(a.pixels(7), World(4, 10).pixels(7))


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_fill_their_range_with_both_colours(name: str) -> None:
    for index in range(5):
        mask = texture_mask(name, generator(1, name, index), 64)
        assert mask.shape == (64, 64)
        assert mask.min() >= 0
        assert mask.max() <= 1
        share = (mask > 0.5).mean()
        assert 0.12 < share < 0.88


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_scene_shows_as_many_separate_shapes_as_it_says(shape: str, number: str) -> None:
    from scipy.ndimage import label

    for index in range(8):
        picture = draw(Scene("", shape, number, "white", "black"), generator(2, shape, number, index))
        parts, _ = label(picture[..., 0] > 64, structure=np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        assert (sizes > 8).sum() == NUMBERS.index(number) + 1  # the tip of a star may come loose


def test_colours_stay_within_their_name() -> None:
    picture = draw(Scene("", "circle", "a", "red", "blue"), generator(0, "colour"))
    for name, place in (("blue", (0, 0)), ("red", None)):
        if place is None:
            place = tuple(int(i) for i in np.argwhere(picture[..., 0] > 150).mean(0).round())
        assert np.abs(picture[place].astype(int) - PALETTE[name]).max() <= COLOUR_JITTER + 1


def test_pictures_of_anything_are_varied() -> None:
    pictures = [draw_anything(generator(0, "any", index)) for index in range(40)]
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    grey = sum(bool((np.ptp(picture.astype(int), axis=2) <= 1).all()) for picture in pictures)
    assert 4 <= grey <= 25
    assert all(not np.array_equal(a, b) for a, b in pairwise(pictures))


def test_the_dataset_is_a_pure_function_of_the_position() -> None:
    dataset = WorldDataset(0, 50, proportion_empty_prompts=0.3, anything_share=0.3)
    forwards = [dataset.sample(position) for position in range(100)]
    backwards = [dataset.sample(position) for position in reversed(range(100))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert np.array_equal(a.pixels, b.pixels)
        assert (a.caption, a.source) == (b.caption, b.source)
    assert forwards[0].pixels.shape == (3, 64, 64)
    assert min(s.pixels.min() for s in forwards) >= -1
    assert max(s.pixels.max() for s in forwards) <= 1
    anything = [s for s in forwards if s.source.startswith("anything")]
    assert 15 <= len(anything) <= 45
    assert {s.caption for s in anything} == {""}


def test_complete_captions_say_what_the_picture_shows() -> None:
    dataset = WorldDataset(0, 50, complete_captions=True)
    assert all(s.source.endswith(s.caption) for s in (dataset.sample(position) for position in range(100)))
    short = WorldDataset(0, 50)
    assert any(not s.source.endswith(s.caption) for s in (short.sample(position) for position in range(100)))


def test_each_epoch_of_the_dataset_is_a_permutation() -> None:
    dataset = WorldDataset(0, 20)
    for epoch in range(2):
        sources = {dataset.sample(20 * epoch + offset).source for offset in range(20)}
        assert len(sources) == 20


def test_every_word_of_the_world_is_a_token_of_its_own() -> None:
    words = {word for scene in all_scenes() for word in scene.caption.split()}
    assert words <= set(ALL)
