"""Speed of drawing and training on the embedded base, as ratios within one run.

    python benchmarks/sampling.py

Batched drawing against one call for each image (the images agree within the stated difference), and a training step
with cached latents and captions against one without.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from data.synthetic.pictures import WorldDataset
from finetune.core.encodings import EncodedConditioner, EncodedSpace, EncodingStore
from finetune.core.method import Batch
from finetune.core.objective import NoiseObjective, unet_denoiser
from finetune.core.trainables import ATTENTION, Lora, LoraShape
from pipelines.components import build_pipeline, load_components
from pipelines.conditioning import TextConditioner
from pipelines.sampling import sample
from pipelines.spaces import LatentSpace

T = TypeVar("T")
NUM_IMAGES, STEPS, BATCH, REPEATS = 32, 20, 8, 12


def main() -> None:
    components = load_components("swatch")
    pipeline = build_pipeline(components)
    prompts, seeds = ["a striped blue square on a white background"] * NUM_IMAGES, list(range(NUM_IMAGES))

    def draw(batch_size: int) -> np.ndarray:
        return sample(pipeline, prompts, seeds, num_inference_steps=STEPS, guidance_scale=3.0, batch_size=batch_size)

    draw(NUM_IMAGES)
    batched, together = _timed(lambda: draw(NUM_IMAGES))
    single, alone = _timed(lambda: draw(1))
    print(f"drawing {NUM_IMAGES} images of {STEPS} steps: one by one {NUM_IMAGES / single:.1f} images/s, batched")
    print(f"{NUM_IMAGES / batched:.1f} images/s: {single / batched:.2f} times as fast, largest difference", end=" ")
    print(f"{np.abs(together - alone).max() * 255:.3f} of 255 grey levels")

    part = Lora("unet_lora", components.unet, ATTENTION, LoraShape(16, 16.0), seed=0)
    space, text = LatentSpace(components.vae), TextConditioner(components.tokenizer, components.text_encoder)
    dataset = WorldDataset(0, BATCH)
    batch = Batch.collate([[(position, dataset.sample(position))] for position in range(BATCH)])
    seconds = []
    for cached in (True, False):
        objective = NoiseObjective(
            denoise=unet_denoiser(components.unet),
            space=EncodedSpace(space, EncodingStore(None, limit_bytes=0)) if cached else space,
            conditioner=EncodedConditioner(text, EncodingStore(None, limit_bytes=0)) if cached else text,
            alphas_cumprod=components.scheduler.alphas_cumprod,
            prediction_type=components.prediction_type,
            seed=0,
        )

        def step(objective: NoiseObjective = objective) -> None:
            objective.losses(batch).mean().backward()
            for parameter in part.named_parameters().values():
                parameter.grad = None

        step()
        seconds.append(_timed(lambda step=step: [step() for _ in range(REPEATS)])[0] / REPEATS)
    print(f"a training step of {BATCH} images: {BATCH / seconds[0]:.1f} images/s with cached latents and captions,")
    print(f"{BATCH / seconds[1]:.1f} without: {seconds[1] / seconds[0]:.2f} times as fast", end=" ")
    print(f"({torch.get_num_threads()} threads)")


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
