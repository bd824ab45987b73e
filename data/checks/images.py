"""The check of pictures: a folder, classes of DTD, or a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.checks.captions_findings import find_words
from data.checks.gathering import HELD_OUT, TRAINING, UNUSED, gather
from data.checks.image_findings import Findings, Seen, find_classes, find_duplicates, find_light, find_sizes
from data.checks.report import Report, counted
from data.checks.verdict import verdict
from data.errors import DataError
from data.faults import Fault, faults_of
from data.gathered_images import GatheredImages
from data.image_dataset import ImageDataset
from data.image_splits import split_group, split_images
from data.sources import ImageSource
from data.usable_images import UsableImages, find_usable


def examine_images(source: ImageSource, subject: str, *, tokenizer: Path, num_workers: int) -> Report:
    """Return what is in the pictures of a source and what is wrong with them.

    Raises SettingsError for settings under which there is nothing to look at, as training does.
    """
    gathered, held_out = gather(source)
    found = find_usable(gathered, source.captions, source.resolution, num_workers=num_workers)
    faults = list(found.refused(skip_bad=source.skip_bad))
    skipped = [fault for fault in found.faults if fault not in faults]
    sides, more = _sides(source, found, held_out, has_faults=bool(faults))
    images = [Seen(image, facts, sides.get(image.name, UNUSED)) for image, facts in found.decoded]
    return _report(subject, source, images, [*faults, *more], skipped, gathered, found, tokenizer, num_workers)


def _sides(
    source: ImageSource, found: UsableImages, held_out: frozenset[str], *, has_faults: bool
) -> tuple[dict[str, str], list[Fault]]:
    """Return the side of the split that training gives each picture, by name, and what else training refuses.

    Where nothing is wrong so far, the dataset is opened exactly as training opens it. Otherwise the sides are those
    that the pictures would be on without the ones that are refused.
    """
    more: list[Fault] = []
    if not has_faults:
        try:
            dataset = source.open()
        except DataError as error:
            more = list(faults_of(error))
        else:
            assert isinstance(dataset, ImageDataset), "pictures are no slices"
            both = (dataset.training, TRAINING), (dataset.held_out, HELD_OUT)
            return {image.name: side for images, side in both for image in images}, []
    if source.concept is None:
        groups = [split_group(image, source.split_by) for image in found.images]
        by_label = source.split_by == "group"
        held_out = frozenset(
            image.name for image in split_images(found.images, source.held_out_fraction, groups, by_label=by_label)[1]
        )
    return {image.name: HELD_OUT if image.name in held_out else TRAINING for image in found.images}, more


def _report(
    subject: str,
    source: ImageSource,
    images: Sequence[Seen],
    faults: Sequence[Fault],
    skipped: Sequence[Fault],
    gathered: GatheredImages,
    found: UsableImages,
    tokenizer: Path,
    num_workers: int,
) -> Report:
    findings: list[Findings] = []
    warnings: list[str] = []
    sections = []
    numbers: dict[str, Any] = {"num_images": len(images)}
    overview = _place(source)
    overview += [("images", f"{len(images):,}" + (f" of {found.num_found:,}" if found.num_found > len(images) else ""))]
    needs_prompt = source.needs_captions and found.is_uncaptioned
    if images:
        classes = find_classes(images, num_workers)
        duplicates = find_duplicates(images, num_workers)
        words = find_words(
            [image.source.name for image in images],
            [image.source.caption for image in images],
            tokenizer,
            needs_prompt=needs_prompt,
        )
        findings = [classes, duplicates, find_sizes(images, source.resolution), find_light(images)]
        warnings = [warning for one in (duplicates, *findings) for warning in one.warnings]
        warnings = list(dict.fromkeys([*warnings, *words.warnings]))
        sections = [*(one.section for one in findings), words.section]
        names = ("images", "duplicates", "sizes", "light", "captions")
        numbers |= dict(zip(names, (*(one.numbers for one in findings), words.numbers), strict=True))
        overview += _overview(images, numbers)
    return Report(
        subject=subject,
        verdict=verdict(faults, needs_prompt=needs_prompt, num_skipped=len({fault.where for fault in skipped})),
        refused=bool(faults),
        overview=overview,
        faults=faults,
        skipped=skipped,
        warnings=[*warnings, *(" ".join(note.split()) for note in gathered.notes)],
        sections=sections,
        ignored=[_inside(path, source) for path in gathered.ignored],
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
