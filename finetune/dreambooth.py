"""Bind an identifier to a concept by training the whole U-Net, and keep what the class meant (Ruiz et al. 2023).

accelerate launch finetune/dreambooth.py --concept dtd_zigzagged --with_prior_preservation
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import DreamboothSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: DreamboothSettings) -> None:
    fine_tune(settings, build, "dreambooth")


def build(settings: DreamboothSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, concept_images, exports
    from finetune.core.method import Method

    components = assembly.base(settings, accelerator, rounded=False)
    images = concept_images.open_images(settings, components, accelerator)
    dataset = concept_images.identified(images, settings)
    notes = assembly.identifier_report(settings, images, dataset, components)
    prior = concept_images.prior(settings, images, components, accelerator)
    parts = assembly.whole_modules(settings, components)
    objective = assembly.noise_objective(
        settings,
        settings.seed,
        components,
        frozen_text=not settings.train_text_encoder,
        prior_loss_weight=settings.prior_loss_weight,
    )
    return Method(
        name="dreambooth",
        dataset=dataset,
        objective=objective,
        trainables=parts,
        export=exports.fine_tuned(settings, components, dataset, [exports.whole(components)], averaged=parts),
        preview=assembly.preview(settings, components, dataset.captions, dataset.resolution, averaged=parts),
        prepare=assembly.encoded_ahead(objective, dataset, prior, components),
        validate=assembly.validation(settings, objective, dataset, components, averaged=parts),
        learning_rate_scale=assembly.learning_rates(settings, {"text_encoder": settings.text_encoder_lr}),
        prior=prior,
        manifest=assembly.origin(settings, components, images),
        notes=notes,
    )


if __name__ == "__main__":
    sys.exit(run_script(main, DreamboothSettings, "dreambooth"))
