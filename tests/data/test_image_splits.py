"""What belongs together stays on one side of a split."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.image_splits import split_images


@dataclass(frozen=True)
class Picture:
    sha256: str
    label: str = ""


ENTRIES = st.lists(
    st.tuples(st.integers(0, 25), st.sampled_from("ab"), st.sampled_from(["", "g", "h", "i", "j", "k"])), max_size=50
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ENTRIES, st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), st.booleans(), st.randoms(use_true_random=False))
def test_neither_a_content_nor_a_group_is_on_both_sides(
    entries: list[tuple[int, str, str]], fraction: float, by_label: bool, order: object
) -> None:
    images = [Picture(f"{content:02}", label) for content, label, _ in entries]
    groups = [group for _, _, group in entries]
    training, held_out = split_images(images, fraction, groups, by_label=by_label)
    assert len(training) + len(held_out) == len(images)
    out = {image.sha256 for image in held_out}
    assert not out & {image.sha256 for image in training}
    of_group = {group: [i.sha256 for i, g in zip(images, groups, strict=True) if g == group] for group in set(groups)}
    for group, contents in of_group.items():
        assert not group or len({content in out for content in contents}) <= 1
    if fraction == 0:
        assert not held_out
    if by_label:  # a label that had something held out has something left
        assert {image.label for image in held_out} <= {image.label for image in training}
    else:
        assert training or not images
    pairs = list(zip(images, groups, strict=True))
    order.shuffle(pairs)  # type: ignore[attr-defined]
    again = split_images([i for i, _ in pairs], fraction, [g for _, g in pairs], by_label=by_label)[1]
    assert {image.sha256 for image in again} == out


def _sizes(sizes: list[int], fraction: float) -> list[int]:
    """Split groups of these sizes, and return the sizes of those held out."""
    images = [Picture(f"{number} {i}") for number, size in enumerate(sizes) for i in range(size)]
    groups = [image.sha256.split()[0] for image in images]
    _, held_out = split_images(images, fraction, groups)
    return sorted(sizes[int(number)] for number in {image.sha256.split()[0] for image in held_out})


@pytest.mark.parametrize(
    ("sizes", "fraction", "held_out"),
    [
        ([5] * 10, 0.2, [5, 5]),
        ([100, 10, 10, 10], 0.2, [10, 10, 10]),  # 26 asked: the large one would be four times too many
        ([5, 5], 0.2, [5]),  # each is too large, and one of two is better than none
        ([7, 5, 9], 0.1, [5]),  # the smallest of those that are too large
        ([40], 0.5, []),  # a single group is trained on
        ([1, 1, 1, 1], 0.5, []),  # fewer than five images
    ],
)
def test_groups_are_held_out_until_the_fraction_is_nearest(
    sizes: list[int], fraction: float, held_out: list[int]
) -> None:
    assert _sizes(sizes, fraction) == held_out


def test_groups_that_share_a_picture_are_one() -> None:
    chain = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "2"), ("c", "3"), ("d", "3")]
    alone = [(f"x{i}", "") for i in range(10)]
    images = [Picture(content) for content, _ in (*chain, *alone)]
    groups = [group for _, group in (*chain, *alone)]
    for fraction in (0.1, 0.3, 0.5, 0.8):
        held_out = {image.sha256 for image in split_images(images, fraction, groups)[1]}
        assert len(held_out & set("abcd")) in (0, 4)
