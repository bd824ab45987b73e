"""Train the autoencoder of the embedded base on drawn pictures.

accelerate launch finetune/autoencoder.py --output_dir runs/autoencoder
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import run_script
from finetune.core.settings import AutoencoderSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: AutoencoderSettings) -> None:
    from finetune.core.run import run

    run(settings, build, default_dir="autoencoder")


def build(settings: AutoencoderSettings, accelerator: Accelerator) -> Method:
    from data.synthetic.pictures import WorldDataset
    from finetune.core import exports, scratch
    from finetune.core.method import Method
    from finetune.core.objective import ReconstructionObjective
    from finetune.core.trainables import WholeModule

    vae = scratch.autoencoder(settings.block_out_channels, settings.seed, settings.init_from).to(accelerator.device)
    part = WholeModule("vae", vae, settings.ema_decay)
    dataset = WorldDataset(settings.seed, settings.num_images, anything_share=settings.anything_share)
    return Method(
        name="autoencoder",
        dataset=dataset,
        objective=ReconstructionObjective(vae, settings.kl_weight, settings.seed),
        trainables=(part,),
        export=exports.autoencoder(part, dataset),
        manifest={},
    )


if __name__ == "__main__":
    sys.exit(run_script(main, AutoencoderSettings, "autoencoder"))
