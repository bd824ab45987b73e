"""Teach a concept to a Stable Diffusion model by training all the weights of its U-Net.

accelerate launch finetune/full_unet.py --concept sf_dry
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import FullUnetSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: FullUnetSettings) -> None:
    fine_tune(settings, build, "full_unet")


def build(settings: FullUnetSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, concept_images, exports
    from finetune.core.method import Method

    components = assembly.base(settings, accelerator, rounded=False)
    images = concept_images.open_images(settings, components, accelerator)
    dataset = concept_images.captioned(images, settings)
    notes = assembly.identifier_report(settings, images, dataset, components)
    parts = assembly.whole_modules(settings, components)
    objective = assembly.noise_objective(
        settings, settings.seed, components, frozen_text=not settings.train_text_encoder
    )
    return Method(
        name="full_unet",
        dataset=dataset,
        objective=objective,
        trainables=parts,
        export=exports.fine_tuned(settings, components, dataset, [exports.whole(components)], averaged=parts),
        preview=assembly.preview(settings, components, dataset.captions, dataset.resolution, averaged=parts),
        prepare=assembly.encoded_ahead(objective, dataset, None, components),
        validate=assembly.validation(settings, objective, dataset, components, averaged=parts),
        learning_rate_scale=assembly.learning_rates(settings, {"text_encoder": settings.text_encoder_lr}),
        manifest=assembly.origin(settings, components, images),
        notes=notes,
    )


if __name__ == "__main__":
    sys.exit(run_script(main, FullUnetSettings, "full_unet"))
