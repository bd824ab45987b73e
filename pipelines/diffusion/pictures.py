"""The pictures that a pixel model was trained on and those kept from it, opened again from its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.dataset import ConceptDataset
from data.errors import DataError
from data.labelled.pictures import open_labelled
from pipelines.pixel_model import PixelModel
from pipelines.run_data import refuse_changed, reopened
from pipelines.run_records import read_manifest

Side = Literal["training", "held-out"]


def open_pictures(run: Path) -> ConceptDataset:
    """Return the data of a run of finetune/ddpm.py.

    Raises DataError for a folder without a manifest, and for data that is no longer what the run was trained on.
    """
    needs = ("source", "settings", "seed", "data")
    manifest = read_manifest(run, "the folder of a run of finetune/ddpm.py", needs=needs, error=DataError)
    source, settings = manifest["source"], manifest["settings"]
    data_format = source.get("data_format", "images")
    if data_format == "images":
        return reopened(run, manifest)
    dataset = open_labelled(
        data_format,
        Path(source["train_data_dir"]),
        resolution=settings["resolution"],
        seed=manifest["seed"],
        images_per_class=settings["images_per_class"],
        random_flip=settings["random_flip"],
        proportion_empty_prompts=settings["proportion_empty_labels"] if settings["class_conditional"] else 0.0,
    )
    refuse_changed(run, dataset, manifest["data"])
    return dataset


def pictures(model: PixelModel, dataset: ConceptDataset, side: Side, num_images: int) -> dict[str, Tensor]:
    """Return at most num_images pictures by caption, (N, C, H, W) in the channels and range of the model.

    As many for each caption as there are for the others, as far as they have them; captions without any are left out.
    """
    captions = dataset.captions
    share = -(-num_images // len(captions))
    found = dataset.held_out_pixels(share) if side == "held-out" else dataset.training_pixels(share)
    kept: dict[str, Tensor] = {}
    left = num_images
    for caption, pixels in found.items():
        chosen = pixels[:left]
        left -= len(chosen)
        if len(chosen):
            kept[caption] = model.from_pixels(torch.from_numpy(np.ascontiguousarray(chosen)))
    if not kept:
        raise DataError("pictures of the run", f"found no {side} picture. Train with a larger --held_out_fraction.")
    return kept


def to_images(model: PixelModel, pixels: Tensor) -> np.ndarray:
    """Return pixels (B, C, H, W) of the model's range as pictures (B, H, W, C) float32 in [0, 1]."""
    return model.to_unit(pixels).permute(0, 2, 3, 1).float().cpu().numpy()
