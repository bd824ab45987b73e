"""Draw pictures with a pixel model, in any way of sampling: single images, a labelled grid, tif stacks in grey values.

python pipelines/generate_pixels.py --model runs/sf_dry-ddpm --sampler ddim --eta 0.5 --num_inference_steps 50
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SettingsError, nearest
from data.exits import Parser, exit_code, positive
from pipelines.prompts import file_stem, parse_seeds
from pipelines.way_options import add_way_options, chosen_way

if TYPE_CHECKING:
    import numpy as np

    from pipelines.diffusion.drawing import Way
    from pipelines.pixel_model import PixelModel

ONE_ROW = "pictures"  # what the row of a model without labels is called


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    seeds = parse_seeds(arguments.seeds)
    from data.output_folders import free_folder

    folder = free_folder(arguments.output_dir, arguments.model, "generated")
    from data.progress import Progress
    from pipelines.diffusion.drawing import draw
    from pipelines.diffusion.noisy_classifier import load_classifier
    from pipelines.diffusion.pictures import to_images
    from pipelines.pixel_model import load_pixel_model

    model = load_pixel_model(arguments.model)
    classifier = None if arguments.classifier is None else load_classifier(arguments.classifier, model)
    known = model.class_labels if classifier is None else classifier.labels
    labels = chosen_labels(known, arguments.labels)
    way = chosen_way(arguments, classifier_scale=arguments.classifier_scale)
    numbers = [known.index(label) for label in labels for _ in seeds] if labels else None
    with Progress(total=len(seeds) * max(1, len(labels)), unit="image", desc="draw") as bar:
        pixels = draw(
            model,
            way,
            list(seeds) * max(1, len(labels)),
            labels=numbers,
            classifier=classifier,
            batch_size=arguments.batch_size,
            progress=bar.update,
        )
    rows = to_images(model, pixels).reshape(max(1, len(labels)), len(seeds), model.size_px, model.size_px, -1)
    record = {"model": str(arguments.model), "fingerprint": model.fingerprint, "seeds": seeds} | asdict(way)
    _write(folder, model, labels, seeds, rows, record)
    if arguments.trajectory:
        _write_trajectory(folder, model, way, seeds, numbers, classifier, arguments.trajectory)
    print(f"{len(pixels)} images in {folder}, side by side in {folder / 'grid.png'}")


def chosen_labels(known: tuple[str, ...], asked: Sequence[str]) -> tuple[str, ...]:
    """Return the labels to draw: those asked for, or all; () for a model that knows none.

    Raises SettingsError for labels that it does not know.
    """
    if asked and not known:
        raise SettingsError("--labels", "this model was trained without labels. Leave it out.")
    problems = [f"found {label!r}.{nearest(label, known)}" for label in asked if label not in known]
    if problems:
        raise SettingsError("--labels", *problems)
    return tuple(asked) or known


def _write(
    folder: Path,
    model: PixelModel,
    labels: tuple[str, ...],
    seeds: Sequence[int],
    pictures: np.ndarray,
    record: dict[str, Any],
) -> None:
    """Write every picture as PNG, the grid, a tif stack for each row whose grey values are known, and images.json."""
    from pipelines.sheets import Row, save_png, sheet, to_picture
    from pipelines.whole_files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    names, files = labels or (ONE_ROW,), []
    for index, (name, row) in enumerate(zip(names, pictures, strict=True)):
        stem = file_stem(index, name)
        for seed, picture in zip(seeds, row, strict=True):
            save_png(to_picture(picture), folder / f"{stem}-seed{seed}.png")
        files.append(
            {"label": name if labels else None, "stem": stem, "tif": _write_stack(folder, stem, model, name, row)}
        )
    rows = [Row(name, list(row)) for name, row in zip(names, pictures, strict=True)]
    grid = sheet(rows, title=record["model"], columns=[f"seed {seed}" for seed in seeds])
    save_png(grid, folder / "grid.png")
    write_json({**record, "images": files}, folder / "images.json")


def _write_stack(folder: Path, stem: str, model: PixelModel, label: str, row: np.ndarray) -> str | None:
    """Write one row (N, H, W, C) as a tif stack in the grey values of its volume; None and a line where none are known.

    A model without labels that saw several windows draws pictures of an unknown one.
    """
    import numpy as np

    from data.tif.writer import write_stack
    from data.windows import unit_to_native

    windows = [dict(values) for values in model.grey_values.values()]
    if label in model.grey_values:
        grey = dict(model.grey_values[label])
    elif windows and all(values == windows[0] for values in windows):
        grey = windows[0]
    else:
        if windows:
            print(
                f"{stem}: no tif, as the model saw volumes of different windows and this picture is of no one of them"
            )
        return None
    low, high = grey["window"]
    native = unit_to_native(row.mean(axis=-1), low=low, high=high, dtype=np.dtype(grey["dtype"]))
    size = None if model.um_per_px is None else (model.um_per_px,) * 3
    write_stack(folder / f"{stem}.tif", native, size)
    return f"{stem}.tif"


def _write_trajectory(
    folder: Path, model: PixelModel, way: Way, seeds: Sequence[int], labels: Any, classifier: Any, num_pictures: int
) -> None:
    """Write how the first seeds' pictures come out of the noise."""
    from pipelines.diffusion.drawing import draw
    from pipelines.diffusion.trajectories import Trajectory, strip
    from pipelines.sheets import save_png

    shown = list(seeds)[:3]
    trajectory = Trajectory()
    first = None if labels is None else labels[: len(shown)]
    draw(model, way, shown, labels=first, classifier=classifier, callback=trajectory)
    save_png(strip(model, trajectory, [f"seed {seed}" for seed in shown], num_pictures), folder / "trajectory.png")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py, or such a folder")
    parser.add_argument("--seeds", default="0-7", help="one picture each for every label (default: 0-7)")
    parser.add_argument("--labels", nargs="+", default=[], help="labels to draw (default: all that are known)")
    add_way_options(parser)
    parser.add_argument("--classifier", type=Path, help="folder of pipelines/train_noisy_classifier.py")
    parser.add_argument(
        "--classifier_scale", type=float, default=0.0, help="of the classifier's gradient; 0 is none (default: 0)"
    )
    parser.add_argument(
        "--trajectory", type=_not_negative, default=0, help="steps in a strip out of the noise; 0: no strip (default)"
    )
    parser.add_argument("--batch_size", type=positive, default=16, help="pictures drawn together (default: 16)")
    parser.add_argument("--output_dir", type=Path, help="empty folder (default: the model's generated-N)")
    return parser.parse_args(argv)


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 or more")
    return number


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "generate_pixels"))
