"""How a trained method becomes files that plain diffusers loads: written, reloaded, compared, and described."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from data.dataset import Dataset, SliceDataset
from data.errors import OutputError
from finetune.core import files
from finetune.core.assembly import GUIDANCE_SCALE, SAMPLING_STEPS
from finetune.core.settings import LoraSettings, to_yaml
from finetune.core.trainables import ADAPTER, WholeModule
from pipelines.adapters import export_lora, load_adapter
from pipelines.components import Components, build_pipeline, load_components
from pipelines.sampling import sample
from pipelines.sheets import save_png, to_picture

# 8-bit grey levels by which an image drawn after reloading may differ; on one machine it is 0
LARGEST_DIFFERENCE = 2
_NUM_SCALED = 500  # pictures on which the scale of latents is measured


def lora(settings: LoraSettings, components: Components, dataset: SliceDataset) -> Callable[[Path], list[str]]:
    """Return the export of a run that trained low-rank adapters of the U-Net.

    The export writes `pytorch_lora_weights.safetensors` and a card, draws `final.png` with the weights in memory, draws
    it again from the files in a fresh pipeline, and raises OutputError when the two differ.
    """

    def export(folder: Path) -> list[str]:
        facts = {
            "base": components.name,
            "base_fingerprint": components.fingerprint,
            "prediction_type": components.prediction_type,
            "concept": settings.concept,
            "resolution_px": dataset.resolution,
            "um_per_px": dataset.um_per_px,
            "grey_values": {
                cell.cell.caption: {
                    "window": [float(edge) for edge in cell.training.volume.window],
                    "dtype": str(cell.training.volume.voxels.dtype),
                }
                for cell in dataset.cells
            },
        }
        export_lora(folder, components.unet, ADAPTER, {"filrouge": json.dumps(facts, sort_keys=True)})
        live = _final_picture(components, dataset.captions[0])
        save_png(to_picture(live), folder / "final.png")
        drawn = {
            "prompt": dataset.captions[0],
            "seed": 0,
            "num_inference_steps": SAMPLING_STEPS,
            "guidance_scale": GUIDANCE_SCALE,
        }
        files.write_json_atomic(folder / "final.json", drawn)
        _check_reload(settings, components, folder, dataset.captions[0], live)
        lines = _how_to_use(components, folder, dataset.captions[-1])
        files.write_bytes_atomic(folder / "README.md", _card(settings, dataset, lines).encode())
        return [
            "The adapter was reloaded from its file and draws the same image. To use it:",
            "",
            *(f"    {line}" for line in lines),
            "",
        ]

    return export


def autoencoder(part: WholeModule, dataset: Dataset) -> Callable[[Path], list[str]]:
    """Return the export of a trained autoencoder: its averaged weights, scaled so that latents have unit variance.

    The scale is measured on the first pictures of the run (Rombach et al. 2022, appendix G).
    """

    def export(folder: Path) -> list[str]:
        part.swap_average()
        part.module.eval()
        vae = part.module
        means = []
        with torch.inference_mode():
            for position in range(_NUM_SCALED):
                pixels = torch.from_numpy(dataset.sample(position).pixels)[None].to(_device(vae))
                means.append(vae.encode(pixels).latent_dist.mean)  # type: ignore[operator]
        scale = 1 / float(torch.cat(means).std())
        vae.register_to_config(scaling_factor=scale)  # type: ignore[operator]
        vae.save_pretrained(folder / "vae")  # type: ignore[operator]
        part.swap_average()
        return [f"scaling_factor {scale:.4f}. The autoencoder is in {folder / 'vae'}"]

    return export


def text_encoder(part: WholeModule, tokenizer: CLIPTokenizer) -> Callable[[Path], list[str]]:
    """Return the export of a trained text encoder with its tokenizer."""

    def export(folder: Path) -> list[str]:
        part.swap_average()
        part.module.save_pretrained(folder / "text_encoder")  # type: ignore[operator]
        tokenizer.save_pretrained(folder / "tokenizer")
        part.swap_average()
        return [f"The text encoder and its tokenizer are in {folder}"]

    return export


def pipeline(components: Components, parts: tuple[WholeModule, ...]) -> Callable[[Path], list[str]]:
    """Return the export of a whole Stable Diffusion in half precision, averaged weights in it.

    The folder is loaded again; a U-Net that predicts something else than its weights rounded to float16 would is an
    OutputError.
    """

    def export(folder: Path) -> list[str]:
        for part in parts:
            part.swap_average()
        halved = {
            name: copy.deepcopy(getattr(components, name)).to("cpu", torch.float16).eval()
            for name in ("unet", "vae", "text_encoder")
        }
        target = folder / "pipeline"
        StableDiffusionPipeline(
            **halved,
            tokenizer=components.tokenizer,
            scheduler=components.sampler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(target)
        # transformers (5.23) reads weights in the precision that the config names, and diffusers the rest in float32
        config = target / "text_encoder" / "config.json"
        facts = json.loads(config.read_text(encoding="utf-8"))
        files.write_json_atomic(config, {**facts, "dtype": "float32"})
        reloaded = load_components(str(target))
        for name, module in halved.items():
            stored = getattr(reloaded, name).state_dict()
            wrong = [
                key
                for key, tensor in module.state_dict().items()
                if not torch.equal(stored[key], tensor.to(stored[key]))
            ]
            if wrong:
                raise OutputError(str(target / name), f"reads back with other weights, such as {wrong[0]}.")
        for part in parts:
            part.swap_average()
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
        return [f"The model ({size:.1f} MiB) is in {target}"]

    return export


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _final_picture(components: Components, prompt: str) -> np.ndarray:
    return sample(
        build_pipeline(components),
        [prompt],
        [0],
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        batch_size=1,
    )[0]


def _check_reload(settings: LoraSettings, components: Components, folder: Path, prompt: str, live: np.ndarray) -> None:
    fresh = load_components(components.name, revision=settings.revision, variant=settings.variant)
    fresh = fresh.predicting(components.prediction_type)
    parts = (components.unet, fresh.unet), (components.vae, fresh.vae), (components.text_encoder, fresh.text_encoder)
    for trained, reloaded in parts:
        reloaded.to(trained.device)
        if reloaded.dtype != trained.dtype:
            reloaded.to(trained.dtype)
    load_adapter(build_pipeline(fresh), folder, base_fingerprint=fresh.fingerprint)
    difference = float(np.abs(_final_picture(fresh, prompt) - live).max()) * 255
    if not difference <= LARGEST_DIFFERENCE:
        raise OutputError(
            str(folder),
            f"the adapter, reloaded from its file, draws an image that differs by {difference:.1f} grey levels of 255 "
            f"from the one drawn with the trained weights; expected at most {LARGEST_DIFFERENCE}. The checkpoints hold "
            "the trained weights; do not use the exported file.",
        )


def _how_to_use(components: Components, folder: Path, prompt: str) -> list[str]:
    lines = [
        "from diffusers import StableDiffusionPipeline",
        f'pipe = StableDiffusionPipeline.from_pretrained("{components.source}", safety_checker=None)',
        f'pipe.load_lora_weights("{folder}")',
        f'image = pipe("{prompt}").images[0]',
    ]
    if components.predicts_otherwise:
        lines.insert(
            2,
            "pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, "
            f'prediction_type="{components.prediction_type}")',
        )
    return lines


def _card(settings: LoraSettings, dataset: SliceDataset, lines: list[str]) -> str:
    captions = "\n".join(f"- `{caption}`" for caption in dataset.captions)
    code = "\n".join(lines)
    return f"""---
library_name: diffusers
tags: [lora, stable-diffusion, filrouge]
---

# {settings.concept}: low-rank adapters

Trained on {len(dataset)} slices with the captions

{captions}

```python
{code}
```

Data, split, window, base and versions: `manifest.json`. Course of the training: `metrics.jsonl`. Settings:

```yaml
{to_yaml(settings).rstrip()}
```
"""
