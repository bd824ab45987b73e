"""How a trained method becomes files that plain diffusers loads: written, reloaded, compared, and described."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import nn
from transformers import CLIPTokenizer

from data.dataset import ConceptDataset, Dataset
from data.errors import OutputError
from finetune.core import files
from finetune.core.assembly import GUIDANCE_SCALE, SAMPLING_STEPS
from finetune.core.card import write_fine_tuned_card
from finetune.core.settings import ConceptSettings
from finetune.core.token_rows import TokenRows
from finetune.core.trainables import ADAPTER, Lora, WholeModule, averages
from pipelines.adapters import FACTS_KEY, export_lora
from pipelines.components import Components, build_pipeline, load_components
from pipelines.embeddings import EMBEDDINGS_NAME, export_embeddings
from pipelines.runs import FACTS_NAME, is_whole, open_tuned
from pipelines.sampling import sample
from pipelines.sheets import save_png, to_picture

Writer = Callable[[Path, Mapping[str, str]], None]  # writes into a folder, with entries for the headers of its files
# 8-bit grey levels by which an image drawn after reloading may differ; on one machine it is 0
LARGEST_DIFFERENCE = 2
_NUM_SCALED = 500  # pictures on which the scale of latents is measured


def fine_tuned(
    settings: ConceptSettings,
    components: Components,
    dataset: ConceptDataset,
    writers: Sequence[Writer],
    averaged: tuple[WholeModule, ...] = (),
    learnt: Callable[[], tuple[str, ...]] = tuple,
) -> Callable[[Path], list[str]]:
    """Return the export of a fine-tuned Stable Diffusion: files, a picture, a check, and a card.

    Every writer writes its part. `final.png` is drawn with the weights in memory, then again with what a fresh pipeline
    reads back from the files; OutputError where the two differ.
    averaged: modules that are exported with the average of their weights. learnt: tells what was learnt, in lines.
    """

    def export(folder: Path) -> list[str]:
        facts = {
            "base": components.name,
            "base_fingerprint": components.fingerprint,
            "revision": settings.revision,
            "variant": settings.variant,
            "prediction_type": components.prediction_type,
            "zero_terminal_snr": components.ends_in_pure_noise,
            "subject": settings.subject,
            "resolution_px": dataset.resolution,
            "um_per_px": dataset.um_per_px,
            "grey_values": dataset.grey_values,
        }
        header = {FACTS_KEY: json.dumps(facts, sort_keys=True)}
        prompt = dataset.captions[0]
        with averages(averaged):
            for write in writers:
                write(folder, header)
            live = _final_picture(components, prompt)
        save_png(to_picture(live), folder / "final.png")
        drawn = {
            "prompt": prompt,
            "seed": 0,
            "num_inference_steps": SAMPLING_STEPS,
            "guidance_scale": GUIDANCE_SCALE,
        }
        files.write_json_atomic(folder / "final.json", drawn)
        _check_reload(components, folder, prompt, live)
        lines = _how_to_use(settings, components, folder, dataset.captions[-1])
        write_fine_tuned_card(folder, settings, components, dataset, lines)
        return [
            *learnt(),
            "The result was reloaded from its files and draws the same image. To use it:",
            "",
            *(f"    {line}" for line in lines),
            "",
        ]

    return export


def adapters(loras: Mapping[str, Lora]) -> Writer:
    """Return the writer of `pytorch_lora_weights.safetensors`. loras: by part, "unet" and "text_encoder"."""

    def write(folder: Path, header: Mapping[str, str]) -> None:
        export_lora(folder, {part: lora.module for part, lora in loras.items()}, ADAPTER, header)

    return write


def embeddings(rows: TokenRows, token: str) -> Writer:
    """Return the writer of `learned_embeds.safetensors`."""

    def write(folder: Path, header: Mapping[str, str]) -> None:
        export_embeddings(folder, token, rows.rows, header)

    return write


def whole(components: Components) -> Writer:
    """Return the writer of a whole pipeline in diffusers' folder format, float32, its entries in a file beside it."""

    def write(folder: Path, header: Mapping[str, str]) -> None:
        assert all(module.dtype == torch.float32 for module in _modules(components).values()), "nothing was rounded"
        build_pipeline(components).save_pretrained(folder)
        files.write_json_atomic(folder / FACTS_NAME, json.loads(header[FACTS_KEY]))

    return write


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
        build_pipeline(replace(components, **halved)).save_pretrained(target)
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
    return _drawn(build_pipeline(components), prompt)


def _drawn(pipe: StableDiffusionPipeline, prompt: str) -> np.ndarray:
    return sample(pipe, [prompt], [0], num_inference_steps=SAMPLING_STEPS, guidance_scale=GUIDANCE_SCALE, batch_size=1)[
        0
    ]


def _check_reload(components: Components, folder: Path, prompt: str, live: np.ndarray) -> None:
    fresh = open_tuned([folder])
    for part, reloaded in _modules(fresh.components).items():
        trained = _modules(components)[part]
        reloaded.to(trained.device)
        if reloaded.dtype != trained.dtype:
            reloaded.to(trained.dtype)
    difference = float(np.abs(_drawn(fresh.pipeline, prompt) - live).max()) * 255
    if not difference <= LARGEST_DIFFERENCE:
        raise OutputError(
            str(folder),
            f"the result, reloaded from its files, draws an image that differs by {difference:.1f} grey levels of 255 "
            f"from the one drawn with the trained weights; expected at most {LARGEST_DIFFERENCE}. The checkpoints hold "
            "the trained weights; do not use the exported files.",
        )


def _modules(components: Components) -> dict[str, Any]:
    return {"unet": components.unet, "vae": components.vae, "text_encoder": components.text_encoder}


def _how_to_use(settings: ConceptSettings, components: Components, folder: Path, prompt: str) -> list[str]:
    source = f'"{folder if is_whole(folder) else components.source}"'
    imports = []
    if not is_whole(folder):
        chosen = {"revision": settings.revision, "variant": settings.variant}
        source += "".join(f', {name}="{value}"' for name, value in chosen.items() if value is not None)
        if settings.variant is not None:  # its text encoder would stay in the variant's precision, the U-Net not
            imports, source = ["import torch"], f"{source}, dtype=torch.float32"
    lines = [
        "from diffusers import StableDiffusionPipeline",
        f"pipe = StableDiffusionPipeline.from_pretrained({source}, safety_checker=None)",
    ]
    if not is_whole(folder):
        changes = [f'prediction_type="{components.prediction_type}"'] if components.predicts_otherwise else []
        if components.ends_in_pure_noise:
            changes += ["rescale_betas_zero_snr=True", 'timestep_spacing="trailing"']
        if changes:
            lines.append(f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {', '.join(changes)})")
            lines[0] = "from diffusers import DDIMScheduler, StableDiffusionPipeline"
        if (folder / EMBEDDINGS_NAME).exists():
            lines.append(f'pipe.load_textual_inversion("{folder}", weight_name="{EMBEDDINGS_NAME}")')
        if (folder / LORA_WEIGHT_NAME_SAFE).exists():
            lines.append(f'pipe.load_lora_weights("{folder}")')
    return [*imports, *lines, f'image = pipe("{prompt}").images[0]']
