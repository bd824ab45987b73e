"""Where a run's images come from: volumes, DTD, a folder of images, or a Hugging Face dataset; opened the same way."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data.concepts import CONCEPTS, load_concept, texture_caption
from data.dataset import ConceptDataset, build_slice_dataset
from data.errors import SettingsError

TEXTURE_NOUN = "texture"  # of images that no concept file describes


@dataclass(frozen=True)
class ImageSource:
    """Everything that says which images a run sees, and how they are cut; a manifest keeps it to open them again.

    One of concept, train_data_dir and dataset_name is given. data_root: the folder of the volumes and of dtd/.
    """

    concept: str | None
    data_root: Path | None
    train_data_dir: Path | None
    dataset_name: str | None
    dataset_config_name: str | None
    image_column: str
    caption_column: str
    resolution: int
    seed: int
    um_per_px: float | None
    images_per_class: int | None
    center_crop: bool
    random_flip: bool
    proportion_empty_prompts: float
    held_out_fraction: float

    @property
    def class_noun(self) -> str:
        """The noun of the class that the images belong to, such as "slice"."""
        return TEXTURE_NOUN if self.concept is None else load_concept(self.concept, CONCEPTS).class_noun

    def manifest(self) -> dict[str, Any]:
        """Return the source as JSON can hold it, with absolute paths."""
        return {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_manifest(content: Mapping[str, Any]) -> ImageSource:
        """Return the source that `manifest` wrote."""
        values = {field.name: content[field.name] for field in fields(ImageSource)}
        for name in ("data_root", "train_data_dir"):
            if values[name] is not None:
                values[name] = Path(values[name])
        return ImageSource(**values)

    def open(self) -> ConceptDataset:
        """Open and check the images. Raises DataError and SettingsError with everything that is wrong."""
        if self.dataset_name is not None:
            from data.image_dataset import build_hub_dataset

            return build_hub_dataset(
                self.dataset_name,
                config=self.dataset_config_name,
                split="train",
                image_column=self.image_column,
                caption_column=self.caption_column,
                resolution=self.resolution,
                seed=self.seed,
                images_per_class=self.images_per_class,
                random_flip=self.random_flip,
                center_crop=self.center_crop,
                proportion_empty_prompts=self.proportion_empty_prompts,
                held_out_fraction=self.held_out_fraction,
            )
        if self.train_data_dir is not None:
            from data.image_dataset import build_image_dataset

            return build_image_dataset(
                self.train_data_dir,
                resolution=self.resolution,
                seed=self.seed,
                images_per_class=self.images_per_class,
                random_flip=self.random_flip,
                center_crop=self.center_crop,
                proportion_empty_prompts=self.proportion_empty_prompts,
                held_out_fraction=self.held_out_fraction,
            )
        assert self.concept is not None, "images come from somewhere"
        assert self.data_root is not None, "a concept is cut from the data in a folder"
        concept = load_concept(self.concept, CONCEPTS)
        if concept.textures:
            return self._textures(concept.textures)
        return build_slice_dataset(
            concept,
            self.data_root,
            resolution=self.resolution,
            seed=self.seed,
            um_per_px=self.um_per_px,
            images_per_class=self.images_per_class,
            random_flip=self.random_flip,
            center_crop=self.center_crop,
            proportion_empty_prompts=self.proportion_empty_prompts,
            held_out_fraction=self.held_out_fraction,
        )

    def _textures(self, classes: tuple[str, ...]) -> ConceptDataset:
        """Return classes of DTD, its first official split: train and val to train on, test held out."""
        from data.dtd import read_dtd
        from data.image_dataset import ImageDataset, evenly
        from data.image_files import ImageFile

        folder = self.data_root
        assert folder is not None, "a concept is cut from the data in a folder"
        split = read_dtd(folder, classes)

        def files(members: list[tuple[Path, str]], limit: int | None) -> list[ImageFile]:
            by_class = ([path for path, label in members if label == name] for name in classes)
            return [
                ImageFile(path, texture_caption(name), name, folder=folder)
                for name, paths in zip(classes, by_class, strict=True)
                for path in (paths if limit is None else evenly(paths, limit))
            ]

        return ImageDataset(
            files(split.training, self.images_per_class),
            files(split.held_out, None),
            resolution=self.resolution,
            seed=self.seed,
            random_flip=self.random_flip,
            center_crop=self.center_crop,
            proportion_empty_prompts=self.proportion_empty_prompts,
            name="DTD",
        )


def check_concept(name: str | None) -> None:
    """Raise SettingsError for a concept that no file describes, with the nearest names."""
    if name is not None:
        load_concept(name, CONCEPTS)


def refuse_unused(source: ImageSource, changed: AbstractSet[str]) -> None:
    """Raise SettingsError for options that do nothing to images of this source.

    changed: names of the options that are not at their defaults.
    """
    textures = source.concept is not None and bool(load_concept(source.concept, CONCEPTS).textures)
    reasons = {}
    if textures or source.concept is None:
        reasons["um_per_px"] = "these images have no voxel size"
    if textures:
        reasons["held_out_fraction"] = "DTD has a split of its own"
    problems = [f"--{name}: {reasons[name]}. Leave it out." for name in sorted(reasons.keys() & changed)]
    if problems:
        raise SettingsError("options without a meaning here", *problems)
