"""The parts of a Stable Diffusion method, made from its settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from data.concepts import CONCEPTS, load_concept
from data.dataset import SliceDataset, build_slice_dataset
from data.synthetic.weave import ensure_volumes
from finetune.core.cache import CachedConditioner, CachedSpace
from finetune.core.objective import NoiseObjective, unet_denoiser
from finetune.core.settings import ConceptSettings, LoopSettings, LossSettings
from finetune.core.trainables import WholeModule
from pipelines.components import Components, build_pipeline, load_components
from pipelines.conditioning import TextConditioner
from pipelines.sampling import sample
from pipelines.sheets import Row, save_png, sheet
from pipelines.spaces import LatentSpace

CACHE_VARIABLE = "FILROUGE_CACHE"  # where generated volumes are kept
GUIDANCE_SCALE = 3.0  # of the pictures a run draws of itself
SAMPLING_STEPS = 30


def base(settings: ConceptSettings, accelerator: Accelerator) -> Components:
    """Load the base model onto the run's device; under mixed precision its frozen U-Net is kept in that precision."""
    components = load_components(
        settings.pretrained_model_name_or_path, revision=settings.revision, variant=settings.variant
    )
    if settings.prediction_type is not None:
        components = components.predicting(settings.prediction_type)
    return placed(components, settings, accelerator)


def placed(components: Components, settings: LoopSettings, accelerator: Accelerator) -> Components:
    """Move a model to the run's device; what is trained of it is brought back to float32 by its trainable."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    components.unet.to(accelerator.device)
    components.vae.to(accelerator.device)  # in float32: half precision overflows in it
    components.text_encoder.to(accelerator.device)
    if dtype != torch.float32:
        components.unet.to(dtype)
        components.text_encoder.to(dtype)
    if settings.gradient_checkpointing:
        components.unet.enable_gradient_checkpointing()
    return components


def concept_images(settings: ConceptSettings, components: Components, accelerator: Accelerator) -> SliceDataset:
    """Open the concept's volumes, or the generated stand-ins where no data root is given, and say so."""
    concept = load_concept(settings.concept, CONCEPTS)
    data_root = settings.data_root
    if data_root is None:
        data_root = ensure_volumes(Path(os.environ.get(CACHE_VARIABLE, Path.home() / ".cache" / "filrouge")))
        accelerator.print(
            f"No --data_root and no FILROUGE_DATA: using generated stand-in volumes in {data_root}.\n"
            "They look like woven composites; they are not your material."
        )
    return build_slice_dataset(
        concept,
        data_root,
        resolution=settings.resolution or components.resolution,
        seed=settings.seed,
        um_per_px=settings.um_per_px,
        images_per_class=settings.images_per_class,
        random_flip=settings.random_flip,
        center_crop=settings.center_crop,
        proportion_empty_prompts=settings.proportion_empty_prompts,
        held_out_fraction=settings.held_out_fraction,
    )


def noise_objective(
    settings: LossSettings,
    seed: int,
    components: Components,
    *,
    frozen_text: bool = True,
    high_noise_share: float = 0.0,
) -> NoiseObjective:
    """The noise objective on a Stable Diffusion model whose autoencoder stays frozen.

    frozen_text: False where the text encoder is trained, which forbids keeping what it made of a caption.
    """
    conditioner = TextConditioner(components.tokenizer, components.text_encoder)
    return NoiseObjective(
        denoise=unet_denoiser(components.unet),
        space=CachedSpace(LatentSpace(components.vae)),
        conditioner=CachedConditioner(conditioner) if frozen_text else conditioner,
        alphas_cumprod=components.scheduler.alphas_cumprod,
        prediction_type=components.prediction_type,
        seed=seed,
        noise_offset=settings.noise_offset,
        snr_gamma=settings.snr_gamma,
        high_noise_share=high_noise_share,
    )


def preview(
    settings: LoopSettings, components: Components, captions: tuple[str, ...], averaged: tuple[WholeModule, ...] = ()
) -> Callable[[Path], None]:
    """Return a function that draws a sample sheet of the captions from the live weights, the same seeds each time.

    averaged: modules to be shown with the average of their weights instead.
    """
    prompts = tuple(settings.validation_prompt or captions)
    seeds = range(settings.num_validation_images)
    pipeline = build_pipeline(components)

    def draw(path: Path) -> None:
        for part in averaged:
            part.swap_average()
        pictures = sample(
            pipeline,
            [prompt for prompt in prompts for _ in seeds],
            [seed for _ in prompts for seed in seeds],
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            batch_size=settings.train_batch_size,
        ).reshape(len(prompts), len(seeds), *([components.resolution] * 2), 3)
        for part in averaged:
            part.swap_average()
        rows = [Row(prompt, list(row)) for prompt, row in zip(prompts, pictures, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(sheet(rows, title=path.stem), path)

    return draw


def origin(settings: ConceptSettings, components: Components, dataset: SliceDataset) -> dict[str, str | float]:
    """Return where a run's base and images came from, for its manifest."""
    files = [cell.training.volume.spec.path for cell in dataset.cells]
    return {
        "base": components.name,
        "base_fingerprint": components.fingerprint,
        "concept": settings.concept,
        "data_root": str(files[0].parent.resolve()),
        "held_out_fraction": settings.held_out_fraction,
        "prediction_type": components.prediction_type,
    }
