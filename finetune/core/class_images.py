"""Images of the class that a method preserves: drawn by the base model from seeds, and kept with their provenance.

Each folder holds the images of one recipe (prompt, base, size, seed, ...); another recipe has another folder, so an
image is never taken for what it is not, and none is ever written over.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from data.dataset import Sample
from data.errors import DataError
from data.json_files import read_table
from data.output_folders import refuse_unwritable
from data.plain_text import plain
from data.progress import Progress
from data.randomness import derive, permuted_index
from finetune.core import files
from pipelines.components import Components, build_pipeline
from pipelines.sampling import sample
from pipelines.sheets import save_png, to_picture

PROVENANCE = "class_images.json"
_OF_A_CLASS = "what was written beside the images of a class. Remove this folder, and they are drawn again"


@dataclass(frozen=True)
class ClassRecipe:
    """What decides the images of a class, each together with its number.

    precision: in which the base draws them: "no", "fp16", "bf16", or "nf4" for a U-Net in 4 bits.
    """

    prompt: str
    base_fingerprint: str
    prediction_type: str
    resolution: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    precision: str = "no"

    @property
    def key(self) -> str:
        """A short name for the recipe's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def image_seed(self, number: int) -> int:
        """The seed from which the image of a number is drawn."""
        return derive(self.seed, "class image", number)


class ClassImages:
    """Images of the class as the prior of a run: one for each position, in shuffled rounds, all with the one prompt."""

    def __init__(self, folder: Path, recipe: ClassRecipe, num_images: int) -> None:
        self._folder, self._recipe, self._num_images = folder, recipe, num_images

    @cached_property
    def _pixels(self) -> list[np.ndarray]:
        return [_read(self._folder / _file_name(i), self._recipe.resolution) for i in range(self._num_images)]

    @property
    def captions(self) -> tuple[str, ...]:
        return (self._recipe.prompt,)

    def __len__(self) -> int:
        return self._num_images

    def sample(self, position: int) -> Sample:
        number = permuted_index(self._recipe.seed, position, self._num_images)
        return Sample(self._pixels[number], self._recipe.prompt, is_prior=True, source=f"class image {number}")

    def manifest(self) -> dict[str, object]:
        content = hashlib.sha256(b"".join(pixels.tobytes() for pixels in self._pixels)).hexdigest()
        return {**asdict(self._recipe), "num_images": self._num_images, "content_hash": content}


def class_images(
    components: Components, recipe: ClassRecipe, folder: Path, *, num_images: int, batch_size: int, write: bool
) -> ClassImages:
    """Return the first num_images of a recipe's images below a folder; those that are missing or spoilt are drawn.

    write: False for a process that leaves the drawing to another one, and for a run that only makes its plan.
    """
    home = folder / recipe.key
    if write:
        _draw_missing(components, recipe, home, num_images, batch_size)
    return ClassImages(home, recipe, num_images)


def _draw_missing(components: Components, recipe: ClassRecipe, home: Path, num_images: int, batch_size: int) -> None:
    record = home / PROVENANCE
    known: dict[str, str] = {}
    if record.exists():
        known = read_table(record, _OF_A_CLASS, needs=("sha256",), error=DataError)["sha256"]
        if not isinstance(known, dict):
            raise DataError(str(record), f"holds no hashes; expected {_OF_A_CLASS}.")
    missing = [number for number in range(num_images) if not _is_whole(home / _file_name(number), known)]
    if not missing:
        return
    refuse_unwritable(home, "--class_data_dir").mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(components)
    with Progress(total=len(missing), unit="image", desc=f"class images: {plain(recipe.prompt)}") as bar:
        for start in range(0, len(missing), batch_size):
            numbers = missing[start : start + batch_size]
            pictures = sample(
                pipeline,
                [recipe.prompt] * len(numbers),
                [recipe.image_seed(number) for number in numbers],
                num_inference_steps=recipe.num_inference_steps,
                guidance_scale=recipe.guidance_scale,
                batch_size=batch_size,
                height=recipe.resolution,
                width=recipe.resolution,
            )
            for number, picture in zip(numbers, pictures, strict=True):
                path = home / _file_name(number)
                save_png(to_picture(picture), path)
                known[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            files.write_json_atomic(record, {**asdict(recipe), "sha256": dict(sorted(known.items()))})
            bar.update(len(numbers))


def _is_whole(path: Path, known: dict[str, str]) -> bool:
    return path.exists() and known.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()


def _file_name(number: int) -> str:
    return f"{number:05d}.png"


def _read(path: Path, resolution: int) -> np.ndarray:
    """Return an image as float32 (3, row, column) in [-1, 1]."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"), np.float32)
    except (OSError, SyntaxError) as error:  # Pillow (13) names a broken PNG a SyntaxError
        raise DataError(str(path), f"cannot be read ({error}). Remove the folder, and it is drawn again.") from None
    if pixels.shape[:2] != (resolution, resolution):
        raise DataError(str(path), f"found {pixels.shape[:2]} px, expected {resolution}. Remove the folder.")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 127.5 - 1
