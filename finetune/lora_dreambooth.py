"""Bind identifiers to a concept with low-rank adapters, and keep what the class meant (Ruiz et al. 2023).

accelerate launch finetune/lora_dreambooth.py --concept sf_dry --images_per_class 3 --instance_prompt "a w17h3r slice"
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import LoraDreamboothSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: LoraDreamboothSettings) -> None:
    fine_tune(settings, build, "lora_dreambooth")


def build(settings: LoraDreamboothSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, concept_images, exports
    from finetune.core.method import Method

    components = assembly.base(settings, accelerator)
    images = concept_images.open_images(settings, components, accelerator)
    dataset = concept_images.identified(images, settings)
    notes = assembly.identifier_report(settings, images, dataset, components)
    prior = concept_images.prior(settings, images, components, accelerator)
    loras = assembly.loras(settings, components)
    objective = assembly.noise_objective(
        settings,
        settings.seed,
        components,
        frozen_text=not settings.train_text_encoder,
        prior_loss_weight=settings.prior_loss_weight,
    )
    return Method(
        name="lora_dreambooth",
        dataset=dataset,
        objective=objective,
        trainables=tuple(loras.values()),
        export=exports.fine_tuned(settings, components, dataset, [exports.adapters(loras)]),
        preview=assembly.preview(settings, components, dataset.captions, dataset.resolution),
        prepare=assembly.encoded_ahead(objective, dataset, prior, components),
        validate=assembly.validation(settings, objective, dataset, components),
        learning_rate_scale=assembly.learning_rates(settings, {"text_encoder_lora": settings.text_encoder_lr}),
        prior=prior,
        manifest=assembly.origin(settings, components, images),
        notes=notes,
    )


if __name__ == "__main__":
    sys.exit(run_script(main, LoraDreamboothSettings, "lora_dreambooth"))
