"""Look at training data before any training: what is in it, what is wrong with it, would training go on?

python data/check.py --train_data_dir my_images --resolution 512

The options have the names and the meaning that they have in training. Writes check.html and check.json into
--output_dir and ends with code 3 where training would refuse the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.environment import DATA_VARIABLE, data_root
from data.errors import DataError, SettingsError
from data.exits import Parser, above_zero, at_least, exit_code, positive
from data.output_folders import refuse_unwritable

if TYPE_CHECKING:
    from data.checks.report import Report
    from data.sources import ImageSource

RESOLUTION = 64  # of the embedded base model


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    source = _source(arguments)
    folder = _output_folder(arguments)
    from data.checks.page import write_page
    from data.checks.terminal import terminal_page

    source.refuse_outside_files()
    report = _examine(source, arguments)
    page = write_page(report, folder)
    print(f"{terminal_page(report)}\n\nThe whole page: {page}")
    if report.refused:
        raise DataError(str(page.parent), f"training would refuse {report.subject}. See {page.name} there.")


def _examine(source: ImageSource, arguments: argparse.Namespace) -> Report:
    from data.concepts import CONCEPTS, load_concept

    subject = _subject(arguments)
    if source.concept is not None and not load_concept(source.concept, CONCEPTS).textures:
        from data.checks.volumes import examine_volumes

        return examine_volumes(source, subject)
    from data.checks.images import examine_images

    return examine_images(source, subject, tokenizer=arguments.tokenizer, num_workers=arguments.num_workers)


def _source(arguments: argparse.Namespace) -> ImageSource:
    """Return where the images come from, as training would have it of the same options."""
    from data.sources import ImageSource, check_concept, refuse_unused

    check_concept(arguments.concept)
    source = ImageSource(
        concept=arguments.concept,
        data_root=_data_root(arguments) if arguments.concept is not None else None,
        train_data_dir=arguments.train_data_dir,
        dataset_name=arguments.dataset_name,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        group_column=arguments.group_column,
        resolution=arguments.resolution,
        um_per_px=arguments.um_per_px,
        px_per_voxel=arguments.px_per_voxel,
        images_per_class=arguments.images_per_class,
        held_out_fraction=arguments.held_out_fraction,
        split_by=arguments.split_by,
        dtd_split=arguments.dtd_split,
        allow_outside_files=arguments.allow_outside_files,
        default_caption=arguments.default_caption,
        needs_captions=len(arguments.instance_prompt) != 1,
        skip_bad=arguments.skip_bad,
    )
    refuse_unused(source, _changed(arguments))
    return source


def _data_root(arguments: argparse.Namespace) -> Path:
    """Return the folder of the data of a concept; without one that of the generated stand-ins, as training does."""
    found: Path | None = arguments.data_root or data_root()
    if found is None:
        from data.stand_ins import generated_data

        found, said = generated_data(arguments.concept)
        print(f"{said}\n")
    return found


def _subject(arguments: argparse.Namespace) -> str:
    """Return the short name of the data, for titles and folders."""
    if arguments.concept is not None:
        return str(arguments.concept)
    if arguments.train_data_dir is not None:
        return str(arguments.train_data_dir.resolve().name)
    return str(arguments.dataset_name).rstrip("/").rpartition("/")[2]


def _output_folder(arguments: argparse.Namespace) -> Path:
    return refuse_unwritable(arguments.output_dir or Path(f"check-{_subject(arguments)}"))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    arguments = _parser().parse_args(argv)
    values, changed = vars(arguments), _changed(arguments)
    given = [f"--{name}" for name in ("concept", "train_data_dir", "dataset_name") if values[name] is not None]
    problems = []
    if not given:
        problems.append("--train_data_dir: missing (which images). Or give --dataset_name or --concept.")
    elif len(given) > 1:
        problems.append(f"{', '.join(given)}: expected only one of them.")
    if arguments.dataset_name is None:
        problems += [
            f"--{name}: belongs to --dataset_name, which is not given. Leave it out."
            for name in ("dataset_config_name", "image_column", "group_column")
            if name in changed
        ]
        if arguments.train_data_dir is None and "caption_column" in changed:
            problems.append("--caption_column: belongs to --dataset_name or --train_data_dir. Leave it out.")
    if problems:
        raise SettingsError("settings of check", *problems)
    return arguments


def _changed(arguments: argparse.Namespace) -> set[str]:
    """Return the names of the options that are not at their defaults."""
    defaults = vars(_parser().parse_args([]))
    return {name for name, value in vars(arguments).items() if value != defaults[name]}


def _parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--train_data_dir", type=Path, help="folder of images with captions")
    add("--dataset_name", help="Hugging Face dataset, by name or folder")
    add("--concept", help="which images of --data_root, such as sf_dry or dtd_zigzagged")
    add("--data_root", type=Path, help=f"folder of the volumes and of dtd/; {DATA_VARIABLE} can set it")
    add("--dataset_config_name", help="configuration of --dataset_name")
    add("--image_column", default="image", help="column of images of --dataset_name (default: image)")
    add(
        "--caption_column",
        default="text",
        help="column of captions of --dataset_name, or key of captions in metadata.jsonl (default: text)",
    )
    add("--default_caption", help="caption of images that have none (default: they are refused)")
    add("--instance_prompt", nargs="+", default=(), help="prompt in place of the captions, as in training")
    add("--skip_bad", action="store_true", help="leave out images that cannot be used, and list them")
    add("--group_column", help="column of --dataset_name that is equal in rows that must not be split")
    add("--resolution", type=at_least(8), default=RESOLUTION, help=f"side of the images in px (default: {RESOLUTION})")
    add("--um_per_px", type=above_zero, help="micrometres per pixel of slices (default: the voxel size)")
    add("--px_per_voxel", type=above_zero, help="pixels per voxel of slices whose voxel size is unknown")
    add("--images_per_class", type=positive, help="images taken from each class (default: all)")
    add(
        "--held_out_fraction",
        type=_held_out_fraction,
        default=0.2,
        help="share of each class kept out of training (default: 0.2)",
    )
    add(
        "--split_by",
        choices=("group", "folder", "label"),
        default="group",
        help="what stays whole on one side of the split (default: group)",
    )
    add("--dtd_split", type=positive, default=1, help="official split of DTD, 1 to 10 (default: 1)")
    add("--allow_outside_files", action="store_true", help="take files that links or rows lead to outside of the data")
    add(
        "--tokenizer",
        type=Path,
        default=_tokenizer(),
        help="folder with tokenizer.json, for the length of captions (default: the embedded base model's)",
    )
    add("--output_dir", type=Path, help="folder for the page, which replaces an earlier one (default: check-NAME)")
    add("--num_workers", type=positive, default=_cores(), help="processes that decode (default: one for each core)")
    return parser


def _held_out_fraction(text: str) -> float:
    number = float(text)
    if not 0 < number <= 0.5:
        raise argparse.ArgumentTypeError(f"found {text}, expected more than 0, at most 0.5")
    return number


def _tokenizer() -> Path:
    # the data package knows no model: the words of the embedded one are found by their place in the repository
    return Path(__file__).resolve().parents[1] / "pipelines" / "swatch" / "tokenizer"


def _cores() -> int:
    from data.checks.processes import usable_processes

    return usable_processes()


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "check"))
