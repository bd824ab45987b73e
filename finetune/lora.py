"""Teach a concept to a Stable Diffusion model with low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

accelerate launch finetune/lora.py --concept sf_dry
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import LoraSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: LoraSettings) -> None:
    fine_tune(settings, build, "lora")


def build(settings: LoraSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, concept_images, exports
    from finetune.core.method import Method

    components = assembly.base(settings, accelerator)
    images = concept_images.open_images(settings, components, accelerator)
    dataset = concept_images.captioned(images, settings)
    notes = assembly.identifier_report(settings, images, dataset, components)
    loras = assembly.loras(settings, components)
    objective = assembly.noise_objective(
        settings, settings.seed, components, frozen_text=not settings.train_text_encoder
    )
    return Method(
        name="lora",
        dataset=dataset,
        objective=objective,
        trainables=tuple(loras.values()),
        export=exports.fine_tuned(settings, components, dataset, [exports.adapters(loras)]),
        preview=assembly.preview(settings, components, dataset.captions, dataset.resolution),
        prepare=assembly.encoded_ahead(objective, dataset, None, components),
        validate=assembly.validation(settings, objective, dataset, components),
        learning_rate_scale=assembly.learning_rates(settings, {"text_encoder_lora": settings.text_encoder_lr}),
        manifest=assembly.origin(settings, components, images),
        notes=notes,
    )


if __name__ == "__main__":
    sys.exit(run_script(main, LoraSettings, "lora"))
