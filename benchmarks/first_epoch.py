"""First epoch and later epochs on the embedded base, beside diffusers' plain loop, and a second run's first epoch.

    python benchmarks/first_epoch.py [--methods lora full_unet ...]

Each method's script starts with nothing encoded, then the plain loop (`benchmarks/plain_loop.py`) runs on as many
pictures, then the script again on the same pictures. The first epoch is counted from the first picture that the
autoencoder reads, also where that is before the first step. Prints a table; logs, first_epoch.json and first_epoch.md
stay in --output_dir. Only what stands in one table can be compared.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_size import run_method, write_pictures
from benchmarks.timed_runs import TimedRun

METHODS = ("lora", "full_unet", "dreambooth", "textual_inversion")
BATCH = 8
COLUMNS = (
    "method",
    "first epoch, s a step",
    "plain",
    "times as fast",
    "later epochs",
    "plain",
    "times as fast",
    "second run, first epoch",
    "times as fast as plain",
    "pictures into the VAE, first run",
    "second run",
)


@dataclass(frozen=True)
class Epochs:
    """Seconds of a step in the first epoch and in the later ones, and the pictures that were encoded for them."""

    first: float
    later: float
    num_encoded: int

    @staticmethod
    def of(run: TimedRun, num_steps: int) -> Epochs:
        return Epochs(*run.epoch_step_seconds(num_steps), run.items("vae"))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the table."""
    arguments = _arguments(argv)
    folder: Path = arguments.output_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    trained = BATCH * arguments.epoch_steps
    all_pictures = write_pictures(folder / "pictures", trained * 5 // 4, arguments.resolution)  # a fifth is held out
    plain_pictures = write_pictures(folder / "plain-pictures", trained, arguments.resolution)
    measured: dict[str, dict[str, Epochs]] = {}
    for method in arguments.methods:
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        measured[method] = {}
        for name, loop in (("first", "ours"), ("plain", "plain"), ("second", "ours")):
            run = run_method(
                method,
                loop,
                base=arguments.base,
                pictures=all_pictures if loop == "ours" else plain_pictures,
                folder=folder,
                resolution=arguments.resolution,
                batch_size=BATCH,
                num_steps=arguments.num_epochs * arguments.epoch_steps,
                num_threads=arguments.num_threads,
                cache=cache,
            )
            if loop == "ours":
                log = (folder / f"{method}-ours.log").read_text(encoding="utf-8")
                assert re.search(rf"^images +{trained} with", log, re.MULTILINE), "a run prints how many images it has"
            measured[method][name] = Epochs.of(run, arguments.epoch_steps)
        print("| " + " | ".join(row(method, measured[method])) + " |", flush=True)
    lines = [
        f"`python benchmarks/first_epoch.py`: {arguments.num_epochs} epochs of {arguments.epoch_steps} steps of "
        f"{BATCH} pictures of {arguments.resolution} px, {arguments.num_threads} threads. Later epochs: median of "
        "their steps.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS))),
        *("| " + " | ".join(row(method, epochs)) + " |" for method, epochs in measured.items()),
    ]
    (folder / "first_epoch.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = {method: {name: vars(epochs) for name, epochs in of.items()} for method, of in measured.items()}
    (folder / "first_epoch.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print("\n".join(["", *lines]))


def row(method: str, epochs: dict[str, Epochs]) -> list[str]:
    """Return the cells of a method, in the order of COLUMNS. epochs: "first", "plain" and "second"."""
    ours, plain, again = (epochs[name] for name in ("first", "plain", "second"))
    return [
        method,
        f"{ours.first:.3f}",
        f"{plain.first:.3f}",
        f"{plain.first / ours.first:.2f}",
        f"{ours.later:.3f}",
        f"{plain.later:.3f}",
        f"{plain.later / ours.later:.2f}",
        f"{again.first:.3f}",
        f"{plain.first / again.first:.2f}",
        str(ours.num_encoded),
        str(again.num_encoded),
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--base", default="swatch", help="swatch, or the folder of a base model")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--epoch_steps", type=int, default=12)
    parser.add_argument("--num_epochs", type=int, default=3)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/first_epoch"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
