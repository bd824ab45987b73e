"""Learn a new word for a concept, and nothing else (Textual Inversion, Gal et al. 2022, arXiv:2208.01618).

accelerate launch finetune/textual_inversion.py --concept sf_dry --placeholder_token "<dry-slice>"
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import TextualInversionSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: TextualInversionSettings) -> None:
    fine_tune(settings, build, "textual_inversion")


def build(settings: TextualInversionSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, concept_images, exports
    from finetune.core.method import Method
    from finetune.core.token_rows import TokenRows

    components = assembly.base(settings, accelerator)
    images = concept_images.open_images(settings, components, accelerator)
    placeholder = assembly.placeholder(settings, images, settings.subject, components)
    dataset = assembly.with_placeholder(settings, images, placeholder.tokens[0])
    rows = TokenRows(components.text_encoder, placeholder)
    objective = assembly.noise_objective(settings, settings.seed, components, frozen_text=False)
    return Method(
        name="textual_inversion",
        dataset=dataset,
        objective=objective,
        trainables=(rows,),
        export=exports.fine_tuned(
            settings,
            components,
            dataset,
            [exports.embeddings(rows, placeholder.tokens[0], components)],
            learnt=assembly.word_learnt(components, placeholder, rows),
        ),
        preview=assembly.preview(settings, components, dataset.captions, dataset.resolution),
        prepare=assembly.encoded_ahead(objective, dataset, None, components),
        validate=assembly.watched(rows, assembly.validation(settings, objective, dataset, components)),
        manifest=assembly.origin(
            settings, components, images, assembly.without_placeholder(settings, images, dataset, placeholder)
        ),
        notes=assembly.word_report(components, placeholder),
    )


if __name__ == "__main__":
    sys.exit(run_script(main, TextualInversionSettings, "textual_inversion"))
