"""Other words over the same images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data.dataset import Sample
from data.errors import SettingsError
from data.whole_images import WholeImage, WholeImages
from data.wording import TEMPLATES, RewordedDataset, Wording


class Pictures:
    """Three captions in turn, every fifth dropped; the pixels of a held-out image say which one it is."""

    captions = ("a", "b", "c")
    resolution = 1
    um_per_px = 2.0

    @property
    def grey_values(self) -> dict[str, dict[str, object]]:
        return {caption: {"window": [0, number]} for number, caption in enumerate(self.captions)}

    def __len__(self) -> int:
        return 6

    def sample(self, position: int) -> Sample:
        left_out = position % 5 == 4
        caption = "" if left_out else self.captions[position % 3]
        return Sample(np.full((3, 1, 1), position, np.float32), caption, False, f"picture {position}", left_out)

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        return {
            caption: np.stack([np.full((3, 1, 1), 10 * number + i, np.float32) for i in range(num_images)])
            for number, caption in enumerate(self.captions)
        }

    training_pixels = held_out_pixels

    def whole_images(self) -> WholeImages:
        return WholeImages(
            3, lambda place: WholeImage(np.full((3, 1, 1), place, np.float32), self.captions[place], f"picture {place}")
        )

    def manifest(self) -> dict[str, object]:
        return {"kind": "pictures"}


def test_whole_images_have_the_first_prompt_of_their_caption() -> None:
    each = RewordedDataset(Pictures(), Wording.identified(Pictures.captions, ["x", "y", "x"]), seed=0).whole_images()
    assert [(image.caption, image.name, image.pixels.item(0)) for image in each] == [
        ("x", "picture 0", 0),
        ("y", "picture 1", 1),
        ("x", "picture 2", 2),
    ]
    assert [image.name for image in each[1:]] == ["picture 1", "picture 2"]


def test_one_prompt_stands_for_all_captions_or_one_for_each() -> None:
    one = RewordedDataset(Pictures(), Wording.identified(Pictures.captions, ["a w17h3r slice"]), seed=0)
    assert one.captions == ("a w17h3r slice",)
    each = RewordedDataset(Pictures(), Wording.identified(Pictures.captions, ["x", "y", "x"]), seed=0)
    assert each.captions == ("x", "y")
    assert [each.sample(position).caption for position in range(6)] == ["x", "y", "x", "x", "", "x"]
    assert [each.sample(position).source for position in range(2)] == ["picture 0", "picture 1"]
    assert each.sample(3).pixels.item(0) == 3


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_prompts_is_refused(count: int) -> None:
    with pytest.raises(SettingsError, match=f"found {count} prompts, expected 1, or 3"):
        Wording.identified(Pictures.captions, ["x"] * count)


def test_images_of_a_prompt_come_from_its_captions_in_turn() -> None:
    merged = RewordedDataset(Pictures(), Wording.identified(Pictures.captions, ["x", "y", "x"]), seed=0)
    images = merged.held_out_pixels(4)
    assert images["x"][:, 0, 0, 0].tolist() == [0, 20, 1, 21]
    assert images["y"][:, 0, 0, 0].tolist() == [10, 11, 12, 13]


def test_grey_values_are_kept_where_a_prompt_means_one_caption() -> None:
    merged = RewordedDataset(Pictures(), Wording.identified(Pictures.captions, ["x", "y", "x"]), seed=0)
    assert merged.grey_values == {"y": {"window": [0, 1]}}


def test_templates_say_the_placeholder_and_are_drawn_evenly_by_position() -> None:
    words = Wording.with_placeholder(Pictures.captions, "<x>", "texture", "style")
    data = RewordedDataset(Pictures(), words, seed=0)
    drawn = Counter(data.sample(position).caption for position in range(800))
    dropped = drawn.pop("")
    assert dropped == 160
    assert set(drawn) == {text.format("<x>", noun="texture") for text in TEMPLATES["style"]}
    assert all("<x>" in text for text in drawn)
    assert min(drawn.values()) > 0.6 * 640 / len(drawn)
    assert data.sample(7).caption == RewordedDataset(Pictures(), words, seed=0).sample(7).caption
    assert [data.sample(p).caption for p in range(40)] != [
        RewordedDataset(Pictures(), words, seed=1).sample(p).caption for p in range(40)
    ]
    assert data.captions == (TEMPLATES["style"][0].format("<x>", noun="texture"),)


def test_the_manifest_holds_the_words() -> None:
    data = RewordedDataset(Pictures(), Wording.identified(Pictures.captions, ["x"]), seed=0)
    assert data.manifest() == {"kind": "pictures", "wording": {"a": ["x"], "b": ["x"], "c": ["x"]}}
