"""Equal and nearly equal pictures: copies are found, look-alikes of one class are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import data.checks.duplicates as duplicates
from data.checks.duplicates import DETAIL, Pair, equal_groups, near_duplicates
from data.checks.facts import ImageFacts, image_facts
from data.images import decode_image
from data.synthetic.textures import texture

WOVEN = Image.fromarray(texture("woven", 3))
CRACKED = Image.fromarray(texture("cracked", 1))


def facts_of(picture: Image.Image, kind: str = "PNG", **options: object) -> ImageFacts:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return image_facts(buffer.getvalue(), decode_image(buffer.getvalue(), ""))


def resized(picture: Image.Image, factor: float, across: float = 1.0) -> Image.Image:
    size = round(picture.width * factor * across), round(picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC)


COPIES = {
    "JPEG": lambda picture: facts_of(picture, "JPEG", quality=60),
    "WebP": lambda picture: facts_of(picture, "WEBP", quality=70),
    "smaller": lambda picture: facts_of(resized(picture, 0.8)),
    "larger": lambda picture: facts_of(resized(picture, 1.4)),
    "darker": lambda picture: facts_of(ImageEnhance.Brightness(picture).enhance(0.7)),
    "less contrast": lambda picture: facts_of(ImageEnhance.Contrast(picture).enhance(0.6)),
    "grey": lambda picture: facts_of(picture.convert("L")),
    "all at once": lambda picture: facts_of(
        ImageEnhance.Brightness(resized(picture, 0.9)).enhance(0.85), "JPEG", quality=60
    ),
}
OTHERS = {
    "mirrored": lambda picture: facts_of(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "upside down": lambda picture: facts_of(picture.rotate(180)),
    "negative": lambda picture: facts_of(Image.fromarray(255 - np.asarray(picture))),
    "stretched": lambda picture: facts_of(resized(picture, 1, 1.2)),
    "one colour": lambda picture: facts_of(Image.new("RGB", picture.size, (90, 90, 90))),
}


@pytest.mark.parametrize("picture", [WOVEN, CRACKED], ids=["woven", "cracked"])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(picture: Image.Image, name: str) -> None:
    (pair,) = near_duplicates([facts_of(picture), COPIES[name](picture)])
    assert (pair.first, pair.second) == (0, 1)
    assert DETAIL <= pair.correlation <= 1 + 1e-5
    assert not pair.is_equal


@pytest.mark.parametrize("name", OTHERS)
def test_another_picture_is_not_taken_for_a_copy(name: str) -> None:
    assert near_duplicates([facts_of(CRACKED), OTHERS[name](CRACKED)]) == []


def test_pictures_of_a_class_are_not_copies_of_each_other() -> None:
    for name in ("woven", "striped", "chequered", "veined"):
        assert near_duplicates([facts_of(Image.fromarray(texture(name, index))) for index in range(12)]) == []


def test_equal_files_form_groups_and_count_once_among_the_near_ones() -> None:
    woven, again, cracked = facts_of(WOVEN), facts_of(WOVEN, "JPEG", quality=80), facts_of(CRACKED)
    facts = [cracked, woven, again, cracked, woven, woven]
    assert equal_groups(facts) == [[0, 3], [1, 4, 5]]
    assert [(pair.first, pair.second) for pair in near_duplicates(facts)] == [(1, 2)]


def test_the_most_alike_come_first_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [facts_of(CRACKED), facts_of(WOVEN)]
    facts += [facts_of(picture, "JPEG", quality=quality) for quality in (90, 30) for picture in (WOVEN, CRACKED)]
    whole = near_duplicates(facts)
    assert {(pair.first, pair.second) for pair in whole} == {(1, 2), (0, 3), (1, 4), (0, 5), (2, 4), (3, 5)}
    assert [pair.correlation for pair in whole] == sorted((pair.correlation for pair in whole), reverse=True)
    for rows in (1, 2, 5):
        monkeypatch.setattr(duplicates, "_BLOCK", rows)
        assert [(p.first, p.second) for p in near_duplicates(facts)] == [(p.first, p.second) for p in whole]


def test_the_search_ends_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [facts_of(WOVEN, "JPEG", quality=quality) for quality in range(60, 90, 3)]
    assert len(near_duplicates(facts)) == 45
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 7)
    assert len(near_duplicates(facts)) == 7


def test_few_pictures_have_no_pairs() -> None:
    assert near_duplicates([]) == []
    assert near_duplicates([facts_of(WOVEN)]) == []
    assert equal_groups([]) == []
    assert Pair(0, 1, 1.0, is_equal=True).is_equal
