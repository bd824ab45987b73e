"""Training and held-out pictures: what belongs together stays on one side, whatever its names and its order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, Protocol, TypeVar

from data.randomness import derive

SplitBy = Literal["group", "folder", "label"]
SMALLEST_SPLIT_LABEL = 5  # a class with fewer different images has none to spare for judging
_SPLIT_SEED = 0  # the same for every run: what one run holds out, no other trains on


class LabelledImage(Protocol):
    """What a split knows of a picture: its content, as a hash, and the name of its class, "" for none."""

    @property
    def sha256(self) -> str: ...

    @property
    def label(self) -> str: ...


class NamedImage(Protocol):
    """What says which group a picture belongs to."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def group(self) -> str: ...


_Image = TypeVar("_Image", bound=LabelledImage)


def split_group(image: NamedImage, split_by: SplitBy) -> str:
    """Return what a picture has in common with those that stay on its side of a split; "" for nothing.

    split_by: "group", what its metadata say; "folder", where its name says that it lies; "label", its class.
    """
    if split_by == "folder":
        return str(PurePosixPath(image.name).parent)
    return image.label if split_by == "label" else image.group


def split_images(
    images: Sequence[_Image], held_out_fraction: float, groups: Sequence[str] = (), *, by_label: bool = True
) -> tuple[list[_Image], list[_Image]]:
    """Return training and held-out images, each in the order given; identical files are on the same side.

    groups: the name of each image's group, "" for none; images of a group, and of groups that share a file, are on the
    same side too. () is no groups. by_label: hold out a share of every label, not of all images together.

    Of each label with n different images, n x held_out_fraction (rounded, 1 to n - 1) are held out where n is at
    least SMALLEST_SPLIT_LABEL, none where it is less or the fraction is 0. Groups are drawn until they come nearest to
    that number, and one group of a label is always trained on. Which ones depends on their content alone, not on
    names, order or seed. A group under several labels is held out only where each of them has one to give.
    """
    together = _together(images, groups or [""] * len(images))
    units: dict[str, dict[str, set[str]]] = {}  # of each unit: the contents under each label
    for image in images:
        of_unit = units.setdefault(together[image.sha256], {})
        of_unit.setdefault(image.label if by_label else "", set()).add(image.sha256)
    sizes = {unit: {label: len(contents) for label, contents in of.items()} for unit, of in units.items()}
    chosen = _chosen_units(sizes, held_out_fraction)
    return (
        [image for image in images if together[image.sha256] not in chosen],
        [image for image in images if together[image.sha256] in chosen],
    )


def _chosen_units(sizes: Mapping[str, Mapping[str, int]], fraction: float) -> set[str]:
    """Return the units to hold out. sizes: of each unit, how many different images it has under each label."""
    num_different, num_units = Counter[str](), Counter[str]()
    for of_unit in sizes.values():
        num_different.update(of_unit)
        num_units.update(of_unit.keys())
    left = {label: _num_held_out(number, fraction) for label, number in num_different.items()}
    chosen: set[str] = set()

    def take(unit: str) -> None:
        chosen.add(unit)
        num_units.subtract(sizes[unit].keys())
        for label, size in sizes[unit].items():
            left[label] -= size

    def may_go(unit: str) -> bool:
        return unit not in chosen and all(left[label] > 0 and num_units[label] > 1 for label in sizes[unit])

    drawn = sorted(sizes, key=lambda unit: (derive(_SPLIT_SEED, "held-out", unit), unit))
    for unit in drawn:
        if may_go(unit) and all(size <= 2 * left[label] for label, size in sizes[unit].items()):
            take(unit)  # the number held out comes nearer to what was asked, or as near from the other side
    without = [label for label in left if left[label] == _num_held_out(num_different[label], fraction) > 0]
    for label in without:  # every group is too large: better the smallest than none
        if fitting := [unit for unit in drawn if label in sizes[unit] and may_go(unit)]:
            take(min(fitting, key=lambda unit: sum(sizes[unit].values())))
    return chosen


def _together(images: Iterable[LabelledImage], groups: Sequence[str]) -> dict[str, str]:
    """Return for each content the least content of those that it must stay together with."""
    leader = {image.sha256: image.sha256 for image in images}

    def first_of(content: str) -> str:
        while leader[content] != content:
            leader[content] = leader[leader[content]]
            content = leader[content]
        return content

    of_group: dict[str, str] = {}
    for image, group in zip(images, groups, strict=True):
        if group:
            pair = first_of(of_group.setdefault(group, image.sha256)), first_of(image.sha256)
            leader[max(pair)] = min(pair)
    return {content: first_of(content) for content in leader}


def _num_held_out(num_different: int, fraction: float) -> int:
    if num_different < SMALLEST_SPLIT_LABEL or fraction == 0:
        return 0
    return min(max(1, round(num_different * fraction)), num_different - 1)
