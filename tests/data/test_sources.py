"""Where images come from, as a manifest keeps it, and options that do nothing to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.errors import SettingsError
from data.image_dataset import ImageDataset
from data.sources import ImageSource, check_concept, refuse_unused


def _source(concept: str | None, train_data_dir: Path | None = None, **more: Any) -> ImageSource:
    source = ImageSource(
        concept=concept,
        data_root=Path("scans"),
        train_data_dir=train_data_dir,
        resolution=64,
        proportion_empty_prompts=0.1,
    )
    return replace(source, **more)


def test_a_manifest_gives_the_source_back_with_absolute_paths() -> None:
    read = ImageSource.from_manifest(_source("sf_dry").manifest())
    assert read == ImageSource(**{**vars(_source("sf_dry")), "data_root": Path("scans").resolve()})
    assert read.class_noun == "slice"
    assert _source(None, Path("images")).class_noun == "texture"


def test_an_older_manifest_is_read_with_the_defaults_of_what_it_does_not_say() -> None:
    source = _source("sf_dry", data_root=None, bucket_batch=8, split_by="label")
    assert ImageSource.from_manifest(source.manifest()) == source
    newer = ("px_per_voxel", "bucket_batch", "dtd_split", "split_by", "group_column", "allow_outside_files")
    older = {key: value for key, value in source.manifest().items() if key not in newer}
    assert ImageSource.from_manifest(older) == replace(source, bucket_batch=None, split_by="group")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """DTD's layout with nine pictures of waffled, of which the ninth equals the first, and its stray file."""
    labels = tmp_path / "dtd" / "labels"
    images = tmp_path / "dtd" / "images" / "waffled"
    labels.mkdir(parents=True)
    images.mkdir(parents=True)
    for number in range(1, 10):
        Image.new("RGB", (12, 9), (20 * (number % 8), 0, 0)).save(images / f"waffled_{number:04d}.jpg")
    (images / ".directory").write_text("[Dolphin]")
    for split in range(1, 11):
        for place, part in enumerate(("train", "val", "test")):
            chosen = [f"waffled/waffled_{(3 * place + n + split) % 9 + 1:04d}.jpg" for n in range(3)]
            (labels / f"{part}{split}.txt").write_text("\n".join(chosen) + "\n")
    return tmp_path


@pytest.mark.parametrize("number", [1, 4, 10])
def test_any_of_the_official_splits_can_be_chosen(archive: Path, number: int) -> None:
    dataset = _source("dtd_waffled", data_root=archive, resolution=8, dtd_split=number).open()
    assert isinstance(dataset, ImageDataset)
    held_out = {(6 + n + number) % 9 + 1 for n in range(3)}
    assert {int(image.name[-8:-4]) for image in dataset.held_out} == held_out
    twins = {1, 9}
    withheld = len(twins & held_out) % 2  # one of two equal pictures is held out: the other is not trained on
    assert len(dataset.training) == 6 - withheld
    assert dataset.manifest()["split"] == f"DTD's official split {number}"
    ignored, split = dataset.notes[:2]
    assert (
        ignored
        == "ignored     files in the folders of the classes that are no images (1): dtd/images/waffled/.directory"
    )
    assert split.startswith(f"split       DTD's official split {number}: {6 - withheld} images are trained on, 3 held")
    assert ("1 training images left out as copies" in split) == bool(withheld)


@pytest.mark.parametrize(
    ("concept", "changed", "refused"),
    [
        ("sf_dry", {"um_per_px", "held_out_fraction"}, set()),
        ("dtd", {"um_per_px", "held_out_fraction"}, {"um_per_px", "held_out_fraction"}),
        ("dtd_zigzagged", {"held_out_fraction"}, {"held_out_fraction"}),
        ("dtd", {"seed"}, set()),
        (None, {"um_per_px", "held_out_fraction"}, {"um_per_px"}),
        (None, {"px_per_voxel", "dtd_split", "split_by", "aspect_buckets"}, {"px_per_voxel", "dtd_split"}),
        ("dtd", {"px_per_voxel", "dtd_split", "split_by", "aspect_buckets"}, {"px_per_voxel", "split_by"}),
        ("sf_dry", {"px_per_voxel", "dtd_split", "split_by", "aspect_buckets"}, {"dtd_split", "split_by"}),
    ],
)
def test_options_that_do_nothing_to_the_images_are_refused(
    concept: str | None, changed: set[str], refused: set[str]
) -> None:
    if not refused:
        refuse_unused(_source(concept), changed)
        return
    with pytest.raises(SettingsError) as caught:
        refuse_unused(_source(concept), changed)
    assert {name for name in changed if f"--{name}:" in str(caught.value)} == refused


def test_rows_of_a_dataset_have_no_folder_to_split_by() -> None:
    rows = _source(None, dataset_name="owner/rows", split_by="folder")
    with pytest.raises(
        SettingsError, match="--split_by: rows of a dataset lie in no folder; name their --group_column"
    ):
        refuse_unused(rows, {"split_by"})
    refuse_unused(replace(rows, split_by="label"), {"split_by"})


def test_an_unknown_concept_is_told_with_its_neighbours() -> None:
    check_concept(None)
    with pytest.raises(SettingsError, match="sf_dry"):
        check_concept("sf_dri")
