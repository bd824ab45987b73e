"""Train a small denoiser of points in the plane in seconds: one Gaussian, two Gaussians, or a spiral.

python finetune/points.py --law spiral
python pipelines/points_in_plane.py --model runs/points-spiral
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data.exits import Parser, exit_code, positive


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.output_folders import free_folder

    asked: Path = arguments.output_dir or Path(f"runs/points-{arguments.law}")
    folder = free_folder(asked, asked.parent, asked.name)
    from data.progress import Progress
    from finetune.core.points import train_points

    with Progress(total=arguments.max_train_steps, unit="step", desc="train") as bar:

        def progress(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        model = train_points(
            arguments.law,
            schedule=arguments.schedule,
            num_train_timesteps=arguments.num_train_timesteps,
            num_steps=arguments.max_train_steps,
            batch_size=arguments.train_batch_size,
            seed=arguments.seed,
            progress=progress,
        )
    model.save(folder)
    print(f"Look at it: python pipelines/points_in_plane.py --model {shlex.quote(str(folder))}")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    # written out, so that --help needs no torch; a test holds them against the lists in pipelines/diffusion
    parser.add_argument("--law", choices=("one_gaussian", "two_gaussians", "spiral"), default="spiral")
    parser.add_argument("--schedule", choices=("linear", "cosine", "sigmoid"), default="linear")
    parser.add_argument("--num_train_timesteps", type=positive, default=100, help="noise levels (default: 100)")
    parser.add_argument("--max_train_steps", type=positive, default=3000, help="optimiser steps (default: 3000)")
    parser.add_argument("--train_batch_size", type=positive, default=256, help="points in a step (default: 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, help="empty folder (default: runs/points-LAW)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "points"))
