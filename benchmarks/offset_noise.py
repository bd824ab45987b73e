"""Does offset noise widen the range of brightness? Full U-Net fine-tuning with and without it, on the embedded base.

    python benchmarks/offset_noise.py [--max_train_steps 400]

First the closed form: how much of the mean of an image is left at the last step of the noise schedule. Then two
trainings on all classes of textures, with the same steps and seeds, --noise_offset 0 and 0.1, and the mean brightness
of what they and the base draw for prompts of black and of white images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler, StableDiffusionPipeline

from pipelines.components import build_pipeline, load_components
from pipelines.diffusion.fourier import mean_signal_to_noise
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.runs import open_tuned
from pipelines.sampling import sample
from pipelines.sheets import Row, save_png, sheet

ROOT = Path(__file__).resolve().parents[1]
DARK = ["a black circle on a black background", "a black and black marbled texture", "a black texture"]
LIGHT = ["a white circle on a white background", "a white and white marbled texture", "a white texture"]
OFFSETS = (0.0, 0.1)
LATENT_SIDES = (64, 96)


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")  # Stable Diffusion's
    left = float(schedule.alphas_cumprod[-1])
    for side in LATENT_SIDES:
        print(f"last step, {side} x {side} latents, image of unit mean: signal over noise in the mean: ", end="")
        print(", ".join(f"{mean_signal_to_noise(side, left, offset):.2f} (offset {offset})" for offset in OFFSETS))
    pictures = {"base": _draw(build_pipeline(load_components("swatch")), arguments.num_images)}
    for offset in OFFSETS:
        run = folder / f"offset-{offset}"
        _train(run, offset, arguments.max_train_steps)
        pictures[f"offset {offset}"] = _draw(open_tuned([run]).pipeline, arguments.num_images)
    results, rows = {}, []
    for name, drawn in pictures.items():
        means = {kind: images.mean(axis=(1, 2, 3)) for kind, images in drawn.items()}
        estimates = {kind: _mean(values) for kind, values in means.items()}
        gap = float(estimates["white"].value - estimates["black"].value)
        results[name] = {kind: [e.value, e.low, e.high] for kind, e in estimates.items()} | {
            "5 to 95 %": [float(q) for q in np.quantile(np.concatenate(list(means.values())), [0.05, 0.95])]
        }
        told = "  ".join(f"{kind} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for kind, e in estimates.items())
        low, high = results[name]["5 to 95 %"]
        print(f"{name:12s} mean brightness: {told}  apart {gap:.3f}  5-95 % {low:.3f} to {high:.3f}", flush=True)
        rows += [Row(f"{name}\n{kind}", list(images[:10])) for kind, images in drawn.items()]
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    save_png(sheet(rows, title="with and without offset noise, same seeds"), folder / "offset.png")
    print(f"Look at {folder / 'offset.png'}")


def _train(run: Path, offset: float, steps: int) -> None:
    if (run / "final.png").exists():
        return
    subprocess.run(
        [
            *(sys.executable, "finetune/full_unet.py", "--concept", "dtd", "--images_per_class", "8"),
            *("--noise_offset", str(offset), "--max_train_steps", str(steps)),
            *("--validation_prompt", "dtd_zigzagged", "--output_dir", str(run), "--overwrite_output_dir"),
        ],
        cwd=ROOT,
        check=True,
    )


def _draw(pipeline: StableDiffusionPipeline, count: int) -> dict[str, np.ndarray]:
    drawn = {}
    for kind, prompts in (("black", DARK), ("white", LIGHT)):
        drawn[kind] = sample(
            pipeline,
            [prompt for prompt in prompts for _ in range(count)],
            [seed for _ in prompts for seed in range(count)],
            num_inference_steps=30,
            guidance_scale=3.0,
            batch_size=32,
        )
    return drawn


def _mean(values: np.ndarray) -> Estimate:
    return bootstrap_interval(lambda counts: counts @ values / counts.sum(1), [len(values)], seed=0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_train_steps", type=int, default=400)
    parser.add_argument("--num_images", type=int, default=24)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/offset-noise"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
