"""Generated data in the place of data that is not there: drawn once, from seeds, and plainly said."""

from __future__ import annotations

from pathlib import Path

from data.concepts import CONCEPTS, load_concept
from data.dtd import CLASSES
from data.environment import DATA_VARIABLE, cache_folder
from data.progress import Progress
from data.synthetic.textures import IMAGES_PER_CLASS, ensure_dtd
from data.synthetic.weave import ensure_volumes


def generated_data(concept: str) -> tuple[Path, str]:
    """Return a data root with stand-ins for a concept's volumes or textures, and what a user must be told of it."""
    if load_concept(concept, CONCEPTS).textures:
        with Progress(total=len(CLASSES) * IMAGES_PER_CLASS, unit="image", desc="drawing textures", delay=1) as bar:
            root, warning = ensure_dtd(cache_folder(), bar.update), "They are drawn by code; they are not DTD."
    else:
        root, warning = ensure_volumes(cache_folder()), "They are not your material."
    return root, f"No --data_root and no {DATA_VARIABLE}: using generated stand-ins in {root}.\n{warning}"
