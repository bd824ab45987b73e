"""Concepts in other words: the prompts under which a run trains images, in place of the captions of the data.

DreamBooth gives a class an identifier ("a w17h3r slice"), Textual Inversion a placeholder in templates. Whatever words
are chosen, images keep their places in the run and lose their words as often as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.dataset import ConceptDataset, Sample
from data.errors import SettingsError
from data.randomness import generator
from data.whole_images import WholeImage, WholeImages

# "{}" is the placeholder. An object is a thing to be shown, a style is a look that other things may take on.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "object": (
        "a {}",
        "a {} {noun}",
        "an image of a {}",
        "an image of the {} {noun}",
        "a close-up of a {}",
        "a sharp image of a {}",
        "a grey image of a {}",
        "a scan of a {}",
        "a section through a {}",
        "a {} of a carbon composite material",
    ),
    "style": (
        "a {noun} in the style of {}",
        "a {} {noun}",
        "an image in the style of {}",
        "a close-up in the style of {}",
        "a surface in the style of {}",
        "a pattern in the style of {}",
        "a sharp image in the style of {}",
        "a material in the style of {}",
    ),
}


@dataclass(frozen=True)
class Wording:
    """Prompts for each caption of the data; where a caption has several, one is drawn for each sample.

    The first prompt of a caption stands for it in sample sheets and scores.
    """

    prompts: Mapping[str, tuple[str, ...]]

    @staticmethod
    def identified(captions: Sequence[str], instance_prompts: Sequence[str]) -> Wording:
        """Return the wording with one prompt for all captions, or one for each, in their order.

        Raises SettingsError for another number of prompts.
        """
        if len(instance_prompts) not in (1, len(captions)):
            raise SettingsError(
                "--instance_prompt",
                f"found {len(instance_prompts)} prompts, expected 1, or {len(captions)}: one for each of "
                f"{', '.join(repr(caption) for caption in captions)}.",
            )
        prompts = list(instance_prompts) * (len(captions) if len(instance_prompts) == 1 else 1)
        return Wording({caption: (prompt,) for caption, prompt in zip(captions, prompts, strict=True)})

    @staticmethod
    def with_placeholder(captions: Sequence[str], placeholder: str, noun: str, learnable_property: str) -> Wording:
        """Return the wording that says the placeholder of every image, in the templates of the learnt property.

        learnable_property: a key of TEMPLATES. noun: the class noun, such as "texture".
        """
        templates = tuple(text.format(placeholder, noun=noun) for text in TEMPLATES[learnable_property])
        return Wording(dict.fromkeys(captions, templates))


class RewordedDataset:
    """The same images at the same positions, under other words; a caption that was dropped stays dropped."""

    def __init__(self, dataset: ConceptDataset, wording: Wording, seed: int) -> None:
        assert set(dataset.captions) == set(wording.prompts), "a wording has prompts for every caption"
        self._dataset, self._wording, self._seed = dataset, wording, seed

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def captions(self) -> tuple[str, ...]:
        """The first prompt of each caption, each once."""
        return tuple(dict.fromkeys(self._wording.prompts[caption][0] for caption in self._dataset.captions))

    @property
    def resolution(self) -> int:
        return self._dataset.resolution

    @property
    def um_per_px(self) -> float | None:
        return self._dataset.um_per_px

    @property
    def grey_values(self) -> dict[str, dict[str, object]]:
        """Windows by prompt, of those prompts alone that stand for one caption."""
        by_caption, captions = self._dataset.grey_values, self._captions_of()
        return {
            prompt: by_caption[covered[0]]
            for prompt, covered in captions.items()
            if len(covered) == 1 and covered[0] in by_caption
        }

    def sample(self, position: int) -> Sample:
        sample = self._dataset.sample(position)
        if sample.is_dropped:
            return sample
        prompts = self._wording.prompts[sample.caption]
        drawn = 0 if len(prompts) == 1 else generator(self._seed, "template", position).integers(len(prompts))
        return replace(sample, caption=prompts[drawn])

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return held-out images by prompt, num_images or fewer, the captions of a prompt in turn."""
        return self._merged(self._dataset.held_out_pixels(num_images), num_images)

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return training images by prompt, num_images or fewer, the captions of a prompt in turn."""
        return self._merged(self._dataset.training_pixels(num_images), num_images)

    def whole_images(self) -> WholeImages:
        """Return the same images, each under the first prompt of its caption."""
        images = self._dataset.whole_images()

        def reworded(place: int) -> WholeImage:
            image = images[place]
            return replace(image, caption=self._wording.prompts[image.caption][0])

        return WholeImages(len(images), reworded)

    def manifest(self) -> dict[str, object]:
        words = {caption: list(prompts) for caption, prompts in self._wording.prompts.items()}
        return {**self._dataset.manifest(), "wording": words}

    def _captions_of(self) -> dict[str, list[str]]:
        covered: dict[str, list[str]] = {}
        for caption in self._dataset.captions:
            covered.setdefault(self._wording.prompts[caption][0], []).append(caption)
        return covered

    def _merged(self, images: Mapping[str, np.ndarray], num_images: int) -> dict[str, np.ndarray]:
        groups: dict[str, list[np.ndarray]] = {}
        only = self.captions[0] if len(self.captions) == 1 else None  # it stands for captions of held-out images too
        for caption, pixels in images.items():
            prompt = self._wording.prompts[caption][0] if caption in self._wording.prompts else only
            if prompt is not None:
                groups.setdefault(prompt, []).append(pixels)
        return {prompt: _in_turn(groups[prompt])[:num_images] for prompt in self.captions if prompt in groups}


def _in_turn(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Return all images, the first of every group before the second of any."""
    order = sorted((item, number) for number, group in enumerate(groups) for item in range(len(group)))
    return np.stack([groups[number][item] for item, number in order])
