"""Whole labelled pictures of one size, held in memory, as training data: the data sets that come as arrays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from data.captions import is_dropped
from data.dataset import Sample, evenly_spaced
from data.errors import SettingsError
from data.randomness import permuted_index
from data.transforms import Flip, flipped
from data.whole_images import WholeImage, WholeImages

DataFormat = Literal["mnist", "cifar10"]
_FLIPS: tuple[Flip, ...] = ("left-right",)


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Pictures (N, H, W, C) uint8 with C 1 or 3, their labels (N,) as indices into names, and their files' sha256."""

    name: str
    pictures: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    files: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def size_px(self) -> int:
        return int(self.pictures.shape[1])

    @property
    def channels(self) -> int:
        return int(self.pictures.shape[3])

    @staticmethod
    def digest(path: Path) -> str:
        """Return the sha256 of a file."""
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def limited(self, images_per_class: int) -> LabelledPictures:
        """Return at most a number of pictures of each label, evenly spaced over them."""
        kept = []
        for label in range(len(self.names)):
            of_label = np.flatnonzero(self.labels == label)
            kept += [of_label[place] for place in evenly_spaced(len(of_label), min(images_per_class, len(of_label)))]
        chosen = np.sort(np.array(kept, dtype=int))
        return replace(self, pictures=self.pictures[chosen], labels=self.labels[chosen])

    def caption(self, index: int) -> str:
        return self.names[int(self.labels[index])]

    def pixels(self, index: int, size_px: int) -> np.ndarray:
        """Return one picture with black pixels around it up to size_px, float32 (row, column, 3) in [-1, 1]."""
        margin = (size_px - self.size_px) // 2
        rest = size_px - self.size_px - margin
        whole = np.pad(self.pictures[index], ((margin, rest), (margin, rest), (0, 0)))
        return np.repeat(whole, 3 // self.channels, axis=2).astype(np.float32) / np.float32(127.5) - np.float32(1)


class LabelledDataset:
    """Labelled pictures in shuffled epochs; those to judge by are never sampled."""

    def __init__(
        self,
        training: LabelledPictures,
        held_out: LabelledPictures,
        *,
        resolution: int,
        seed: int,
        random_flip: bool = False,
        proportion_empty_prompts: float = 0.0,
    ) -> None:
        """resolution: side in px, that of the pictures or larger: what is missing around them is black.

        random_flip: mirror each left-right, or not, by chance. proportion_empty_prompts: of the samples lose their
        label. Raises SettingsError for a resolution below the pictures'.
        """
        if resolution < training.size_px:
            raise SettingsError(
                "--resolution",
                f"found {resolution}, expected {training.size_px} px, the size of these pictures, or more, which puts "
                "black around them.",
            )
        self.training, self.held_out = training, held_out
        self.resolution, self.seed = resolution, seed
        self.random_flip, self.proportion_empty_prompts = random_flip, proportion_empty_prompts

    def __len__(self) -> int:
        return len(self.training)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """The labels that training pictures have, in the order of the data set's own list."""
        present = set(self.training.labels.tolist())
        return tuple(name for number, name in enumerate(self.training.names) if number in present)

    @property
    def um_per_px(self) -> None:
        """None: pictures have no pixel scale."""
        return None

    @property
    def grey_values(self) -> dict[str, dict[str, object]]:
        """Nothing: the levels of a picture stand for no native grey values."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is put around the pictures, in a line; none where they are taken as they are."""
        if self.resolution == self.training.size_px:
            return ()
        return (f"pictures    {self.training.size_px} px, with black around them up to {self.resolution} px",)

    def sample(self, position: int) -> Sample:
        """Return the sample at a position of the run, 0, 1, 2, ... over all epochs; a pure function of it."""
        index = permuted_index(self.seed, position, len(self))
        pixels = self.training.pixels(index, self.resolution)
        if self.random_flip:
            pixels = flipped(pixels, _FLIPS, seed=self.seed, position=position)
        left_out = is_dropped(proportion=self.proportion_empty_prompts, seed=self.seed, position=position)
        caption = "" if left_out else self.training.caption(index)
        return Sample(_channels_first(pixels), caption, False, f"{self.training.name}[{index}]", is_dropped=left_out)

    def held_out_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return at most num_images held-out pictures of each label: float32 (N, 3, H, W) in [-1, 1]."""
        return self._even(self.held_out, num_images)

    def training_pixels(self, num_images: int) -> dict[str, np.ndarray]:
        """Return training pictures like those of `held_out_pixels`; their difference is a metric's floor."""
        return self._even(self.training, num_images)

    def whole_images(self) -> WholeImages:
        """Return all training pictures."""
        return WholeImages(len(self.training), self._whole)

    def _whole(self, place: int) -> WholeImage:
        pixels = _channels_first(self.training.pixels(place, self.resolution))
        return WholeImage(pixels, self.training.caption(place), f"{self.training.name}[{place}]")

    def manifest(self) -> dict[str, object]:
        """Return files with their sha256, counts and settings, as JSON can hold them."""
        return {
            "resolution_px": self.resolution,
            "num_images": len(self),
            "seed": self.seed,
            "random_flip": self.random_flip,
            "proportion_empty_prompts": self.proportion_empty_prompts,
            "training": _side_manifest(self.training),
            "held_out": _side_manifest(self.held_out),
        }

    def _even(self, side: LabelledPictures, num_images: int) -> dict[str, np.ndarray]:
        few = side.limited(num_images)
        by_label: dict[str, list[np.ndarray]] = {}
        for index in range(len(few)):
            by_label.setdefault(few.caption(index), []).append(_channels_first(few.pixels(index, self.resolution)))
        return {label: np.stack(pictures) for label, pictures in by_label.items()}


def open_labelled(
    data_format: DataFormat,
    folder: Path,
    *,
    resolution: int | None,
    seed: int,
    images_per_class: int | None = None,
    random_flip: bool = False,
    proportion_empty_prompts: float = 0.0,
) -> LabelledDataset:
    """Return the pictures of a folder in one of the formats as training data.

    resolution: None is the pictures' own size. Raises DataError for files that cannot be used, SettingsError for
    values that do not fit them.
    """
    from data.labelled.cifar import read_cifar10
    from data.labelled.idx import read_mnist

    training, held_out = {"mnist": read_mnist, "cifar10": read_cifar10}[data_format](folder)
    return LabelledDataset(
        training if images_per_class is None else training.limited(images_per_class),
        held_out,
        resolution=resolution or training.size_px,
        seed=seed,
        random_flip=random_flip,
        proportion_empty_prompts=proportion_empty_prompts,
    )


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _side_manifest(side: LabelledPictures) -> dict[str, object]:
    counts = Counter(side.labels.tolist())
    return {
        "name": side.name,
        "num_images": len(side),
        "labels": {name: counts[number] for number, name in enumerate(side.names)},
        "files": dict(side.files),
    }
