"""What is wrong with the data of a run that is refused for its folder: all problems are told at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data.errors import DataError, OutputError, SettingsError
from finetune.core.settings import ConceptSettings, DdpmSettings, LoopSettings
from pipelines.base_folders import read_shape

if TYPE_CHECKING:
    from accelerate import Accelerator

_RESOLUTION_PX = 64  # where neither the settings nor the base say one


@contextmanager
def telling_data_problems(settings: LoopSettings, accelerator: Accelerator) -> Iterator[None]:
    """Add what is wrong with a run's images to an OutputError that is raised inside."""
    try:
        yield
    except OutputError as error:
        found = _data_problems(settings, accelerator)
        if not found:
            raise
        raise OutputError(error.where, *error.problems, *found) from error


def _data_problems(settings: LoopSettings, accelerator: Accelerator) -> list[str]:
    """Return what is wrong with a run's images, in sentences; of the base only its configuration is read."""
    from finetune.core.concept_images import needs_captions, open_source  # diffusers comes with it

    if isinstance(settings, ConceptSettings):
        shape = read_shape(settings.pretrained_model_name_or_path, settings.revision)
        side = settings.resolution or shape.resolution or _RESOLUTION_PX
        needed = needs_captions(settings)
    elif isinstance(settings, DdpmSettings) and settings.data_format == "images":
        side, needed = settings.resolution or _RESOLUTION_PX, settings.class_conditional
    else:
        return []
    if settings.concept is not None and settings.data_root is None:
        return []  # the images would have to be generated first
    try:
        open_source(settings, side, 0.0, accelerator, needs_captions=needed)
    except (DataError, SettingsError) as error:
        return [f"{error.where}: {problem}" for problem in error.problems]
    return []
