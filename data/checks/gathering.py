"""The pictures that a run would see, each found even where training would stop at one of them or at its words."""

from __future__ import annotations

from data.concepts import CONCEPTS, load_concept
from data.dtd_images import survey_textures
from data.errors import DataError
from data.faults import faults_of
from data.gathered_images import GatheredImages
from data.hub_images import survey_rows
from data.image_files import survey_folder
from data.sources import ImageSource

TRAINING, HELD_OUT, UNUSED = "training", "held out", ""


def gather(source: ImageSource) -> tuple[GatheredImages, frozenset[str]]:
    """Return the pictures of a source with what is wrong, and the names of those that DTD's own split holds out.

    Raises SettingsError for settings under which there is nothing to look at, as training does.
    """
    try:
        if source.dataset_name is not None:
            columns = source.image_column, source.caption_column, source.group_column
            name, config, outside = source.dataset_name, source.dataset_config_name, source.allow_outside_files
            return survey_rows(name, config, "train", *columns, allow_outside_files=outside), frozenset()
        if source.train_data_dir is not None:
            return survey_folder(source.train_data_dir, source.caption_column), frozenset()
    except DataError as error:
        return GatheredImages((), faults_of(error)), frozenset()
    assert source.concept is not None, "pictures come from somewhere"
    assert source.data_root is not None, "a concept is read from a folder"
    return survey_textures(source.data_root, load_concept(source.concept, CONCEPTS).textures, source.dtd_split)
