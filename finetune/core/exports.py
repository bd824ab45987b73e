"""How a trained method becomes files that plain diffusers loads: written, reloaded, compared, and described."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import nn
from transformers import CLIPTokenizer

from data.dataset import ConceptDataset, Dataset
from data.errors import OutputError
from finetune.core import files
from finetune.core.assembly import GUIDANCE_SCALE
from finetune.core.card import write_fine_tuned_card
from finetune.core.settings import ConceptSettings
from finetune.core.token_rows import TokenRows
from finetune.core.trainables import ADAPTER, Lora, WholeModule, averages
from finetune.core.verification import Artefact, tensor_problems, verify, with_adapters, with_embeddings, with_modules
from pipelines.adapters import FACTS_KEY, adapter_tensors, export_lora
from pipelines.components import Components, build_pipeline, load_components, present
from pipelines.embeddings import EMBEDDINGS_NAME, export_embeddings
from pipelines.precision import precision_notes
from pipelines.runs import FACTS_NAME, is_whole
from pipelines.sampling import sample
from pipelines.sheets import save_png, to_picture

SAMPLING_STEPS = 10  # of the picture at the end, which every run draws
_NUM_SCALED = 500  # pictures on which the scale of latents is measured


def fine_tuned(
    settings: ConceptSettings,
    components: Components,
    dataset: ConceptDataset,
    artefacts: Sequence[Artefact],
    averaged: tuple[WholeModule, ...] = (),
    learnt: Callable[[], tuple[str, ...]] = tuple,
) -> Callable[[Path], list[str]]:
    """Return the export of a fine-tuned Stable Diffusion: files, a check of them, a picture, and a card.

    Every artefact writes its files; OutputError where they do not hold what was trained. `final.png` is drawn at the
    run's resolution with the weights in memory.
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
        prompt, size_px = dataset.captions[0], dataset.resolution
        drawn = {
            "prompt": prompt,
            "seed": 0,
            "num_inference_steps": SAMPLING_STEPS,
            "guidance_scale": GUIDANCE_SCALE,
            "height": size_px,
            "width": size_px,
        }
        with averages(averaged):
            for artefact in artefacts:
                artefact.write(folder, header)
            verify(artefacts, folder, components, prompt, size_px)
            save_png(to_picture(_final_picture(components, prompt, size_px)), folder / "final.png")
            notes = precision_notes(components, prompt, size_px)
        files.write_json_atomic(folder / "final.json", drawn)
        lines = _how_to_use(settings, components, folder, dataset.captions[-1])
        write_fine_tuned_card(folder, settings, components, dataset, lines)
        return [
            *learnt(),
            "The result was read back from its files and predicts the same as what was trained.",
            *notes,
            "To use it:",
            "",
            *(f"    {line}" for line in lines),
            "",
        ]

    return export


def adapters(loras: Mapping[str, Lora]) -> Artefact:
    """Return `pytorch_lora_weights.safetensors`. loras: by part, "unet" and "text_encoder"."""
    parts = {part: lora.module for part, lora in loras.items()}

    def write(folder: Path, header: Mapping[str, str]) -> None:
        export_lora(folder, parts, ADAPTER, header)

    return Artefact(
        write,
        read_back=lambda folder: tensor_problems(folder / LORA_WEIGHT_NAME_SAFE, adapter_tensors(parts, ADAPTER)),
        reloaded=partial(with_adapters, trained=ADAPTER),
    )


def embeddings(rows: TokenRows, token: str, components: Components) -> Artefact:
    """Return `learned_embeds.safetensors`."""

    def write(folder: Path, header: Mapping[str, str]) -> None:
        export_embeddings(folder, token, rows.rows, header)

    def reloaded(folder: Path, there: Components) -> AbstractContextManager[Components]:
        assert components.folder is not None, "a new word is learnt on a base"
        tokenizer = CLIPTokenizer.from_pretrained(
            components.folder / "tokenizer", local_files_only=True, trust_remote_code=False
        )
        return with_embeddings(folder, there, rows, tokenizer)

    return Artefact(
        write,
        read_back=lambda folder: tensor_problems(folder / EMBEDDINGS_NAME, {token: rows.rows}),
        reloaded=reloaded,
    )


def whole(components: Components) -> Artefact:
    """Return a whole pipeline in diffusers' folder format, float32, its entries in a file beside it."""

    def write(folder: Path, header: Mapping[str, str]) -> None:
        assert all(module.dtype == torch.float32 for module in _modules(components).values()), "nothing was rounded"
        with present(components):
            build_pipeline(components).save_pretrained(folder)
        files.write_json_atomic(folder / FACTS_NAME, json.loads(header[FACTS_KEY]))

    def read_back(folder: Path) -> list[str]:
        with present(components):
            return [
                f"{part}/{problem}"
                for part, module in _modules(components).items()
                for problem in tensor_problems(folder / part, module.state_dict())
            ]

    return Artefact(write, read_back, reloaded=partial(with_modules, parts=("unet", "text_encoder")))


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


def _final_picture(components: Components, prompt: str, size_px: int) -> np.ndarray:
    return sample(
        build_pipeline(components),
        [prompt],
        [0],
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        batch_size=1,
        height=size_px,
        width=size_px,
        awake=partial(present, components),
    )[0]


def _modules(components: Components) -> dict[str, Any]:
    return {"unet": components.unet, "vae": components.vae, "text_encoder": components.text_encoder}


def _how_to_use(settings: ConceptSettings, components: Components, folder: Path, prompt: str) -> list[str]:
    source = repr(str(folder) if is_whole(folder) else components.source)
    imports = []
    if not is_whole(folder):
        chosen = {"revision": settings.revision, "variant": settings.variant}
        source += "".join(f", {name}={value!r}" for name, value in chosen.items() if value is not None)
        if settings.variant is not None:  # its text encoder would stay in the variant's precision, the U-Net not
            imports, source = ["import torch"], f"{source}, dtype=torch.float32"
    lines = [
        "from diffusers import StableDiffusionPipeline",
        f"pipe = StableDiffusionPipeline.from_pretrained({source}, safety_checker=None)",
    ]
    if not is_whole(folder):
        changes = [f"prediction_type={components.prediction_type!r}"] if components.predicts_otherwise else []
        if components.ends_in_pure_noise:
            changes += ["rescale_betas_zero_snr=True", f"timestep_spacing={'trailing'!r}"]
        if changes:
            lines.append(f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {', '.join(changes)})")
            lines[0] = "from diffusers import DDIMScheduler, StableDiffusionPipeline"
        if (folder / EMBEDDINGS_NAME).exists():
            lines.append(f"pipe.load_textual_inversion({str(folder)!r}, weight_name={EMBEDDINGS_NAME!r})")
        if (folder / LORA_WEIGHT_NAME_SAFE).exists():
            lines.append(f"pipe.load_lora_weights({str(folder)!r})")
    return [*imports, *lines, f"image = pipe({prompt!r}).images[0]"]
