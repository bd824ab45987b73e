"""Where a run's images come from: volumes, DTD, a folder of images, or a Hugging Face dataset; opened the same way."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.concepts import CONCEPTS, load_concept
from data.crops import Crops
from data.dataset import SliceDataset, build_slice_dataset
from data.errors import SettingsError
from data.image_splits import SplitBy
from data.outside_files import refuse_links_out
from data.volume_specs import read_volume_specs

if TYPE_CHECKING:
    from data.image_dataset import ImageDataset
    from data.usable_images import CaptionPolicy

TEXTURE_NOUN = "texture"  # of images that no concept file describes


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Everything that says which images a run sees, and how they are cut; a manifest keeps it to open them again.

    One of concept, train_data_dir and dataset_name is given. data_root: the folder of the volumes and of dtd/.
    caption_column: of a dataset's rows, or the key in the metadata.jsonl of a folder. bucket_batch: see `Crops`.
    default_caption, needs_captions: see `CaptionPolicy`. skip_bad: leave out images that cannot be used.
    allow_outside_files: take files that links or rows lead to outside of the data's folder.
    What has a default may be missing in a manifest.
    """

    resolution: int
    concept: str | None = None
    data_root: Path | None = None
    train_data_dir: Path | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    image_column: str = "image"
    caption_column: str = "text"
    seed: int = 0
    um_per_px: float | None = None
    images_per_class: int | None = None
    center_crop: bool = False
    random_flip: bool = False
    proportion_empty_prompts: float = 0.0
    held_out_fraction: float = 0.2
    px_per_voxel: float | None = None
    bucket_batch: int | None = None
    dtd_split: int = 1
    split_by: SplitBy = "group"
    group_column: str | None = None
    allow_outside_files: bool = False
    default_caption: str | None = None
    needs_captions: bool = True
    skip_bad: bool = False

    @property
    def captions(self) -> CaptionPolicy:
        """What becomes of images without a caption, where others have one."""
        from data.usable_images import CaptionPolicy

        return CaptionPolicy(self.default_caption, self.needs_captions)

    @property
    def class_noun(self) -> str:
        """The noun of the class that the images belong to, such as "slice"."""
        return TEXTURE_NOUN if self.concept is None else load_concept(self.concept, CONCEPTS).class_noun

    @property
    def crops(self) -> Crops:
        """What is done to every image."""
        return Crops(
            self.resolution,
            self.seed,
            random_flip=self.random_flip,
            center_crop=self.center_crop,
            proportion_empty_prompts=self.proportion_empty_prompts,
            bucket_batch=self.bucket_batch,
        )

    def manifest(self) -> dict[str, Any]:
        """Return the source as JSON can hold it, with absolute paths."""
        return {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_manifest(content: Mapping[str, Any]) -> ImageSource:
        """Return the source that `manifest` wrote."""
        values = {field.name: content[field.name] for field in fields(ImageSource) if field.name in content}
        for name in ("data_root", "train_data_dir"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        return ImageSource(**values)

    def refuse_outside_files(self) -> None:
        """Raise DataError for links that lead out of the folder of the images, unless that is allowed.

        Rows of a dataset are looked at when their images are read.
        """
        if self.allow_outside_files:
            return
        if self.train_data_dir is not None and self.train_data_dir.is_dir():
            refuse_links_out(self.train_data_dir)
        if self.concept is not None and self.data_root is not None and self.data_root.is_dir():
            concept = load_concept(self.concept, CONCEPTS)
            if concept.textures:
                refuse_links_out(self.data_root, [self.data_root / "images", self.data_root / "dtd"])
            else:
                specs = read_volume_specs(self.data_root)
                refuse_links_out(self.data_root, [specs[cell.state].path for cell in concept.cells])

    def open(self) -> SliceDataset | ImageDataset:
        """Open and check the images. Raises DataError and SettingsError with everything that is wrong."""
        self.refuse_outside_files()
        if self.dataset_name is not None:
            from data.image_dataset import build_hub_dataset

            return build_hub_dataset(
                self.dataset_name,
                self.crops,
                config=self.dataset_config_name,
                split="train",
                image_column=self.image_column,
                caption_column=self.caption_column,
                group_column=self.group_column,
                captions=self.captions,
                skip_bad=self.skip_bad,
                images_per_class=self.images_per_class,
                held_out_fraction=self.held_out_fraction,
                split_by=self.split_by,
                allow_outside_files=self.allow_outside_files,
            )
        if self.train_data_dir is not None:
            from data.image_dataset import build_image_dataset

            return build_image_dataset(
                self.train_data_dir,
                self.crops,
                caption_key=self.caption_column,
                captions=self.captions,
                skip_bad=self.skip_bad,
                images_per_class=self.images_per_class,
                held_out_fraction=self.held_out_fraction,
                split_by=self.split_by,
            )
        assert self.concept is not None, "images come from somewhere"
        assert self.data_root is not None, "a concept is cut from the data in a folder"
        concept = load_concept(self.concept, CONCEPTS)
        if concept.textures:
            from data.dtd_images import build_texture_dataset

            return build_texture_dataset(
                self.data_root,
                concept.textures,
                self.dtd_split,
                self.crops,
                images_per_class=self.images_per_class,
                skip_bad=self.skip_bad,
            )
        return build_slice_dataset(
            concept,
            self.data_root,
            self.crops,
            um_per_px=self.um_per_px,
            px_per_voxel=self.px_per_voxel,
            images_per_class=self.images_per_class,
            held_out_fraction=self.held_out_fraction,
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
    pictures = textures or source.concept is None
    reasons: dict[str, str] = {}
    if pictures:
        reasons |= dict.fromkeys(("um_per_px", "px_per_voxel"), "these images have no voxel size")
    if textures:
        reasons |= dict.fromkeys(("held_out_fraction", "split_by"), "DTD has a split of its own")
    else:
        reasons["dtd_split"] = "these images are not DTD"
    if not pictures:
        reasons["split_by"] = "volumes are split in blocks"
        reasons["skip_bad"] = "the slices of a volume belong together"
    if source.concept is not None:
        reasons["default_caption"] = "these images have captions"
    elif not source.needs_captions:
        reasons["default_caption"] = "the run says other words than the captions"
    if source.dataset_name is not None and source.split_by == "folder":
        reasons["split_by"] = "rows of a dataset lie in no folder; name their --group_column"
    problems = [f"--{name}: {reasons[name]}. Leave it out." for name in sorted(reasons.keys() & changed)]
    if problems:
        raise SettingsError("options without a meaning here", *problems)
