"""The real images of a run, opened again from its manifest: what it learnt from, and what was held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.errors import FilrougeError
from data.splits import manifest_hash
from data.whole_images import WholeImages
from pipelines.evaluation.states import AskedRun
from pipelines.metrics.distances import FEWEST_FOR_A_VERDICT
from pipelines.run_data import reopened
from pipelines.whole_pictures import to_pictures

# of a manifest's data: how images are sampled and called, not which they are
_OF_SAMPLES = ("seed", "random_flip", "center_crop", "proportion_empty_prompts", "wording")
NUM_REAL = 64  # real images of each caption that a model is held against, unless more are asked for
MOST_OF_ONE = 8  # captions asked of a run whose images each have their own


@dataclass(frozen=True)
class RealImages:
    """Training and held-out images by caption, float32 (N, H, W, 3) in [0, 1], of which there may be more.

    whole: all training images before they are cut. images_hash: equal for runs of the same images, however they sample
    and call them. um_per_px: their scale; None where they have none. are_slices: whether they are cut from volumes, so
    that they have grey values and no colour.
    """

    training: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]
    whole: WholeImages
    images_hash: str
    um_per_px: float | None
    are_slices: bool

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions with two images or more on both sides of the split, which can be compared with."""
        return tuple(
            caption
            for caption, images in self.training.items()
            if len(images) > 1 and len(self.held_out.get(caption, ())) > 1
        )

    def halves(self) -> tuple[RealImages, RealImages] | None:
        """Return the first and the second half of the held-out images of every caption, each with all training images.

        Halves of neighbours, as slices beside each other are nearly the same. None where a half of a caption would have
        fewer than 10 images, below which nothing can be said.
        """
        if (
            not self.captions
            or min(len(self.held_out[caption]) for caption in self.captions) < 2 * FEWEST_FOR_A_VERDICT
        ):
            return None
        first = {caption: images[: len(images) // 2] for caption, images in self.held_out.items()}
        second = {caption: images[len(images) // 2 :] for caption, images in self.held_out.items()}
        return replace(self, held_out=first), replace(self, held_out=second)


def open_real_images(run: AskedRun, num_images: int) -> tuple[RealImages | None, str]:
    """Return at most num_images real images of each caption and all training images, or None; and what is missing.

    Nothing is missing where the words are empty. A run whose data has changed or is gone has no real images.
    """
    if "source" not in run.manifest:
        return (
            None,
            "was not trained here, so its training images are not known: learning and copying are not measured.",
        )
    try:
        dataset = reopened(run.path, run.manifest)
        training, held_out = (_pictures(group) for group in _groups(dataset, num_images))
    except FilrougeError as error:
        return None, f"its data cannot be opened again ({error}): learning and copying are not measured."
    real = RealImages(
        training,
        held_out,
        dataset.whole_images(),
        images_hash(run.manifest["data"]),
        dataset.um_per_px,
        bool(dataset.grey_values),
    )
    if not held_out:
        return real, "has no held-out images: learning is not measured, and copying is not calibrated."
    if not real.captions:
        return real, "no caption has two images or more on both sides of the split: learning is not measured."
    return real, ""


def images_hash(data: Mapping[str, Any]) -> str:
    """Return a hash of which images a run has, from the data of its manifest."""
    return manifest_hash({key: value for key, value in data.items() if key not in _OF_SAMPLES})


def captions_of(run: AskedRun) -> tuple[str, ...]:
    """Return the prompts under which a run saw its images, from its manifest alone; () where nothing says it.

    Captions that only one image has cannot be compared with anything: they are left out where others are shared, and
    the first eight stand for all where none is.
    """
    data = run.manifest.get("data", {})
    words = data.get("wording", {})
    if words:
        return tuple(dict.fromkeys(prompts[0] for prompts in words.values()))
    if "cells" in data:  # each of many slices
        return tuple(dict.fromkeys(cell["caption"] for cell in data["cells"]))
    counts = _pictures_by_caption(run)
    shared = tuple(caption for caption, count in counts.items() if count > 1)
    return shared or tuple(counts)[:MOST_OF_ONE]


def num_captions_left_out(run: AskedRun) -> int:
    """Return how many captions of a run's pictures `captions_of` leaves out."""
    known = set(captions_of(run))
    return 0 if run.manifest.get("data", {}).get("wording") else len(_pictures_by_caption(run).keys() - known)


def _pictures_by_caption(run: AskedRun) -> Counter[str]:
    pictures = run.manifest.get("data", {}).get("training", ())
    return Counter(picture["caption"] for picture in pictures if picture.get("caption"))


def _groups(dataset: Any, num_images: int) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    return dataset.training_pixels(num_images), dataset.held_out_pixels(num_images)


def _pictures(pixels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) in [0, 1]."""
    return {caption: to_pictures(images) for caption, images in pixels.items() if len(images)}
