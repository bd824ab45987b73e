"""Pixel models that differ in one setting each, trained on the same pictures for as long, drawn from the same noise.

    python benchmarks/pixel_arms.py --output_dir runs/pixel-arms [--num_jobs 2] [--seeds 0 1] [--arms reference cosine]

Trains finetune/ddpm.py once for each arm and seed, then draws from each model with few and many steps of DDIM, and
holds the pictures against held-out ones, plane by plane: squared centroid distance in texture features, the median over
slice descriptors as a multiple of real, and the law of greys. Every training and every cell is kept as it is done; the
same command goes on where it stopped, and more arms or seeds join what is there. Results, a table and a picture are in
--output_dir.
"""

from __future__ import annotations

import argparse
import sys
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
from pipelines.diffusion.judgement import (
    ByKind,
    RealPictures,
    by_kind,
    draw_in_turn,
    in_colour,
    judged_together,
    mean_of,
)
from pipelines.diffusion.pictures import open_pictures
from pipelines.metrics.colour import grey_distance
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import difference, interval_text, prompt_seed, sign, written
from pipelines.pixel_model import load_pixel_model
from pipelines.sheets import Row, save_png, sheet
from pipelines.studies.study import Run
from pipelines.studies.training import TrainedRun, check_runs, train_all
from pipelines.whole_files import write_json, write_text

Options = dict[str, Any]

BASE: Options = {
    "concept": "sf_dry",
    "resolution": 32,
    "class_conditional": True,  # so that the plane of each picture is known
    "model_size": "small",
    "noise_schedule": "linear",
    "prediction_type": "epsilon",
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 50,
    "max_train_steps": 600,
    "train_batch_size": 16,
    "random_flip": True,
    "ema_decay": 0.99,
    "checkpointing_steps": 200,
    "checkpoints_total_limit": 2,
    "validation_steps": 400,
    "num_validation_images": 4,
}
REFERENCE = "reference"
# what an arm changes of the base; one more line is one more arm
ARMS: dict[str, Options] = {
    REFERENCE: {},
    "cosine schedule": {"noise_schedule": "cosine"},
    "sigmoid schedule": {"noise_schedule": "sigmoid"},
    "not normalised": {"normalize": False},
    "target x0": {"prediction_type": "sample"},
    "target v": {"prediction_type": "v_prediction"},
    "learned variance": {"learned_variance": True, "loss": "hybrid"},
}
MEASURES = ("distance", "slice_ratio", "grey_distance", "grey_mean", "grey_5", "grey_95")
COLUMNS = (
    *("squared centroid distance", "above the reference", "slice descriptors, times real"),
    *("W1 of greys", "mean grey", "5 to 95 % of greys"),
)
SHOWN = 6  # pictures of each model and number of steps
NUM_BINS = 256  # of grey


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    folder: Path = arguments.output_dir.resolve()  # trainings start elsewhere
    cells = Cells(folder, {"num_images": arguments.num_images})
    trained = _train(arguments.arms, arguments.seeds, folder, arguments.num_jobs)
    real = _real(trained[0].folder, arguments.num_images)
    floor = measured(real.training, real)  # first: it refuses too few pictures
    drawn: dict[tuple[str, int, int], Cell] = {}
    for each in Progress(trained, unit="model", desc="draw"):
        for steps in arguments.steps:
            make = partial(_cell, each.folder, steps, real, arguments.num_images)
            key = each.run.method, each.run.seed, steps
            drawn[key] = cells.cell(f"{each.run.folder_name}--{steps}-steps", make)
    record = {
        "base": BASE,
        "arms": {arm: ARMS[arm] for arm in arguments.arms},
        "num_images": arguments.num_images,
        "planes": list(real.kinds),
        "held_out": _written(grey_levels(real.held_out)),
        "training": _written(floor),
        "cpu_seconds": {each.run.folder_name: each.cost.cpu_seconds for each in trained},
        "results": {str(steps): results(drawn, arguments.arms, arguments.seeds, steps) for steps in arguments.steps},
    }
    write_json(record, folder / "pixel_arms.json")
    text = table(record)
    write_text(folder / "pixel_arms.md", text)
    save_png(_picture(real, drawn, arguments.arms, arguments.seeds[0], arguments.steps), folder / "pixel_arms.png")
    print(text)
    print(f"Look at {folder / 'pixel_arms.png'}")


def runs_of(arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Return the trainings, all arms of the first seed before those of the next."""
    return [Run(arm, str(BASE["concept"]), seed, "ddpm", {**BASE, **ARMS[arm]}) for seed in seeds for arm in arms]


def measured(drawn: ByKind, real: RealPictures) -> dict[str, Estimate | None]:
    """Return every measure of drawn pictures by its name, for models that drew from the same seeds paired by draw."""
    judged = judged_together(drawn, real)
    apart = [
        grey_distance(
            in_colour(drawn[kind]), in_colour(real.held_out[kind]), seed=prompt_seed(0, real.kinds.index(kind))
        )
        for kind in drawn
    ]
    found = {"distance": judged.distance, "slice_ratio": judged.slice_ratio, "grey_distance": mean_of(apart)}
    return {**found, **grey_levels(drawn)}


def grey_levels(pictures: ByKind) -> dict[str, Estimate]:
    """Return the mean grey of pictures, and the levels below which 5 and 95 % of their pixels lie, 0 to 1.

    All kinds count alike. Greys are counted in 256 steps, and spread evenly within each.
    """
    laws = [
        np.stack([np.histogram(image, NUM_BINS, (0, 1))[0] / image.size for image in each])
        for each in pictures.values()
    ]

    def law(*counts: np.ndarray) -> np.ndarray:
        return np.mean([c @ of_kind / c.sum(1, keepdims=True) for c, of_kind in zip(counts, laws, strict=True)], axis=0)

    centres = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    sizes = [len(of_kind) for of_kind in laws]
    return {
        "grey_mean": bootstrap_interval(lambda *counts: law(*counts) @ centres, sizes, seed=0),
        "grey_5": bootstrap_interval(lambda *counts: _quantile(law(*counts), 0.05), sizes, seed=0),
        "grey_95": bootstrap_interval(lambda *counts: _quantile(law(*counts), 0.95), sizes, seed=0),
    }


def results(
    drawn: Mapping[tuple[str, int, int], Cell], arms: Sequence[str], seeds: Sequence[int], steps: int
) -> dict[str, Any]:
    """Return for each arm every measure: of each seed, their mean, and how much the mean is above the reference's.

    Intervals are over pictures, of these trainings: how far trainings of other seeds lie apart shows in the seeds.
    """
    found: dict[str, Any] = {}
    means = {arm: _mean_over_seeds([drawn[arm, seed, steps] for seed in seeds]) for arm in arms}
    for arm in arms:
        apart = {}
        for measure, mean in means[arm].items():
            reference = means[REFERENCE][measure] if REFERENCE in means and arm != REFERENCE else None
            if mean is not None and reference is not None:
                above = difference(mean, reference)
                apart[measure] = {**(written(above) or {}), "verdict": sign(above)}
        found[arm] = {
            "seeds": {str(seed): dict(drawn[arm, seed, steps].record) for seed in seeds},
            "mean": _written(means[arm]),
            "above_reference": apart,
        }
    return found


def table(record: Mapping[str, Any]) -> str:
    """Return the results in Markdown, a table for each number of steps."""
    lines: list[str] = []
    for steps, arms in record["results"].items():
        lines += [f"| DDIM, {steps} steps | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        lines.append(_line("held-out pictures", record["held_out"], ""))
        lines.append(_line("training pictures", record["training"], ""))
        for arm, found in arms.items():
            above = found["above_reference"].get("distance")
            said = f"{_interval(above, 4)} {above['verdict']}" if above else ""
            lines.append(_line(arm, found["mean"], said))
        lines.append("")
    seeds = list(next(iter(arms.values()))["seeds"])
    lines.append(
        f"{record['num_images']} pictures of each model; means over the trainings with seed {', '.join(seeds)} and "
        f"over {', '.join(record['planes'])}; 95 % intervals over pictures."
    )
    return "\n".join(lines) + "\n"


def _line(name: str, found: Mapping[str, Any], above: str) -> str:
    spread = f"{found['grey_5']['value']:.3f} to {found['grey_95']['value']:.3f}"
    cells = [_interval(found.get("distance"), 4), above, _interval(found.get("slice_ratio"), 2)]
    cells += [_interval(found.get("grey_distance"), 4), _interval(found["grey_mean"], 3), spread]
    return f"| {name} | " + " | ".join(cells) + " |"


def _interval(found: Mapping[str, Any] | None, digits: int) -> str:
    if found is None:
        return ""
    return interval_text(found["value"], found["low"], found["high"], digits)


def _train(arms: Sequence[str], seeds: Sequence[int], folder: Path, num_jobs: int) -> list[TrainedRun]:
    runs = runs_of(arms, seeds)
    check_runs(runs, folder / "models", num_jobs=num_jobs)
    with Progress(total=len(runs), unit="model", desc="train") as bar:
        return train_all(runs, folder / "models", num_jobs=num_jobs, on_done=lambda _: bar.update())


def _real(run: Path, num_images: int) -> RealPictures:
    """Return what all arms are held against: they are trained on the same pictures, and none on the held-out ones."""
    return RealPictures.of(load_pixel_model(run), open_pictures(run), num_images)


def _cell(run: Path, steps: int, real: RealPictures, num_images: int) -> Cell:
    model = load_pixel_model(run)
    images, told = draw_in_turn(model, Way("ddim", steps), real, num_images)
    assert told, "the arms have labels, so that the plane of each picture is known"
    found = measured(by_kind(images, real, told)[0], real)
    arrays = {name: np.array([each.value, *each.draws]) for name, each in found.items() if each is not None}
    record = {"fingerprint": model.fingerprint, **_written(found)}
    return Cell(record, {**arrays, "shown": (images[:SHOWN] * 255).round().astype(np.uint8)})


def _mean_over_seeds(cells: Sequence[Cell]) -> dict[str, Estimate | None]:
    """Return every measure's mean over trainings; None where one of them lacks it."""
    found: dict[str, Estimate | None] = {}
    for measure in MEASURES:
        held = [
            Estimate(cell.arrays[measure][0], cell.arrays[measure][1:], cell.record[measure]["num_images"])
            for cell in cells
            if measure in cell.arrays
        ]
        found[measure] = mean_of(held) if len(held) == len(cells) else None
    return found


def _written(found: Mapping[str, Estimate | None]) -> dict[str, Any]:
    return {name: written(each) for name, each in found.items()}


def _quantile(laws: np.ndarray, share: float) -> np.ndarray:
    """Return the level (R,) below which a share lies of each of the laws (R, NUM_BINS)."""
    below = laws.cumsum(1)
    place = np.minimum((below < share).sum(1), NUM_BINS - 1)
    rows = np.arange(len(laws))
    inside = laws[rows, place]
    part = np.divide(share - (below[rows, place] - inside), inside, out=np.zeros(len(laws)), where=inside > 0)
    return np.asarray((place + part) / NUM_BINS)


def _picture(
    real: RealPictures,
    drawn: Mapping[tuple[str, int, int], Cell],
    arms: Sequence[str],
    seed: int,
    num_steps: Sequence[int],
) -> Any:
    """Return a row of held-out pictures, then one of each arm: the same noise in a column, planes in turn."""
    num_columns = SHOWN * len(num_steps)
    kinds = [real.held_out[real.kinds[number % SHOWN % len(real.kinds)]] for number in range(num_columns)]
    shown = [each[number // len(real.kinds) % len(each)] for number, each in enumerate(kinds)]
    rows = [Row("held-out pictures", shown)]
    for arm in arms:
        rows.append(Row(arm, [image for steps in num_steps for image in drawn[arm, seed, steps].arrays["shown"]]))
    columns = [f"{steps} steps, noise {number}" for steps in num_steps for number in range(SHOWN)]
    return sheet(rows, title="the same noise, one setting changed", columns=columns)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pixel-arms"), help="goes on with what is there")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help=f"some of {', '.join(ARMS)} (default: all)")
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0], help="of the trainings (default: 0)")
    parser.add_argument("--steps", type=positive, nargs="+", default=[50, 10], help="of DDIM (default: 50 10)")
    parser.add_argument(
        "--num_images", type=at_least(SHOWN), default=64, help="of each model, and at most of real ones"
    )
    parser.add_argument("--num_jobs", type=positive, default=1, help="trainings beside each other (default: 1)")
    arguments = parser.parse_args(argv)
    problems = [
        f"--arms: found {arm!r}, expected some of {', '.join(ARMS)}." for arm in arguments.arms if arm not in ARMS
    ]
    for name, given in (("arms", arguments.arms), ("seeds", arguments.seeds), ("steps", arguments.steps)):
        if len(set(given)) < len(given):
            problems.append(f"--{name}: found {' '.join(map(str, given))}, expected each once.")
    if problems:
        raise SettingsError("pixel_arms", *problems)
    return arguments


if __name__ == "__main__":
    sys.exit(exit_code(main, "pixel_arms"))
