"""How a trained model of pixels becomes a folder that plain diffusers loads: written, reloaded, compared, described."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from data.dataset import ConceptDataset
from data.errors import OutputError
from finetune.core import draws, files
from finetune.core.card import write_pixel_card
from finetune.core.pixel_models import scheduler
from finetune.core.settings import DdpmSettings
from finetune.core.trainables import WholeModule, averages
from pipelines.fingerprints import weights_fingerprint
from pipelines.pixel_model import FACTS_NAME, PixelModel, load_pixel_model
from pipelines.sheets import save_png, to_picture

FINAL_STEPS = 50  # of the picture that shows that the folder draws
_PROBED_SHARES = (0.0, 0.5, 1.0)  # of the timesteps, at which the reloaded network is compared


def pixel_model(
    settings: DdpmSettings, model: PixelModel, dataset: ConceptDataset, part: WholeModule
) -> Callable[[Path], list[str]]:
    """Return the export of a model of pixels: a pipeline folder of diffusers, facts, a picture, and a card.

    The average of the weights is written, where one is kept. The folder is loaded again: a prediction that is not
    the trained network's to the last bit is an OutputError. `final.png` is drawn by a plain `DDPMPipeline`.
    """

    def export(folder: Path) -> list[str]:
        with averages((part,)):
            model.unet.eval()
            DDPMPipeline(unet=model.unet, scheduler=scheduler(model)).save_pretrained(folder)
            facts = {**model.facts(), "subject": settings.subject, "captions": list(dataset.captions)}
            facts["fingerprint"] = weights_fingerprint(model.unet)
            files.write_json_atomic(folder / FACTS_NAME, facts)
            expected = _predictions(model)
        _check_reload(folder, model, expected)
        drawn = {"seed": 0, "num_inference_steps": min(FINAL_STEPS, model.num_train_timesteps)}
        label = 0 if model.class_labels else None
        save_png(
            to_picture(draw_plainly(folder, label, device=next(model.unet.parameters()).device, **drawn)),
            folder / "final.png",
        )
        files.write_json_atomic(folder / "final.json", {**drawn, "label": label})
        lines = how_to_use(model, folder)
        write_pixel_card(folder, settings, dataset, _described(model, dataset), lines, _notes(model))
        return [
            "The result was reloaded from its files, predicts the same to the last bit, and a DDPMPipeline draws it.",
            "To use it:",
            "",
            *(f"    {line}" for line in lines),
            "",
        ]

    return export


def draw_plainly(
    folder: Path, label: int | None, *, seed: int, num_inference_steps: int, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Return what diffusers' own pipeline draws from a folder, (H, W, C) float32 in [0, 1].

    label: index of a class; None for a model without, as the pipeline knows none.
    """
    pipe = DDPMPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    if label is not None:
        pipe.unet.forward = partial(pipe.unet.forward, class_labels=torch.tensor([label], device=device))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        images = pipe(generator=generator, num_inference_steps=num_inference_steps, output_type="np").images
    drawn: np.ndarray = images[0]
    return drawn


@torch.no_grad()
def _predictions(model: PixelModel) -> list[Tensor]:
    """Return what a model says of a fixed noisy picture at a few timesteps, with and without a label."""
    assert isinstance(model.unet, UNet2DModel)
    size = (model.channels, model.size_px, model.size_px)
    x_t = draws.normal(0, "probe", [0], size).to(model.unet.device)
    said = []
    for share in _PROBED_SHARES:
        t = torch.tensor([round(share * (model.num_train_timesteps - 1))], device=x_t.device)
        for labels in (None, torch.zeros_like(t)) if model.class_labels else (None,):
            one = model.predict(x_t, t, labels)
            said += [one.eps, one.x0] + ([] if one.log_variance is None else [one.log_variance])
    return said


def _check_reload(folder: Path, model: PixelModel, expected: list[Tensor]) -> None:
    assert isinstance(model.unet, UNet2DModel)
    reloaded = load_pixel_model(folder)
    reloaded.unet.to(model.unet.device)
    found = _predictions(reloaded)
    if not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
        raise OutputError(
            str(folder),
            "the model, reloaded from its files, predicts something else than the trained one. The checkpoints hold "
            "the trained weights; do not use the exported files.",
        )


def how_to_use(model: PixelModel, folder: Path) -> list[str]:
    """Return the lines of Python that draw pictures from a folder with plain diffusers."""
    lines = ["from diffusers import DDPMPipeline", f"pipe = DDPMPipeline.from_pretrained({str(folder)!r})"]
    if model.class_labels:
        known = f"0 to {model.no_label - 1}, the places in class_labels of {FACTS_NAME}; {model.no_label}: no label"
        lines = [
            *("import torch", "from functools import partial"),
            *lines,
            f"label = torch.tensor([0])  # {known}",
            "pipe.unet.forward = partial(pipe.unet.forward, class_labels=label)",
        ]
    return [*lines, "image = pipe().images[0]"]


def _described(model: PixelModel, dataset: ConceptDataset) -> str:
    kind = f"{model.size_px} px pictures in {model.channels} channel{'s' if model.channels > 1 else ''}"
    labels = " The class of a picture can be told." if model.class_labels else ""
    return f"A diffusion model of {kind}, trained from nothing on {len(dataset)} images.{labels}"


def _notes(model: PixelModel) -> list[str]:
    """Return what diffusers' pipelines do not know of a model."""
    notes = [f"`{FACTS_NAME}` says what diffusers has no place for: labels, grey values, pixel size, range of pixels."]
    if model.learned_variance:
        notes.append("The variance of each step is learnt: `DDPMPipeline` uses it, `DDIMPipeline` cannot draw it.")
    if not model.normalized:
        notes.append("Trained on pixels in [0, 1]: diffusers' pipelines take them for [-1, 1] and draw them pale.")
    if model.grey_values:
        windows = {json.dumps(values, sort_keys=True) for values in model.grey_values.values()}
        notes.append(f"0 to 1 of a picture stands for the grey values of {', '.join(sorted(windows))}.")
    return notes
