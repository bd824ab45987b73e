"""Train a diffusion model of pixels from nothing: slices in one channel, textures, digits, or any pictures.

accelerate launch finetune/ddpm.py --concept sf_dry
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import fine_tune, run_script
from finetune.core.settings import DdpmSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: DdpmSettings) -> None:
    fine_tune(settings, build, "ddpm")


def build(settings: DdpmSettings, accelerator: Accelerator) -> Method:
    from finetune.core import pixel_assembly, pixel_exports
    from finetune.core.method import Method
    from finetune.core.trainables import WholeModule

    pictures = pixel_assembly.open_pictures(settings, accelerator)
    model = pixel_assembly.model(settings, pictures, accelerator)
    part = WholeModule("unet", model.unet, settings.ema_decay if settings.use_ema else None)
    device = accelerator.device
    return Method(
        name="ddpm",
        dataset=pictures.dataset,
        objective=pixel_assembly.objective(settings, model, device),
        trainables=(part,),
        export=pixel_exports.pixel_model(settings, model, pictures.dataset, part),
        preview=pixel_assembly.preview(settings, model, part),
        validate=pixel_assembly.validation(settings, model, pictures.dataset, part, device),
        manifest=pixel_assembly.origin(settings, pictures, model),
        notes=pixel_assembly.plan(model),
    )


if __name__ == "__main__":
    sys.exit(run_script(main, DdpmSettings, "ddpm"))
