"""Train a text encoder by contrast: each caption finds its own drawn picture among a batch's, and the reverse.

accelerate launch finetune/text_encoder.py --vae runs/autoencoder/vae --output_dir runs/text_encoder
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.core.cli import run_script
from finetune.core.settings import TextTowerSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method


def main(settings: TextTowerSettings) -> None:
    from finetune.core.run import run

    run(settings, build, default_dir="text_encoder")


def build(settings: TextTowerSettings, accelerator: Accelerator) -> Method:
    from data.synthetic.pictures import WorldDataset
    from data.synthetic.words import ALL
    from finetune.core import exports, scratch
    from finetune.core.encodings import EncodedSpace, EncodingStore
    from finetune.core.method import Method
    from finetune.core.objective import ContrastObjective
    from finetune.core.trainables import WholeModule
    from pipelines.conditioning import TextConditioner
    from pipelines.vocabulary import build_tokenizer

    device = accelerator.device
    tokenizer = build_tokenizer(ALL)
    text = scratch.text_encoder(
        tokenizer, settings.text_width, settings.text_layers, settings.seed, settings.init_from
    ).to(device)
    tower = scratch.contrast_tower(settings.text_width, settings.seed).to(device)
    part = WholeModule("text_encoder", text, settings.ema_decay)
    return Method(
        name="text_encoder",
        dataset=WorldDataset(settings.seed, settings.num_images, complete_captions=True),
        objective=ContrastObjective(
            tower,
            EncodedSpace(scratch.latent_space(settings.vae, device), EncodingStore(None, limit_bytes=0)),
            TextConditioner(tokenizer, text),
        ),
        trainables=(part, WholeModule("tower", tower)),
        export=exports.text_encoder(part, tokenizer),
        manifest={"vae": scratch.fingerprint(settings.vae)},
    )


if __name__ == "__main__":
    sys.exit(run_script(main, TextTowerSettings, "text_encoder"))
