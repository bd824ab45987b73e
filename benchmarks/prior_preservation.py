"""Does prior preservation keep the class diverse? DreamBooth with and without it, on the embedded base.

    python benchmarks/prior_preservation.py [--seeds 0 1 2] [--max_train_steps 400]

Trains finetune/dreambooth.py on ten images of dtd_zigzagged, draws "a texture" and the instance prompt with each
result and with the base, and prints how much the images of a prompt differ from each other (mean distance of pairs in
texture features, Vendi score), how like the concept images of the class have become, and how near the concept is.
Results, a sheet of pictures and every run stay in --output_dir.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from data.sources import ImageSource
from pipelines.components import build_pipeline, load_components
from pipelines.metrics.distances import Estimate, bootstrap_interval, squared_centroid_distance
from pipelines.metrics.diversity import PairwiseDistance, vendi_score
from pipelines.metrics.texstat import TexStat, size_for
from pipelines.runs import open_tuned
from pipelines.sampling import sample
from pipelines.sheets import Row, save_png, sheet

ROOT = Path(__file__).resolve().parents[1]
CONCEPT, INSTANCE, CLASS = "dtd_zigzagged", "a dtd_zigzagged texture", "a texture"
ARMS = {"without": [], "with": ["--with_prior_preservation", "--num_class_images", "100"]}


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    rows, results = [], {}
    base = build_pipeline(load_components("swatch"))
    pictures = {"base": _draw(base, arguments.num_images)}
    for seed in arguments.seeds:
        for arm, options in ARMS.items():
            run = folder / f"{arm}-{seed}"
            _train(run, seed, arguments.max_train_steps, options)
            pictures[f"{arm}-{seed}"] = _draw(open_tuned([run]).pipeline, arguments.num_images)
    manifest = json.loads((folder / f"without-{arguments.seeds[0]}" / "manifest.json").read_text(encoding="utf-8"))
    concept = _features(next(iter(_held_out(manifest).values())))
    for name, drawn in pictures.items():
        of_class, of_concept = _features(drawn[CLASS]), _features(drawn[INSTANCE])
        diversity = bootstrap_interval(PairwiseDistance.of(of_class), [len(of_class)], seed=0)
        results[name] = {
            "diversity": _written(diversity),
            "vendi": vendi_score(of_class),
            "class to concept": squared_centroid_distance(of_class, concept),
            "concept to concept": squared_centroid_distance(of_concept, concept),
        }
        print(
            f"{name:12s} diversity of {CLASS!r} {diversity.value:.3f} [{diversity.low:.3f}, {diversity.high:.3f}]  "
            f"Vendi {results[name]['vendi']:.2f}  squared distance to the concept: {CLASS!r} "
            f"{results[name]['class to concept']:.3f}, {INSTANCE!r} {results[name]['concept to concept']:.3f}",
            flush=True,
        )
        rows += [Row(f"{name}\n{prompt}", list(drawn[prompt][:10])) for prompt in (CLASS, INSTANCE)]
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    save_png(sheet(rows, title="DreamBooth on dtd_zigzagged, same seeds"), folder / "prior.png")
    print(f"Look at {folder / 'prior.png'}")


def _train(run: Path, seed: int, steps: int, options: list[str]) -> None:
    if (run / "final.png").exists():
        return
    subprocess.run(
        [
            *(sys.executable, "finetune/dreambooth.py", "--concept", CONCEPT, "--images_per_class", "10"),
            *("--instance_prompt", INSTANCE, "--seed", str(seed), "--max_train_steps", str(steps)),
            *("--output_dir", str(run), "--overwrite_output_dir", *options),
        ],
        cwd=ROOT,
        check=True,
    )


def _draw(pipeline: object, count: int) -> dict[str, np.ndarray]:
    prompts = (CLASS, INSTANCE)
    drawn = sample(
        pipeline,  # type: ignore[arg-type]
        [prompt for prompt in prompts for _ in range(count)],
        [seed for _ in prompts for seed in range(count)],
        num_inference_steps=30,
        guidance_scale=3.0,
        batch_size=32,
    )
    return {prompt: drawn[number * count :][:count] for number, prompt in enumerate(prompts)}


def _held_out(manifest: dict[str, object]) -> dict[str, np.ndarray]:
    source = manifest["source"]
    assert isinstance(source, dict)
    pixels = ImageSource.from_manifest(source).open().held_out_pixels(40)
    return {caption: (images.transpose(0, 2, 3, 1) + 1) / 2 for caption, images in pixels.items()}


def _features(pictures: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float()
    return np.asarray(TexStat(size_for(min(pixels.shape[-2:]))).features(pixels))


def _written(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, default=400)
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/prior-preservation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
