"""The check of pictures: a folder, classes of DTD, or a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.checks.captions_findings import find_words
from data.checks.decode import Refused, decode_images
from data.checks.gathering import (
    HELD_OUT,
    TRAINING,
    UNUSED,
    Gathered,
    faults_of,
    gather_folder,
    gather_rows,
    gather_textures,
)
from data.checks.image_findings import Findings, Seen, find_classes, find_duplicates, find_light, find_sizes
from data.checks.report import Fault, Report, counted
from data.checks.verdict import verdict
from data.concepts import CONCEPTS, load_concept
from data.errors import DataError
from data.image_dataset import CheckedImage, ImageDataset
from data.image_splits import split_group, split_images
from data.sources import ImageSource


def examine_images(source: ImageSource, subject: str, *, tokenizer: Path, num_workers: int) -> Report:
    """Return what is in the pictures of a source and what is wrong with them.

    Raises SettingsError for settings under which there is nothing to look at, as training does.
    """
    gathered = _gathered(source)
    outcomes = decode_images(gathered.images, num_workers=num_workers)
    faults = list(gathered.faults)
    images = []
    for member, outcome, side in zip(gathered.images, outcomes, gathered.sides, strict=True):
        if isinstance(outcome, Refused):
            faults += [Fault(member.name, problem) for problem in outcome.problems]
        else:
            images.append(Seen(member, outcome, side))
    images, found = _on_their_sides(source, images, has_faults=bool(faults))
    return _report(subject, source, images, [*faults, *found], gathered, tokenizer, num_workers)


def _gathered(source: ImageSource) -> Gathered:
    if source.dataset_name is not None:
        return gather_rows(
            source.dataset_name,
            source.dataset_config_name,
            source.image_column,
            source.caption_column,
            source.group_column,
            allow_outside_files=source.allow_outside_files,
        )
    if source.train_data_dir is not None:
        return gather_folder(source.train_data_dir)
    assert source.concept is not None, "pictures come from somewhere"
    assert source.data_root is not None, "a concept is read from a folder"
    return gather_textures(source.data_root, load_concept(source.concept, CONCEPTS).textures, source.dtd_split)


def _on_their_sides(source: ImageSource, images: Sequence[Seen], *, has_faults: bool) -> tuple[list[Seen], list[Fault]]:
    """Return the pictures with the sides of the split that training gives them, and what else training refuses.

    Where nothing is wrong so far, the dataset is opened exactly as training opens it. Otherwise the sides are those
    that the pictures would be on without the ones that are refused.
    """
    if not has_faults:
        try:
            dataset = source.open()
        except DataError as error:
            return _split(source, images), list(faults_of(error))
        assert isinstance(dataset, ImageDataset), "pictures are no slices"
        sides = {image.name: TRAINING for image in dataset.training} | {i.name: HELD_OUT for i in dataset.held_out}
        return [replace(image, side=sides.get(image.source.name, UNUSED)) for image in images], []
    images = _split(source, images)
    training, held_out = ([_checked(image) for image in images if image.side == side] for side in (TRAINING, HELD_OUT))
    try:
        if training:
            ImageDataset(training, held_out, source.crops)
    except DataError as error:
        return images, list(faults_of(error))
    return images, []


def _split(source: ImageSource, images: Sequence[Seen]) -> list[Seen]:
    """Return the pictures of a random split on their sides; those of DTD are on theirs."""
    if source.concept is not None:
        return list(images)
    checked = [_checked(image) for image in images]
    groups = [split_group(image.source, source.split_by) for image in images]
    _, held_out = split_images(checked, source.held_out_fraction, groups, by_label=source.split_by == "group")
    names = {image.name for image in held_out}
    return [replace(image, side=HELD_OUT if image.source.name in names else TRAINING) for image in images]


def _checked(image: Seen) -> CheckedImage:
    return CheckedImage(image.source, image.facts.sha256, image.facts.shape_px)


def _report(
    subject: str,
    source: ImageSource,
    images: Sequence[Seen],
    faults: Sequence[Fault],
    gathered: Gathered,
    tokenizer: Path,
    num_workers: int,
) -> Report:
    findings: list[Findings] = []
    warnings: list[str] = []
    sections = []
    numbers: dict[str, Any] = {"num_images": len(images)}
    num_found = len(gathered.images)
    overview = _place(source)
    overview += [("images", f"{len(images):,}" + (f" of {num_found:,}" if num_found > len(images) else ""))]
    if images:
        classes = find_classes(images, num_workers)
        duplicates = find_duplicates(images, num_workers)
        words = find_words([i.source.name for i in images], [i.source.caption for i in images], tokenizer)
        findings = [classes, duplicates, find_sizes(images, source.resolution), find_light(images)]
        warnings = [warning for one in (duplicates, *findings) for warning in one.warnings]
        warnings = list(dict.fromkeys([*warnings, *words.warnings]))
        sections = [*(one.section for one in findings), words.section]
        names = ("images", "duplicates", "sizes", "light", "captions")
        numbers |= dict(zip(names, (*(one.numbers for one in findings), words.numbers), strict=True))
        overview += _overview(images, numbers)
    ignored = [_inside(path, source) for path in gathered.ignored]
    return Report(
        subject=subject,
        verdict=verdict(faults, needs_prompt=any(not image.source.caption for image in images)),
        refused=bool(faults),
        overview=overview,
        faults=faults,
        warnings=warnings,
        sections=sections,
        ignored=ignored,
        numbers=numbers,
    )


def _overview(images: Sequence[Seen], numbers: dict[str, Any]) -> list[tuple[str, str]]:
    sides = {side: sum(image.side == side for image in images) for side in (TRAINING, HELD_OUT)}
    duplicates, sizes, words = numbers["duplicates"], numbers["sizes"], numbers["captions"]
    labels = [label for label in numbers["images"]["classes"] if label]
    num_equal = sum(len(group) - 1 for group in duplicates["equal"])
    return [
        ("classes", f"{len(labels):,}" if labels else "none"),
        ("split", f"{sides[TRAINING]:,} training, {sides[HELD_OUT]:,} held out"),
        (
            "sizes",
            f"{sizes['width_px']['least']:.0f}-{sizes['width_px']['most']:.0f} x "
            f"{sizes['height_px']['least']:.0f}-{sizes['height_px']['most']:.0f} px",
        ),
        ("enlarged", f"{sizes['num_enlarged']:,} at {sizes['resolution_px']} px"),
        (
            "duplicates",
            f"{num_equal:,} equal, {counted(len(duplicates['near']), 'near pair')}, "
            f"{duplicates['num_across_the_split']:,} across the split",
        ),
        ("captions", f"{words['num_distinct']:,} distinct, {words['num_without']:,} missing"),
    ]


def _place(source: ImageSource) -> list[tuple[str, str]]:
    folder = source.train_data_dir or source.data_root
    return [("dataset", str(source.dataset_name)) if folder is None else ("folder", str(folder))]


def _inside(path: Path, source: ImageSource) -> str:
    folder = source.train_data_dir or source.data_root
    return (
        path.relative_to(folder).as_posix() if folder is not None and path.is_relative_to(folder) else path.as_posix()
    )
