"""The world of the embedded base as a dataset for training."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.captions import dropped
from data.dataset import Sample
from data.randomness import generator, permuted_index
from data.synthetic.world import World, draw_anything


class WorldDataset:
    """num_images captioned pictures of the world, visited in shuffled epochs.

    anything_share: this share of the visits shows a picture of anything (`world.draw_anything`, a new one each time)
    under the empty caption, for an autoencoder. complete_captions: say everything in each caption.
    textured_shape_share: see `world.World`.
    """

    def __init__(
        self,
        seed: int,
        num_images: int,
        *,
        proportion_empty_prompts: float = 0.0,
        anything_share: float = 0.0,
        complete_captions: bool = False,
        textured_shape_share: float = 1 / 3,
    ) -> None:
        self._world = World(seed, num_images, textured_shape_share=textured_shape_share)
        self._seed = seed
        self._proportion_empty_prompts = proportion_empty_prompts
        self._anything_share, self._complete_captions = anything_share, complete_captions

    def __len__(self) -> int:
        return len(self._world)

    @property
    def captions(self) -> tuple[str, ...]:
        """A dozen complete captions, for sample sheets."""
        return tuple(self._world.scene(index).caption for index in range(12))

    def sample(self, position: int) -> Sample:
        if generator(self._seed, "anything", position).random() < self._anything_share:
            picture = draw_anything(generator(self._seed, "draw-anything", position))
            return Sample(_to_model_range(picture), "", False, f"anything {position}")
        index = permuted_index(self._seed, position, len(self))
        scene = self._world.scene(index)
        caption = scene.caption if self._complete_captions else self._world.caption(index)
        caption = dropped(caption, proportion=self._proportion_empty_prompts, seed=self._seed, position=position)
        return Sample(_to_model_range(self._world.pixels(index)), caption, False, f"world {index}: {scene.caption}")

    def manifest(self) -> dict[str, Any]:
        return {
            "kind": "world",
            "seed": self._seed,
            "num_images": len(self),
            "anything_share": self._anything_share,
            "complete_captions": self._complete_captions,
            "textured_shape_share": self._world.textured_shape_share,
        }


def _to_model_range(picture: np.ndarray) -> np.ndarray:
    """uint8 (row, column, 3) -> float32 (3, row, column) in [-1, 1]."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32) / 127.5 - 1
