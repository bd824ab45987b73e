"""Teach a concept to a Stable Diffusion model with low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

accelerate launch finetune/lora.py --concept sf_dry
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import run_script
from finetune.core.settings import LoraSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: LoraSettings) -> None:
    from data.concepts import CONCEPTS, load_concept

    load_concept(settings.concept, CONCEPTS)  # a wrong name is told before torch is loaded

    from finetune.core.run import run

    run(settings, build, default_dir=f"{settings.concept}-lora")


def build(settings: LoraSettings, accelerator: Accelerator) -> Method:
    from finetune.core import assembly, exports
    from finetune.core.method import Method
    from finetune.core.trainables import UNetLora

    components = assembly.base(settings, accelerator)
    dataset = assembly.concept_images(settings, components, accelerator)
    adapter = UNetLora(
        components.unet,
        rank=settings.rank,
        alpha=settings.lora_alpha or settings.rank,
        dropout=settings.lora_dropout,
        seed=settings.seed,
        convolutions=settings.target == "attention+conv",
    )
    return Method(
        name="lora",
        dataset=dataset,
        objective=assembly.noise_objective(settings, settings.seed, components),
        trainables=(adapter,),
        export=exports.lora(settings, components, dataset),
        preview=assembly.preview(settings, components, dataset.captions),
        manifest=assembly.origin(settings, components, dataset),
    )


if __name__ == "__main__":
    sys.exit(run_script(main, LoraSettings, "lora"))
