"""How often near-duplicates are found, and how often different pictures are taken for such, on the DTD stand-in.

    python benchmarks/near_duplicates.py

Every pair of 60 pictures of each of the 47 classes is compared; every seventh picture is copied in the ways listed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageEnhance

from data.checks.duplicates import near_duplicates
from data.checks.facts import ImageFacts, image_facts
from data.dtd import CLASSES
from data.images import decode_image
from data.synthetic.textures import SUBSTITUTES, texture

PER_CLASS, EVERY = 60, 7


def main() -> None:
    names = [name for name in CLASSES for _ in range(PER_CLASS)]
    pictures = [Image.fromarray(texture(name, index)) for name in CLASSES for index in range(PER_CLASS)]
    facts = [_facts(picture) for picture in pictures]
    wrong = near_duplicates(facts)
    substitutes = sum(names[pair.first] in SUBSTITUTES and names[pair.second] in SUBSTITUTES for pair in wrong)
    print(f"{len(wrong)} of {math.comb(len(facts), 2):,} pairs of different pictures were taken for duplicates,")
    print(f"{substitutes} of them between pictures of the classes that carry the same written band")
    copied = range(0, len(pictures), EVERY)
    found: dict[str, int] = {}
    for place in copied:
        for change, copy in _copies(pictures[place]):
            found[change] = found.get(change, 0) + bool(near_duplicates([facts[place], _facts(copy)]))
    for change, number in found.items():
        print(f"{change:>40}: {number} of {len(copied)} found ({number / len(copied):.1%})")


def _facts(picture: Image.Image) -> ImageFacts:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return image_facts(buffer.getvalue(), decode_image(buffer.getvalue(), "picture"))


def _copies(picture: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    yield "JPEG of quality 75", _jpeg(picture, 75)
    yield "JPEG of quality 40", _jpeg(picture, 40)
    for scale in (0.5, 0.75, 0.9, 1.3):
        size = round(picture.width * scale), round(picture.height * scale)
        yield f"resized by {scale}", picture.resize(size, Image.Resampling.BICUBIC)
    yield "brightness x 0.8", ImageEnhance.Brightness(picture).enhance(0.8)
    yield "brightness x 1.25, clipped", ImageEnhance.Brightness(picture).enhance(1.25)
    yield "gamma 0.75", Image.fromarray((255 * (np.asarray(picture) / 255) ** 0.75).astype(np.uint8))
    smaller = picture.resize((round(picture.width * 0.9), round(picture.height * 0.9)), Image.Resampling.LANCZOS)
    yield "resized by 0.9, brightness x 0.85, JPEG 60", _jpeg(ImageEnhance.Brightness(smaller).enhance(0.85), 60)


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


if __name__ == "__main__":
    main()
