"""How near a pixel model's pictures come to held-out ones, kind by kind, and whether they are copies.

    python pipelines/judge_pixels.py --model runs/sf_dry-ddpm --num_images 128

A kind is a label, or a caption of the data: slices of different planes are never judged together. Where the model has
no labels, a classifier of the training pictures says of which kind each drawn picture is. Writes judgement.json, a
picture of drawn pictures beside real ones, and one of each kind's pictures nearest to a training picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.exits import Parser, at_least, exit_code, positive
from data.plain_text import plain_lines
from pipelines.way_options import add_way_options, chosen_way

if TYPE_CHECKING:
    import numpy as np

    from pipelines.diffusion.drawing import Way
    from pipelines.diffusion.judgement import RealPictures
    from pipelines.metrics.training_images import TrainingImages
    from pipelines.pixel_model import PixelModel

COLUMNS = 8


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.output_folders import free_folder
    from pipelines.diffusion.judgement import RealPictures
    from pipelines.diffusion.pictures import open_pictures
    from pipelines.metrics.training_images import TrainingImages
    from pipelines.pixel_model import load_pixel_model
    from pipelines.whole_files import write_json
    from pipelines.whole_pictures import WholePictures

    folder = free_folder(arguments.output_dir, arguments.model, "judged")
    way = chosen_way(arguments)
    model = load_pixel_model(arguments.model)
    dataset = open_pictures(arguments.model)
    real = RealPictures.of(model, dataset, arguments.num_images * len(dataset.captions))
    whole = dataset.whole_images()
    index = TrainingImages(WholePictures(whole).spread(arguments.num_searched), (model.size_px, model.size_px))
    drawn, naming = _drawn(model, way, real, arguments.num_images)
    record: dict[str, Any] = {
        "model": str(arguments.model),
        "fingerprint": model.fingerprint,
        "way": asdict(way),
        "naming": naming,
        "left_out": real.left_out,
        "searched": {"pictures": len(index), "of": len(whole)},
        "kinds": {
            kind: judged_with_copies(images, real.training[kind], real.held_out[kind], index, model.um_per_px)
            for kind, images in drawn.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, folder / "judgement.json")
    _draw_pictures(drawn, real, folder)
    _draw_nearest(drawn, index, record["kinds"], folder)
    print(plain_lines(lines(record)))
    print(f"Look at {(folder / 'judgement.png').resolve()}")


def judged_with_copies(
    drawn: np.ndarray, training: np.ndarray, held_out: np.ndarray, index: TrainingImages, um_per_px: float | None
) -> dict[str, Any]:
    """Return the distances of one kind's drawn pictures to held-out ones beside those of training pictures.

    Pictures: (N, H, W, C) float32 in [0, 1]. "texture": squared centroid distance. "slices": the physical descriptors
    of one-channel pictures, None for colours. "copying": how near to the training pictures of an index, of whatever
    kind, against held-out ones.
    """
    from pipelines.diffusion.judgement import in_colour, judged
    from pipelines.metrics.copying import copying

    found = copying(in_colour(drawn), index, in_colour(held_out))
    return {
        "num_images": {"drawn": len(drawn), "training": len(training), "held-out": len(held_out)},
        **judged(drawn, training, held_out, um_per_px).to_json(),
        "copying": found.as_json(),
    }


def lines(record: Mapping[str, Any]) -> list[str]:
    """Return the judgement in words: for each kind its distances as multiples of real against real, and copies."""
    from pipelines.metrics.copying import searched_in

    said = [searched_in(record["searched"]["pictures"], record["searched"]["of"])]
    said += [record["naming"]] if record["naming"] else []
    if record["left_out"]:
        few = ", ".join(record["left_out"])
        said.append(f"not judged, as fewer than two training or held-out pictures are theirs: {few}")
    for kind, found in record["kinds"].items():
        texture = found["texture"]
        said.append(
            f"{kind} ({found['num_images']['drawn']} drawn): squared centroid distance "
            f"{texture['distance']['value']:.4f}, training to held-out {texture['floor']['value']:.4f}"
        )
        for name, each in (found["slices"] or {}).items():
            if each["ratio"] is None:
                said.append(f"  {name:20s} not measured: {each['reason']}")
            else:
                low, high = each["ratio_interval"]
                said.append(f"  {name:20s} {each['ratio']:6.1f} [{low:.1f}, {high:.1f}] times real  {each['verdict']}")
        auc = found["copying"]["auc"]
        if auc is not None:
            said.append(
                f"  copy AUC {auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}]: {found['copying']['verdict']}"
            )
    return said


def _drawn(model: PixelModel, way: Way, real: RealPictures, num_images: int) -> tuple[dict[str, np.ndarray], str]:
    """Return drawn pictures by kind, num_images of each on average, and how their kinds were found."""
    from data.progress import Progress
    from pipelines.diffusion.drawing import draw
    from pipelines.diffusion.judgement import FEWEST_OF_A_KIND, by_kind
    from pipelines.diffusion.pictures import to_images

    told = [kind for kind in real.told(model) for _ in range(num_images)]
    labels = [model.class_labels.index(kind) for kind in told] if told else None
    seeds = [number % num_images for number in range(len(told))] or list(range(num_images * len(real.kinds)))
    with Progress(total=len(seeds), unit="image", desc="draw") as bar:
        images = to_images(model, draw(model, way, seeds, labels=labels, progress=bar.update))
    drawn, naming = by_kind(images, real, told)
    if not drawn:
        raise DataError("drawn pictures", f"fewer than {FEWEST_OF_A_KIND} of each kind. Raise --num_images.")
    return drawn, naming


def _draw_pictures(drawn: Mapping[str, np.ndarray], real: RealPictures, folder: Path) -> None:
    from pipelines.sheets import Row, save_png, sheet

    rows = []
    for kind, pictures in drawn.items():
        held_out = real.held_out[kind]
        spread = held_out[:: max(1, len(held_out) // COLUMNS)][:COLUMNS]
        rows += [Row(f"{kind}\nreal, held out", list(spread)), Row(f"{kind}\ndrawn", list(pictures[:COLUMNS]))]
    save_png(sheet(rows, title="real pictures and drawn ones"), folder / "judgement.png")


def _draw_nearest(
    drawn: Mapping[str, np.ndarray], index: TrainingImages, judgements: Mapping[str, Any], folder: Path
) -> None:
    """Draw each kind's pictures that are most like a training picture above the window of it that they are like."""
    from pipelines.metrics.training_images import Match
    from pipelines.sheets import Row, save_png, sheet

    pairs = []
    for kind, pictures in drawn.items():
        worst = [Match.from_json(match) for match in judgements[kind]["copying"]["matches"][:COLUMNS]]
        pairs += [
            Row(f"{kind}\ndrawn", [pictures[match.image] for match in worst]),
            Row(f"{kind}\nnearest in training", [index.window(match) for match in worst]),
        ]
    save_png(sheet(pairs, title="drawn pictures and the training pictures they are most like"), folder / "nearest.png")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    parser.add_argument("--num_images", type=at_least(2), default=64, help="pictures of each kind (default: 64)")
    add_way_options(parser)
    parser.add_argument(
        "--num_searched", type=positive, default=2000, help="training pictures to search for copies (default: 2000)"
    )
    parser.add_argument("--output_dir", type=Path, help="new folder (default: judged-N in the run)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "judge_pixels"))
