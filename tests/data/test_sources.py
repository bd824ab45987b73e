"""Where images come from, as a manifest keeps it, and options that do nothing to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import SettingsError
from data.sources import ImageSource, check_concept, refuse_unused


def _source(concept: str | None, train_data_dir: Path | None = None) -> ImageSource:
    return ImageSource(
        concept=concept,
        data_root=Path("scans"),
        train_data_dir=train_data_dir,
        dataset_name=None,
        dataset_config_name=None,
        image_column="image",
        caption_column="text",
        resolution=64,
        seed=0,
        um_per_px=None,
        images_per_class=None,
        center_crop=False,
        random_flip=False,
        proportion_empty_prompts=0.1,
        held_out_fraction=0.2,
    )


def test_a_manifest_gives_the_source_back_with_absolute_paths() -> None:
    read = ImageSource.from_manifest(_source("sf_dry").manifest())
    assert read == ImageSource(**{**vars(_source("sf_dry")), "data_root": Path("scans").resolve()})
    assert read.class_noun == "slice"
    assert _source(None, Path("images")).class_noun == "texture"


@pytest.mark.parametrize(
    ("concept", "changed", "refused"),
    [
        ("sf_dry", {"um_per_px", "held_out_fraction"}, set()),
        ("dtd", {"um_per_px", "held_out_fraction"}, {"um_per_px", "held_out_fraction"}),
        ("dtd_zigzagged", {"held_out_fraction"}, {"held_out_fraction"}),
        ("dtd", {"seed"}, set()),
        (None, {"um_per_px", "held_out_fraction"}, {"um_per_px"}),
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


def test_an_unknown_concept_is_told_with_its_neighbours() -> None:
    check_concept(None)
    with pytest.raises(SettingsError, match="sf_dry"):
        check_concept("sf_dri")
