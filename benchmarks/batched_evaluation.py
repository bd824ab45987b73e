"""Batched evaluation against calling the pipeline once for each image, in one run.

    python benchmarks/batched_evaluation.py

Both draw what an evaluation of one adapter draws: the same prompts and seeds of the embedded base, and of an adapter of
rank 16 on all its layers (of random factors). They keep the images as PNG files, with all threads that torch takes.
"One by one" is what a loop over diffusers' own pipeline does: `pipeline(prompt, generator=…)` and `image.save(…)`, both
models loaded once. Batches are drawn as `evaluate_prompts.py` draws them, by a process on each core, whose start
counts. Prints images/s of both, their ratio, and the largest difference between the files in grey levels of 255.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from data.progress import Progress
from finetune.core.trainables import ADAPTER, Lora, LoraShape, unet_layers
from pipelines.adapters import export_lora
from pipelines.components import build_pipeline, load_components
from pipelines.evaluation.bases import BaseModel, BaseNeed
from pipelines.evaluation.drawing import LARGEST_DIFFERENCE, Keyed, batches
from pipelines.evaluation.grid import Arm, Asked, Sampling, asked_of, cells
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.states import AskedRun
from pipelines.evaluation.store import ImageStore
from pipelines.evaluation.workers import draw_in_processes, num_workers

PROMPTS = (
    "a texture",
    "a red and white striped texture",
    "two red circles on a white background",
    "a yellow star on a blue background",
    "a striped blue square on a white background",
    "a grid texture",
)
FACTOR_STD = 0.01  # of the adapter's second factors: its images differ from the base's, and are still images


@dataclass(frozen=True)
class Speeds:
    """Seconds for each image, one by one and in batches, and the largest difference in grey levels of 255."""

    one_by_one: float
    batched: float
    difference: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=64, help="images of each of the six prompts (default: 64)")
    parser.add_argument("--singles", type=int, default=48, help="how many of them are also drawn one by one")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn together (default: 16)")
    arguments = parser.parse_args()
    asked = asked_of([Prompt(text, "benchmark") for text in PROMPTS], {}, {})
    sampling, seeds = Sampling("own", arguments.steps, 3.0), tuple(range(arguments.seeds))
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = BaseModel.load("base", BaseNeed("swatch"), "cpu")
        run = _adapter(folder / "adapter")
        adapted = build_pipeline(load_components("swatch"))
        adapted.load_lora_weights(run.path)
        models = (
            ("base", Arm("base", None, 1.0, "base"), build_pipeline(base.components)),
            ("adapter", Arm(run.label, run.result, 1.0, "base"), adapted),
        )
        for label, arm, pipeline in models:
            keyed = _keyed(asked, arm, sampling, seeds)
            singly = keyed[:: max(1, len(keyed) // arguments.singles)]
            together = batches(keyed, arguments.batch_size)
            found[label] = _measure(singly, together, pipeline, base, run, folder / label)
    count = len(seeds) * len(PROMPTS)
    print(f"{count} images of {arguments.steps} steps of each model, {torch.get_num_threads()} threads")
    for label, speeds in found.items():
        _print(label, speeds.one_by_one, speeds.batched)
    one_by_one, batched = np.mean([(each.one_by_one, each.batched) for each in found.values()], axis=0)
    _print("both", one_by_one, batched)
    difference = max(speeds.difference for speeds in found.values())
    print(f"largest difference {difference} grey levels of 255 (tolerance {LARGEST_DIFFERENCE})")


def _adapter(folder: Path) -> AskedRun:
    unet = load_components("swatch").unet
    adapter = Lora("unet", unet, unet_layers(unet, "all"), LoraShape(rank=16, alpha=16), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapter.named_parameters().items():
        if "lora_B" in name:
            parameter.data.normal_(std=FACTOR_STD, generator=generator)
    export_lora(folder, {"unet": unet}, ADAPTER, {})
    return AskedRun.read(folder, "adapter")


def _keyed(asked: Sequence[Asked], arm: Arm, sampling: Sampling, seeds: tuple[int, ...]) -> list[Keyed]:
    found = cells(asked, (arm,), (sampling,), seeds)
    return [(cell.key(base_identity="swatch", arm_digest=arm.label, size_px=64), cell) for cell in found]


def _measure(
    singly: Sequence[Keyed],
    together: Sequence[Sequence[Keyed]],
    pipeline: StableDiffusionPipeline,
    base: BaseModel,
    run: AskedRun,
    folder: Path,
) -> Speeds:
    batched, single = ImageStore(folder / "batched"), ImageStore(folder / "single")
    count = sum(map(len, together))
    processes = num_workers({"base": base}, count)
    _draw_single(singly[:2], ImageStore(folder / "warm"), pipeline)
    one_by_one = _timed(lambda: _draw_single(singly, single, pipeline)) / len(singly)

    def draw_batched() -> None:
        with Progress(total=count, unit="image", desc=f"batched by {processes} processes") as bar:
            draw_in_processes(
                together,
                batched.folder,
                {"base": base},
                {run.label: run},
                size_px=64,
                num_processes=processes,
                progress=bar.update,
            )

    seconds = _timed(draw_batched) / count
    differences = [np.abs(batched.read(key).astype(int) - single.read(key)).max() for key, _ in singly]
    return Speeds(one_by_one, seconds, int(max(differences)))


def _draw_single(keyed: Sequence[Keyed], store: ImageStore, pipeline: StableDiffusionPipeline) -> None:
    for key, cell in Progress(keyed, unit="image", desc="one by one"):
        image: Image.Image = pipeline(
            cell.text,
            generator=torch.Generator().manual_seed(cell.seed),
            num_inference_steps=cell.sampling.num_inference_steps,
            guidance_scale=cell.sampling.guidance_scale,
        ).images[0]
        path = store.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def _print(label: str, one_by_one: float, batched: float) -> None:
    print(
        f"{label}: one by one {1 / one_by_one:.2f} images/s, in batches {1 / batched:.2f} images/s: "
        f"{one_by_one / batched:.2f} times as fast"
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
