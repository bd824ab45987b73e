"""Train a Stable Diffusion from nothing on drawn, captioned pictures: U-Net and text encoder, the autoencoder frozen.

accelerate launch finetune/latent_diffusion.py --vae runs/autoencoder/vae --text_encoder runs/text_encoder
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import run_script
from finetune.core.settings import LatentDiffusionSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: LatentDiffusionSettings) -> None:
    from finetune.core.run import run

    run(settings, build, default_dir="latent_diffusion")


def build(settings: LatentDiffusionSettings, accelerator: Accelerator) -> Method:
    from data.synthetic.pictures import WorldDataset
    from finetune.core import assembly, exports, scratch
    from finetune.core.method import Method
    from finetune.core.trainables import WholeModule

    components = scratch.diffusion_components(
        settings.vae, settings.text_encoder, settings.block_out_channels, settings.seed, settings.init_from
    )
    components = assembly.placed(assembly.as_asked(components, settings), settings, accelerator)
    parts = [WholeModule("unet", components.unet, settings.ema_decay)]
    if settings.train_text_encoder:
        parts.append(WholeModule("text_encoder", components.text_encoder, settings.ema_decay))
    dataset = WorldDataset(
        settings.seed,
        settings.num_images,
        proportion_empty_prompts=settings.proportion_empty_prompts,
        textured_shape_share=settings.textured_shape_share,
    )
    return Method(
        name="latent_diffusion",
        dataset=dataset,
        objective=assembly.noise_objective(
            settings,
            settings.seed,
            components,
            frozen_text=not settings.train_text_encoder,
            high_noise_share=settings.high_noise_share,
        ),
        trainables=tuple(parts),
        export=exports.pipeline(components, tuple(parts)),
        preview=assembly.preview(settings, components, dataset.captions, components.resolution, averaged=tuple(parts)),
        learning_rate_scale={"text_encoder": settings.text_encoder_lr_scale},
        manifest={
            "vae": scratch.fingerprint(settings.vae),
            "text_encoder": scratch.fingerprint((settings.init_from or settings.text_encoder) / "text_encoder"),
        },
    )


if __name__ == "__main__":
    sys.exit(run_script(main, LatentDiffusionSettings, "latent_diffusion"))
