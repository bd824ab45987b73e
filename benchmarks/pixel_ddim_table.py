"""Steps against chance in sampling, as the table of Song et al. 2021 (DDIM): distance to held-out pictures.

    python benchmarks/pixel_ddim_table.py --model runs/sf_dry-ddpm [--num_images 64] [--steps 10 20 50 100 1000]

For every number of steps and every eta, and for the larger variance (ancestral sampling with beta): pictures from the
same seeds, their squared centroid distance to held-out pictures in texture features with its interval, and for slices
the median over descriptors of their distance as a multiple of the distance of training slices. Each label or plane is
judged by itself; of a model without labels a classifier says of which each picture is, and what is drawn fewer than ten
times is left out and said. Each cell is kept as it is done; the same command again goes on where it stopped. Results, a
table and a picture are in --output_dir.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import SettingsError
from data.exits import Parser, at_least, exit_code, positive
from data.progress import Progress
from pipelines.diffusion.cells import Cell, Cells
from pipelines.diffusion.drawing import Way
from pipelines.diffusion.judgement import RealPictures, by_kind, draw_in_turn, judged_together
from pipelines.diffusion.pictures import open_pictures
from pipelines.metrics.estimates import interval_text, written
from pipelines.pixel_model import PixelModel, load_pixel_model
from pipelines.sheets import Row, save_png, sheet
from pipelines.whole_files import write_json, write_text

LARGER = "larger variance"
SHOWN = 6


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    model = load_pixel_model(arguments.model)
    ways = ways_of(arguments.steps, arguments.eta, model.num_train_timesteps)
    folder: Path = arguments.output_dir or arguments.model / "ddim-table"
    settings = {"fingerprint": model.fingerprint, "num_images": arguments.num_images, "judged": "kind by kind"}
    cells = Cells(folder, settings)
    real = RealPictures.of(model, open_pictures(arguments.model), arguments.num_images)
    floor = written(judged_together(real.training, real).distance)  # first: it refuses too few pictures
    assert floor is not None, "a distance is a value"
    found: dict[str, Cell] = {}
    for name, way in Progress(ways.items(), unit="cell", desc="cells"):
        found[name] = cells.cell(name, partial(_cell, model, way, real, arguments.num_images, arguments.batch_size))
    results = {name: cell.record for name, cell in found.items()}
    record = {
        "model": str(arguments.model),
        **settings,
        "kinds": list(real.kinds),
        "real_versus_real": floor,
        "cells": results,
    }
    write_json(record, folder / "ddim_table.json")
    text = table(results, floor, real.kinds, arguments.steps, arguments.eta)
    write_text(folder / "ddim_table.md", text)
    rows = [Row(name, list(cell.arrays["shown"])) for name, cell in found.items()]
    save_png(sheet(rows, title="the same seeds"), folder / "ddim_table.png")
    print(text)
    print(f"Look at {folder / 'ddim_table.png'}")


def ways_of(steps: Sequence[int], etas: Sequence[float], num_train_timesteps: int) -> dict[str, Way]:
    """Return the ways of sampling by the name of their cell; SettingsError for what the model cannot do."""
    problems = [
        f"--steps: found {n}, expected 1 to {num_train_timesteps}." for n in steps if not 0 < n <= num_train_timesteps
    ]
    problems += [f"--eta: found {eta}, expected 0 to 1." for eta in etas if not 0 <= eta <= 1]
    if problems:
        raise SettingsError("cells of the table", *problems)
    ways = {}
    for num_steps in steps:
        for eta in etas:
            ways[f"{num_steps} steps, eta {eta:g}"] = Way("ddim", num_steps, eta=eta)
        ways[f"{num_steps} steps, {LARGER}"] = Way("ancestral", num_steps, variance="large")
    return ways


def table(
    results: Mapping[str, Mapping[str, Any]],
    floor: Mapping[str, Any],
    kinds: Sequence[str],
    steps: Sequence[int],
    etas: Sequence[float],
) -> str:
    """Return the table in Markdown: a row for each eta, a column for each number of steps."""
    lines = _grid("squared centroid distance", "distance", 4, results, kinds, steps, etas)
    lines += ["", f"Training pictures to held-out pictures: {_interval(floor, 4)}. 95 % intervals over pictures."]
    if len(kinds) > 1:
        lines[-1] += f" Each value is the mean over {', '.join(kinds)}, each held against its own held-out pictures."
    if any(cell["slice_ratio"] is not None for cell in results.values()):
        lines += ["", *_grid("slice descriptors, multiples of real", "slice_ratio", 2, results, kinds, steps, etas)]
        lines += ["", "The median over the descriptors of all kinds that drawn and real slices show."]
    return "\n".join(lines) + "\n"


def _grid(
    title: str,
    measure: str,
    digits: int,
    results: Mapping[str, Mapping[str, Any]],
    kinds: Sequence[str],
    steps: Sequence[int],
    etas: Sequence[float],
) -> list[str]:
    lines = [f"| {title} | " + " | ".join(f"{n} steps" for n in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for name in [*(f"eta {eta:g}" for eta in etas), LARGER]:
        texts = []
        for cell in (results[f"{n} steps, {name}"] for n in steps):
            missing = [kind for kind in kinds if kind not in cell["num_images"]]
            text = "not measured" if cell[measure] is None else _interval(cell[measure], digits)
            texts.append(text + (f", without {', '.join(missing)}" if missing else ""))
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return lines


def _interval(found: Mapping[str, Any], digits: int) -> str:
    return interval_text(found["value"], found["low"], found["high"], digits)


def _cell(model: PixelModel, way: Way, real: RealPictures, num_images: int, batch_size: int) -> Cell:
    began = time.perf_counter()
    images, told = draw_in_turn(model, way, real, num_images, batch_size=batch_size)
    seconds = (time.perf_counter() - began) / num_images
    drawn, naming = by_kind(images, real, told)
    judged = judged_together(drawn, real) if drawn else None
    record = {
        "num_images": {kind: len(each) for kind, each in drawn.items()},
        "naming": naming,
        "distance": written(judged.distance) if judged else None,
        "slice_ratio": written(judged.slice_ratio) if judged else None,
        "num_measured": judged.num_measured if judged else 0,
        "num_descriptors": judged.num_descriptors if judged else 0,
        "seconds_per_image": seconds,
    }
    return Cell(record, {"shown": (images[:SHOWN] * 255).round().astype(np.uint8)})


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    parser.add_argument("--steps", type=int, nargs="+", help="of sampling", default=[10, 20, 50, 100, 1000])
    parser.add_argument("--eta", type=float, nargs="+", help="of ddim, 0 to 1", default=[0.0, 0.2, 0.5, 1.0])
    parser.add_argument(
        "--num_images", type=at_least(2), default=64, help="of each cell, and at most of real ones (default: 64)"
    )
    parser.add_argument("--batch_size", type=positive, default=32, help="pictures drawn together (default: 32)")
    parser.add_argument("--output_dir", type=Path, help="goes on with what is there (default: the model's ddim-table)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(main, "pixel_ddim_table"))
