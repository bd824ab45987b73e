"""What no fine-tune can show: held-out images through the base's autoencoder and back, before any training.

python pipelines/vae_ceiling.py --concept sf_dry
python pipelines/vae_ceiling.py --concept sf_dry --um_per_px 40 30 20 --resolution 128
python pipelines/vae_ceiling.py --train_data_dir my_images --pretrained_model_name_or_path FOLDER

Writes ceiling.json and ceiling.png. For slices of known voxel size finer pixel scales are tried too: those given with
--um_per_px, or a half and a quarter of the one scale that training would use.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.environment import DATA_VARIABLE, data_root
from data.errors import DataError, SettingsError
from data.exits import Parser, above_zero, exit_code, positive
from data.output_folders import free_folder
from data.plain_text import plain_lines
from pipelines.base_folders import read_shape

if TYPE_CHECKING:
    from PIL.Image import Image

    from data.progress import Progress
    from data.sources import ImageSource
    from pipelines.metrics.ceiling import Scale, Space

NUM_SCALES = 3  # tried where one or none is given, each half of the one before


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    folder = _output_folder(arguments)
    from data.sources import check_concept

    check_concept(arguments.concept)
    if arguments.resolution is not None:
        problem = read_shape(arguments.pretrained_model_name_or_path).size_problem(arguments.resolution)
        if problem is not None:
            raise SettingsError("--resolution", problem)
    from pipelines.components import load_components
    from pipelines.devices import drawing_device
    from pipelines.metrics.ceiling import advice, words
    from pipelines.spaces import LatentSpace

    components = load_components(arguments.pretrained_model_name_or_path)
    resolution = arguments.resolution or components.resolution
    source = _source(arguments, resolution)
    components.vae.to(drawing_device())
    space = LatentSpace(components.vae)
    scales, refused = _all_scales(space, source, arguments)
    if arguments.finest_um is not None and scales[0].um_per_px is None:
        raise SettingsError("--finest_um", "these images have no voxel size. Leave it out.")
    found = advice(scales, arguments.finest_um)
    record = {
        "base": components.name,
        "base_fingerprint": components.fingerprint,
        "source": source.manifest(),
        "criterion": found.criterion,
        "recommended_um_per_px": found.um_per_px,
        "not_cut": refused,
        "scales": [_scale_json(scale, found.shortcomings[number]) for number, scale in enumerate(scales)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "ceiling.json").write_text(text + "\n", encoding="utf-8")
    _draw(folder / "ceiling.png", scales, f"{components.name}, {resolution} px")
    print(plain_lines([*(line for scale in scales for line in words(scale)), *refused, *found.lines]))
    print(f"Look at {(folder / 'ceiling.png').resolve()}")


def _all_scales(space: Space, source: ImageSource, arguments: argparse.Namespace) -> tuple[list[Scale], list[str]]:
    """Return the scales in order of falling um per px, and what could not be cut of those that nobody asked for."""
    from data.progress import Progress

    given = sorted(arguments.um_per_px, reverse=True)
    scales: list[Scale] = []
    refused: list[str] = []
    with Progress(unit="image", desc="encode and decode") as bar:
        for um_per_px in given or [None]:
            scales.append(_one_scale(space, replace(source, um_per_px=um_per_px), arguments.num_images, bar))
        while len(given) < 2 and scales[0].um_per_px is not None and len(scales) + len(refused) < NUM_SCALES:
            finer = scales[0].um_per_px / 2 ** (len(scales) + len(refused))
            try:
                scales.append(_one_scale(space, replace(source, um_per_px=finer), arguments.num_images, bar))
            except DataError as error:
                refused.append(f"{finer:g} um per px was not tried: {error}")
    return scales, refused


def _one_scale(space: Space, source: ImageSource, num_images: int, bar: Progress) -> Scale:
    from pipelines.metrics.ceiling import measure

    dataset = source.open()
    held_out, training = dataset.held_out_pixels(num_images), dataset.training_pixels(num_images)
    usable = [caption for caption in held_out if min(len(held_out[caption]), len(training.get(caption, ()))) > 1]
    if not usable:
        raise DataError("held-out images", "found no caption with two held-out and two training images to look at.")
    if len(usable) < len(held_out):
        print(f"{len(held_out) - len(usable)} of {len(held_out)} captions have fewer than two images: left out")
    bar.total = bar.n + sum(len(held_out[caption]) for caption in usable)
    return measure(
        space,
        {caption: held_out[caption] for caption in usable},
        training,
        dataset.um_per_px,
        are_slices=bool(dataset.grey_values),
        progress=bar.update,
    )


def _scale_json(scale: Scale, shortcomings: Sequence[str]) -> dict[str, Any]:
    return {
        "um_per_px": scale.um_per_px,
        "shortcomings": list(shortcomings),
        "all": scale.loss.to_json(scale.um_per_px),
        "captions": {
            caption: {
                **view.loss.to_json(scale.um_per_px),
                "tint": view.tint,
                "descriptors": {
                    name: {"before": view.change(name)[0], "after": view.change(name)[1], **each.to_json()}
                    for name, each in view.slices.items()
                },
            }
            for caption, view in scale.views.items()
        },
    }


def _draw(path: Path, scales: Sequence[Scale], title: str) -> None:
    """Write images before, after and their difference, above the curves of the power kept.

    All captions (at most four) at the first scale, the first one at the others.
    """
    import PIL.Image

    from pipelines.metrics.ceiling import scale_name
    from pipelines.sheets import Row, save_png, sheet

    columns, num_captions, gain = 6, 4, 2
    rows = []
    for number, scale in enumerate(scales):
        for caption in list(scale.views)[: num_captions if number == 0 else 1]:
            view = scale.views[caption]
            step = max(1, len(view.before) // columns)
            before, after = (each[::step][:columns].transpose(0, 2, 3, 1) for each in (view.before, view.after))
            name = f"{caption}, {scale_name(scale.um_per_px)}"
            rows += [
                Row(f"{name}: before", list(before)),
                Row("after", list(after)),
                Row(f"difference x {gain}, about grey", list(0.5 + gain * (after - before))),
            ]
    pictures = sheet(rows, title=f"Through the autoencoder and back: {title}")
    curves = _curves(scales, pictures.width)
    whole = PIL.Image.new("RGB", (pictures.width, pictures.height + curves.height), "white")
    whole.paste(pictures, (0, 0))
    whole.paste(curves, (0, pictures.height))
    save_png(whole, path)


def _curves(scales: Sequence[Scale], width_px: int) -> Image:
    """Return a picture of the power kept at each frequency, one curve for each scale."""
    import io

    import PIL.Image
    from matplotlib.figure import Figure

    from pipelines.metrics.ceiling import scale_name

    dpi = 100
    figure = Figure(figsize=(width_px / dpi, 4.2), dpi=dpi, layout="constrained")
    axes = figure.add_subplot()
    known = scales[0].um_per_px is not None
    for number, scale in enumerate(scales):
        factor = 1000 / scale.um_per_px if scale.um_per_px is not None else 1.0
        label, loss, colour = scale_name(scale.um_per_px), scale.loss, f"C{number}"
        axes.plot(factor * loss.frequencies, loss.kept, color=colour, label=f"power after, {label}")
        axes.plot(factor * loss.frequencies, loss.error, color=colour, ls=":", label=f"power of the error, {label}")
    axes.axhline(0.5, color="0.5", lw=0.8)
    axes.set(
        xscale="log",
        ylim=(0, 1.5),
        xlabel="cycles per mm" if known else "cycles per px",
        ylabel="share of the power before",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return PIL.Image.open(buffer, formats=["PNG"]).convert("RGB")


def _source(arguments: argparse.Namespace, resolution: int) -> ImageSource:
    """Return where the images come from, as training would have it of the same options."""
    from data.sources import ImageSource, refuse_unused

    source = ImageSource(
        concept=arguments.concept,
        data_root=None if arguments.concept is None else _data_root(arguments),
        train_data_dir=arguments.train_data_dir,
        resolution=resolution,
    )
    refuse_unused(source, {"um_per_px"} if arguments.um_per_px else set())
    return source


def _data_root(arguments: argparse.Namespace) -> Path:
    """Return the folder of the data of a concept; without one that of the generated stand-ins, as training does."""
    found: Path | None = arguments.data_root or data_root()
    if found is None:
        from data.stand_ins import generated_data

        found, said = generated_data(arguments.concept)
        print(said)
    return found


def _output_folder(arguments: argparse.Namespace) -> Path:
    """Return a folder that holds nothing yet: the one asked for, or the first free runs/NAME-vae-ceiling-N."""
    name = arguments.concept or arguments.train_data_dir.resolve().name
    return free_folder(arguments.output_dir, Path("runs"), f"{name}-vae-ceiling")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--concept", help="which images of --data_root, such as sf_dry or dtd_zigzagged")
    images.add_argument("--train_data_dir", type=Path, help="folder of images")
    add("--data_root", type=Path, help=f"folder of the volumes and of dtd/; {DATA_VARIABLE} can set it")
    add("--pretrained_model_name_or_path", default="swatch", help="base model (default: swatch)")
    add("--um_per_px", type=above_zero, nargs="+", default=[], help="pixel scales of slices (default: the voxel size)")
    add("--finest_um", type=above_zero, help="period of the finest detail wanted (default: the mean chord of a tow)")
    add("--resolution", type=positive, help="side of the images in px (default: the base's own)")
    add("--num_images", type=positive, default=64, help="held-out images of each caption (default: 64)")
    add("--output_dir", type=Path, help="empty folder (default: runs/NAME-vae-ceiling-N)")
    arguments = parser.parse_args(argv)
    if arguments.data_root is not None and arguments.concept is None:
        raise SettingsError("--data_root", "belongs to --concept, which is not given. Leave it out.")
    return arguments


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "vae_ceiling"))
