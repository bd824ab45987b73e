"""Learn a new word for a concept first, then low-rank adapters around it (pivotal tuning, Roich et al. 2021).

accelerate launch finetune/pivotal_tuning.py --concept sf_dry --placeholder_token "<dry-slice>"
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import PivotalTuningSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: PivotalTuningSettings) -> None:
    fine_tune(settings, build, "pivotal_tuning")


def build(settings: PivotalTuningSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, concept_images, exports
    from finetune.core.method import Method
    from finetune.core.token_rows import TokenRows

    components = assembly.base(settings, accelerator)
    images = concept_images.open_images(settings, components, accelerator)
    placeholder = assembly.placeholder(settings, images, settings.subject, components)
    dataset = assembly.with_placeholder(settings, images, placeholder.tokens[0])
    prior = concept_images.prior(settings, images, components, accelerator)
    rows = TokenRows(components.text_encoder, placeholder)
    lora = assembly.unet_lora(settings, components, settings.seed)
    objective = assembly.noise_objective(
        settings, settings.seed, components, frozen_text=False, prior_loss_weight=settings.prior_loss_weight
    )
    return Method(
        name="pivotal_tuning",
        dataset=dataset,
        objective=objective,
        trainables=(rows, lora),
        export=exports.fine_tuned(
            settings,
            components,
            dataset,
            [exports.embeddings(rows, placeholder.tokens[0], components), exports.adapters({"unet": lora})],
            learnt=assembly.word_learnt(components, placeholder, rows),
        ),
        preview=assembly.preview(settings, components, dataset.captions, dataset.resolution),
        prepare=assembly.encoded_ahead(objective, dataset, prior, components),
        validate=assembly.watched(rows, assembly.validation(settings, objective, dataset, components)),
        prior=prior,
        learning_rate_scale=assembly.learning_rates(settings, {"token_rows": settings.embedding_lr}),
        spans={"token_rows": (0.0, settings.pivot), "unet_lora": (settings.pivot, 1.0)},
        manifest=assembly.origin(
            settings, components, images, assembly.without_placeholder(settings, images, dataset, placeholder)
        ),
        notes=assembly.word_report(components, placeholder),
    )


if __name__ == "__main__":
    sys.exit(run_script(main, PivotalTuningSettings, "pivotal_tuning"))
