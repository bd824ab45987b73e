"""Steps against chance in sampling, as the table of Song et al. 2021 (DDIM): distance to held-out pictures.

    python benchmarks/pixel_ddim_table.py --model runs/sf_dry-ddpm [--num_images 64] [--steps 10 20 50 100 1000]

For every number of steps and every eta, and for the larger variance (ancestral sampling with beta): pictures from the
same seeds, their squared centroid distance to held-out pictures in texture features with its interval, and for slices
the median over descriptors of their distance as a multiple of the distance of training slices. Each cell is kept as it
is done; the same command again goes on where it stopped. Results, a table and a picture are in --output_dir.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.errors import OutputError, SettingsError
from pipelines.diffusion.drawing import Way, draw
from pipelines.diffusion.pictures import open_pictures, pictures, to_images
from pipelines.metrics.distances import Discrepancy, bootstrap_interval, linear_kernel
from pipelines.metrics.estimates import written
from pipelines.metrics.slices import compare_slices
from pipelines.metrics.texstat import TexStat, size_for
from pipelines.pixel_model import PixelModel, load_pixel_model
from pipelines.sheets import Row, save_png, sheet
from pipelines.whole_files import write_json

LARGER = "larger variance"
SHOWN = 6
Real = Mapping[str, np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    model = load_pixel_model(arguments.model)
    ways = cells(arguments.steps, arguments.eta, model.num_train_timesteps)
    folder: Path = arguments.output_dir or arguments.model / "ddim-table"
    folder.mkdir(parents=True, exist_ok=True)
    _same_settings(folder, {"fingerprint": model.fingerprint, "num_images": arguments.num_images})
    dataset = open_pictures(arguments.model)
    captions = list(model.class_labels or dataset.captions)
    held_out, training = (
        {c: to_images(model, p) for c, p in pictures(model, dataset, side, arguments.num_images).items()}
        for side in ("held-out", "training")
    )
    results: dict[str, dict[str, Any]] = {}
    rows: dict[str, Row] = {}
    for name, way in tqdm(ways.items(), unit="cell", desc="cells"):
        done = folder / "cells" / f"{name}.json"
        drawn_file = done.with_suffix(".npz")
        if not done.exists():
            began = time.perf_counter()
            drawn = _drawn(model, way, captions, arguments.num_images, arguments.batch_size)
            seconds = (time.perf_counter() - began) / arguments.num_images
            done.parent.mkdir(exist_ok=True)
            np.savez_compressed(drawn_file, shown=(drawn[:SHOWN] * 255).round().astype(np.uint8))
            write_json({**_judged(model, drawn, held_out, training), "seconds_per_image": seconds}, done)
        results[name] = json.loads(done.read_text(encoding="utf-8"))
        with np.load(drawn_file, allow_pickle=False) as kept:
            rows[name] = Row(name, list(kept["shown"]))
    floor = _distance(np.concatenate(list(training.values())), np.concatenate(list(held_out.values())))
    record = {
        "model": str(arguments.model),
        "fingerprint": model.fingerprint,
        "num_images": arguments.num_images,
        "real_versus_real": floor,
        "cells": results,
    }
    write_json(record, folder / "ddim_table.json")
    text = table(results, floor, arguments.steps, arguments.eta)
    (folder / "ddim_table.md").write_text(text, encoding="utf-8")
    save_png(sheet(list(rows.values()), title="the same seeds"), folder / "ddim_table.png")
    print(text)
    print(f"Look at {folder / 'ddim_table.png'}")


def cells(steps: Sequence[int], etas: Sequence[float], num_train_timesteps: int) -> dict[str, Way]:
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
    results: Mapping[str, Mapping[str, Any]], floor: Mapping[str, Any], steps: Sequence[int], etas: Sequence[float]
) -> str:
    """Return the table in Markdown: a row for each eta, a column for each number of steps."""
    head = "| squared centroid distance | " + " | ".join(f"{n} steps" for n in steps) + " |"
    lines = [head, "|---" * (len(steps) + 1) + "|"]
    for name in [*(f"eta {eta:g}" for eta in etas), LARGER]:
        found = [results[f"{n} steps, {name}"] for n in steps]
        lines.append(f"| {name} | " + " | ".join(_interval(cell["distance"]) for cell in found) + " |")
    lines += ["", f"Training pictures to held-out pictures: {_interval(floor)}. 95 % intervals over pictures."]
    if all(cell["slice_ratio"] is not None for cell in results.values()):
        lines += ["", "| slice descriptors, multiples of real | " + " | ".join(f"{n} steps" for n in steps) + " |"]
        lines.append("|---" * (len(steps) + 1) + "|")
        for name in [*(f"eta {eta:g}" for eta in etas), LARGER]:
            found = [results[f"{n} steps, {name}"] for n in steps]
            lines.append(f"| {name} | " + " | ".join(f"{cell['slice_ratio']:.2f}" for cell in found) + " |")
    return "\n".join(lines) + "\n"


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _drawn(model: PixelModel, way: Way, captions: Sequence[str], num_images: int, batch_size: int) -> np.ndarray:
    """Return pictures (N, H, W, C) in [0, 1], of the labels in turn where the model has some."""
    labels = [number % len(captions) for number in range(num_images)] if model.class_labels else None
    return to_images(model, draw(model, way, range(num_images), labels=labels, batch_size=batch_size))


def _judged(model: PixelModel, drawn: np.ndarray, held_out: Real, training: Real) -> dict[str, Any]:
    return {
        "distance": _distance(drawn, np.concatenate(list(held_out.values()))),
        "slice_ratio": _slice_ratio(model, drawn, held_out, training),
    }


def _distance(images: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    pair = Discrepancy.between(_features(images), _features(real), linear_kernel)
    found = written(bootstrap_interval(pair, pair.sizes, seed=0))
    assert found is not None, "a distance is a value"
    return found


def _features(images: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    return np.asarray(TexStat(size_for(min(pixels.shape[-2:]))).features(pixels))


def _slice_ratio(model: PixelModel, drawn: np.ndarray, held_out: Real, training: Real) -> float | None:
    """Return the median over slice descriptors of distance over real-to-real distance; None for other pictures.

    All planes together: what is drawn without labels is of no one of them.
    """
    if not model.grey_values:
        return None
    real_training, real_held_out = (np.concatenate(list(side.values())).mean(-1) for side in (training, held_out))
    found = compare_slices(real_training, real_held_out, drawn.mean(-1), model.um_per_px)
    ratios = [each.ratio for each in found.values() if each.ratio is not None]
    return statistics.median(ratios) if ratios else None


def _same_settings(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with cells that were drawn otherwise."""
    path = folder / "settings.json"
    if not path.exists():
        write_json(wanted, path)
    elif (found := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        raise OutputError(str(folder), f"holds cells of {found}, expected {dict(wanted)}. Choose another --output_dir.")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100, 1000])
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0, 0.2, 0.5, 1.0])
    parser.add_argument("--num_images", type=int, default=64, help="of each cell, and at most of real ones")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output_dir", type=Path, help="goes on with what is there (default: the model's ddim-table)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
