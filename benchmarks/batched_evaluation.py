"""Batched evaluation against calling the pipeline once for each image, in one run.

    python benchmarks/batched_evaluation.py

Both draw the same prompts and seeds on the embedded base and keep them as PNG files, with all threads that torch takes.
"One by one" is what a loop over diffusers' own pipeline does: `pipeline(prompt, generator=…)` and `image.save(…)`, the
model loaded once. Batches are drawn as `evaluate_prompts.py` draws them, by a process on each core, whose start counts.
Prints images/s of both, their ratio, and the largest difference between the files in grey levels of 255.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipelines.components import build_pipeline
from pipelines.evaluation.bases import BaseModel, BaseNeed
from pipelines.evaluation.drawing import LARGEST_DIFFERENCE, Keyed, batches
from pipelines.evaluation.grid import Arm, Sampling, asked_of, cells
from pipelines.evaluation.prompt_sets import Prompt
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=64, help="images of each of the six prompts (default: 64)")
    parser.add_argument("--singles", type=int, default=96, help="how many of them are also drawn one by one")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn together (default: 16)")
    arguments = parser.parse_args()
    base = BaseModel.load("base", BaseNeed("swatch"), "cpu")
    asked = asked_of([Prompt(text, "benchmark") for text in PROMPTS], {}, {})
    sampling = Sampling("own", arguments.steps, 3.0)
    found = cells(asked, (Arm("base", None, 1.0, "base"),), (sampling,), tuple(range(arguments.seeds)))
    keyed = [(cell.key(base_identity=base.identity, arm_digest="", size_px=64), cell) for cell in found]
    processes = num_workers({"base": base}, len(keyed))
    singly = keyed[:: max(1, len(keyed) // arguments.singles)]
    with tempfile.TemporaryDirectory() as name:
        batched, single = ImageStore(Path(name) / "batched"), ImageStore(Path(name) / "single")
        _draw_single(singly[:2], ImageStore(Path(name) / "warm"), base)
        one_by_one = _timed(lambda: _draw_single(singly, single, base)) / len(singly)
        together = _timed(lambda: _draw_batched(batches(keyed, arguments.batch_size), batched, base, processes)) / len(
            keyed
        )
        differences = [np.abs(batched.read(key).astype(int) - single.read(key)).max() for key, _ in singly]
    print(f"{len(keyed)} images of {arguments.steps} steps, {torch.get_num_threads()} threads")
    print(f"one by one: {1 / one_by_one:.2f} images/s; in batches of {arguments.batch_size}", end=" ")
    print(f"by {processes} processes: {1 / together:.2f} images/s: {one_by_one / together:.2f} times as fast")
    print(f"largest difference {max(differences)} grey levels of 255 (tolerance {LARGEST_DIFFERENCE})")


def _draw_batched(together: list[list[Keyed]], store: ImageStore, base: BaseModel, processes: int) -> None:
    with tqdm(total=sum(map(len, together)), unit="image", desc="batched") as bar:
        draw_in_processes(
            together, store.folder, {"base": base}, {}, size_px=64, num_processes=processes, progress=bar.update
        )


def _draw_single(keyed: list[Keyed], store: ImageStore, base: BaseModel) -> None:
    pipeline = build_pipeline(base.components)
    for key, cell in tqdm(keyed, unit="image", desc="one by one"):
        image: Image.Image = pipeline(
            cell.text,
            generator=torch.Generator().manual_seed(cell.seed),
            num_inference_steps=cell.sampling.num_inference_steps,
            guidance_scale=cell.sampling.guidance_scale,
        ).images[0]
        path = store.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
