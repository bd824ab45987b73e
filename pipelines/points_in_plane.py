"""Look at a denoiser of points: its samples by each sampler beside the true law, its score beside the exact one.

python finetune/points.py --law spiral
python pipelines/points_in_plane.py --model runs/points-spiral
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.exits import Parser, at_least, exit_code

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.diffusion.point_models import PointModel
    from pipelines.diffusion.prediction import Denoiser


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.output_folders import free_folder
    from pipelines.whole_files import write_json

    folder = free_folder(arguments.output_dir, arguments.model, "points")
    from pipelines.diffusion.point_distances import energy_distance, sliced_wasserstein
    from pipelines.diffusion.point_models import load_point_model
    from pipelines.diffusion.points import LAWS, GaussianMixture
    from pipelines.metrics.estimates import written

    model = load_point_model(arguments.model)
    law, count = LAWS[model.law], arguments.num_points
    true, other = law.sample(count, arguments.seed), law.sample(count, arguments.seed + 1)
    clouds = {"the law again": other} | samples(model, model.denoiser, count, arguments.seed)
    if isinstance(law, GaussianMixture):
        exact = samples(model, law.denoiser(model.alphas_cumprod), count, arguments.seed)
        clouds |= {f"exact, {name}": points for name, points in exact.items()}
    found: dict[str, Any] = {
        name: {
            "energy_distance": written(energy_distance(points, true)),
            "sliced_wasserstein": sliced_wasserstein(points, true),
        }
        for name, points in clouds.items()
    }
    record: dict[str, Any] = {"model": str(arguments.model), "law": model.law, "num_points": count, "samples": found}
    if isinstance(law, GaussianMixture):
        record["score_error"] = score_errors(model, law, count, arguments.seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, folder / "points.json")
    _draw(folder / "points.png", {"true law": true} | clouds)
    for name, numbers in found.items():
        energy = numbers["energy_distance"]
        print(
            f"{name:28s} energy distance {energy['value']:+.4f} [{energy['low']:+.4f}, {energy['high']:+.4f}]  "
            f"sliced Wasserstein {numbers['sliced_wasserstein']:.3f}"
        )
    for level, share in record.get("score_error", {}).items():
        print(f"score at t = {level}: squared error {share:.3f} of the exact score's square")
    print(f"Look at {folder / 'points.png'}")


def samples(model: PointModel, denoise: Denoiser, num_points: int, seed: int) -> dict[str, Tensor]:
    """Return points drawn by each sampler, (num_points, 2), all from the same noise."""
    from pipelines.diffusion import noise
    from pipelines.diffusion.samplers import ancestral, ddim_sampler
    from pipelines.diffusion.schedules import strided

    left, seeds = model.alphas_cumprod, range(seed * num_points, (seed + 1) * num_points)
    every, few = strided(left, len(left)), strided(left, min(25, len(left)))
    start, chance = noise.start(seeds, (2,)), noise.seeded(seeds, (2,))
    return {
        f"ancestral, {len(every)} steps": ancestral(denoise, start, every, noise=chance),
        f"DDIM, {len(every)} steps": ddim_sampler(denoise, start, every),
        f"DDIM, {len(few)} steps": ddim_sampler(denoise, start, few),
    }


def score_errors(model: PointModel, law: Any, num_points: int, seed: int) -> dict[str, float]:
    """Return the squared error of the network's score as a share of the exact score's square, by timestep.

    Over points of the noised law; the score is -eps / sqrt(1 - alpha_bar), so the share is that of the noise.
    """
    import torch

    from data.randomness import derive

    left, found = model.alphas_cumprod, {}
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        level = round(share * (len(left) - 1))
        generator = torch.Generator().manual_seed(derive(seed, "score", level))
        eps = torch.randn(num_points, 2, generator=generator)
        kept = float(left[level])
        x_t = kept**0.5 * law.sample(num_points, seed).float() + (1 - kept) ** 0.5 * eps
        t = torch.full((num_points,), level)
        exact = law.denoiser(left)(x_t, t).eps
        found[str(level)] = float((model.denoiser(x_t, t).eps - exact).square().mean() / exact.square().mean())
    return found


def _draw(path: Path, clouds: dict[str, Tensor]) -> None:
    from pipelines.diffusion.charts import new_figure, save_figure

    columns = min(4, len(clouds))
    rows = -(-len(clouds) // columns)
    figure = new_figure((3 * columns, 3 * rows))
    largest = float(next(iter(clouds.values())).abs().max()) * 1.1
    for number, (name, points) in enumerate(clouds.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0, alpha=0.5, color="black")
        axes.set(xlim=(-largest, largest), ylim=(-largest, largest), aspect="equal", xticks=[], yticks=[])
        axes.set_title(name, fontsize=9)
    save_figure(figure, path)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="folder of finetune/points.py")
    parser.add_argument("--num_points", type=at_least(10), default=1000, help="of each cloud (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, help="empty folder (default: the model's points-N)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "points_in_plane"))
