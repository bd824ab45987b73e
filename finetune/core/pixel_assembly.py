"""The parts of a method that trains a model of pixels, made from its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from data.dataset import ConceptDataset
from data.errors import SettingsError, nearest
from data.labelled.pictures import open_labelled
from data.outside_files import refuse_links_out
from data.plain_text import plain_lines
from finetune.core import pixel_models
from finetune.core.concept_images import open_source
from finetune.core.method import Objective
from finetune.core.pixel_objective import BoundObjective, LabelConditioner, noise_objective
from finetune.core.settings import DdpmSettings
from finetune.core.stops import at_once
from finetune.core.trainables import WholeModule, averages
from finetune.core.validation import ValidationLoss
from pipelines.diffusion.drawing import Way
from pipelines.diffusion.drawing import draw as draw_pixels
from pipelines.diffusion.pictures import to_images
from pipelines.pixel_model import PixelModel
from pipelines.sheets import Row, save_png, sheet

RESOLUTION_PX = 64  # where nothing says it
SAMPLING_STEPS = 50
PREVIEW_LABELS = 12  # of a model with more
VALIDATION_IMAGES = 16
VALIDATION_BINS = 4


@dataclass(frozen=True)
class Pictures:
    """The opened pictures of a run, what a manifest says of where they came from, and how many channels they fill."""

    dataset: ConceptDataset
    source: dict[str, Any]
    channels: int


def open_pictures(settings: DdpmSettings, accelerator: Accelerator) -> Pictures:
    """Open the run's pictures: a concept, a folder, a Hugging Face dataset, or the files of MNIST or CIFAR-10."""
    proportion_empty = settings.proportion_empty_labels if settings.class_conditional else 0.0
    if settings.data_format == "images":
        images = open_source(
            settings,
            settings.resolution or RESOLUTION_PX,
            proportion_empty,
            accelerator,
            needs_captions=settings.class_conditional,
        )
        source = {"data_format": "images", **images.source.manifest()}
        return Pictures(images.dataset, source, settings.channels or (1 if images.dataset.grey_values else 3))
    assert settings.train_data_dir is not None, "a format of files has a folder"
    if not settings.allow_outside_files:
        refuse_links_out(settings.train_data_dir)
    dataset = open_labelled(
        settings.data_format,
        settings.train_data_dir,
        resolution=settings.resolution,
        seed=settings.seed,
        images_per_class=settings.images_per_class,
        random_flip=settings.random_flip,
        proportion_empty_prompts=proportion_empty,
    )
    accelerator.print(plain_lines(dataset.notes))
    source = {"data_format": settings.data_format, "train_data_dir": str(settings.train_data_dir.resolve())}
    return Pictures(dataset, source, settings.channels or dataset.training.channels)


def class_labels(settings: DdpmSettings, dataset: ConceptDataset) -> tuple[str, ...]:
    """Return the labels that the model is told: the captions of the pictures; none for a model without classes."""
    if not settings.class_conditional:
        return ()
    problems = []
    if "" in dataset.captions:
        problems.append("no picture has a caption. Put each class into a folder of its own, or leave this out.")
    elif len(dataset.captions) < 2:
        problems.append(f"all pictures have the caption {dataset.captions[0]!r}. Leave this out.")
    if problems:
        raise SettingsError("--class_conditional", *problems)
    unknown = [
        f"found {prompt!r}.{nearest(prompt, dataset.captions)}"
        for prompt in settings.validation_prompt
        if prompt not in dataset.captions
    ]
    if unknown:
        raise SettingsError("--validation_prompt", *unknown)
    return dataset.captions


def model(settings: DdpmSettings, pictures: Pictures, accelerator: Accelerator) -> PixelModel:
    """Return the new model of a run on the run's device."""
    labels = class_labels(settings, pictures.dataset)
    made = pixel_models.new_model(settings, pictures.dataset, pictures.channels, labels, accelerator.device)
    if settings.gradient_checkpointing:
        made.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    if settings.enable_xformers_memory_efficient_attention:
        made.unet.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
    return made


def objective(settings: DdpmSettings, pixel_model: PixelModel, device: torch.device) -> Objective:
    """Return what a batch is judged by."""
    simple = noise_objective(pixel_model, settings.seed, settings.snr_gamma, device)
    if settings.loss == "simple":
        return simple
    conditioner = LabelConditioner(pixel_model, device)
    return BoundObjective(pixel_model, conditioner, settings.seed, simple if settings.loss == "hybrid" else None)


def validation(
    settings: DdpmSettings, pixel_model: PixelModel, dataset: ConceptDataset, part: WholeModule, device: torch.device
) -> Callable[[], dict[str, float]] | None:
    """Return the squared error of the average's prediction on held-out pictures; None where there are none."""
    held_out = dataset.held_out_pixels(VALIDATION_IMAGES)
    if pixel_model.class_labels:
        held_out = {caption: pixels for caption, pixels in held_out.items() if caption in pixel_model.class_labels}
    if not held_out:
        return None
    measured = ValidationLoss(
        noise_objective(pixel_model, settings.seed, None, device),
        held_out,
        seed=settings.seed,
        num_images=VALIDATION_IMAGES,
        num_bins=min(VALIDATION_BINS, settings.num_train_timesteps),
        batch_size=settings.train_batch_size,
        modules=(pixel_model.unet,),
        device=device,
    )

    def measure() -> dict[str, float]:
        with averages((part,)), at_once():
            return measured.measure()

    return measure


def preview(settings: DdpmSettings, pixel_model: PixelModel, part: WholeModule) -> Callable[[Path], None] | None:
    """Return a function that draws a sheet of samples with the average, the same noise each time, a row for a label.

    None where the settings ask for no sheet.
    """
    if not settings.draws_sheets:
        return None
    num_images = settings.num_validation_images or 1
    labels = settings.validation_prompt or pixel_model.class_labels[:PREVIEW_LABELS] or (settings.subject,)

    def draw(path: Path) -> None:
        with averages((part,)), at_once():
            rows = [Row(label, _samples(pixel_model, label, num_images, settings.train_batch_size)) for label in labels]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(sheet(rows, title=path.stem), path)

    return draw


def _samples(pixel_model: PixelModel, label: str, num_images: int, batch_size: int) -> list[np.ndarray]:
    """Return samples (H, W, C) in [0, 1]. label: one of the model's, and of no account for a model without."""
    known = pixel_model.class_labels
    labels = [known.index(label)] * num_images if known else None
    way = Way(num_steps=min(SAMPLING_STEPS, pixel_model.num_train_timesteps))
    was_training = pixel_model.unet.training
    pixel_model.unet.eval()
    drawn = draw_pixels(pixel_model, way, range(num_images), labels=labels, batch_size=batch_size)
    pixel_model.unet.train(was_training)
    return list(to_images(pixel_model, drawn))


def plan(pixel_model: PixelModel) -> tuple[str, ...]:
    """Return what is to be trained, in a line."""
    widths = "-".join(map(str, pixel_model.unet.config["block_out_channels"]))  # type: ignore[index]
    variance = " and its variance" if pixel_model.learned_variance else ""
    classes = f", {len(pixel_model.class_labels)} classes" if pixel_model.class_labels else ""
    return (
        f"model       {pixel_model.size_px} px in {pixel_model.channels} channels, U-Net of {widths} channels; "
        f"predicts {pixel_model.prediction_type}{variance} on the {pixel_model.schedule} schedule of "
        f"{pixel_model.num_train_timesteps} timesteps{classes}",
    )


def origin(settings: DdpmSettings, pictures: Pictures, pixel_model: PixelModel) -> dict[str, Any]:
    """Return where a run's pictures came from and what its model is, for its manifest."""
    return {
        "subject": settings.subject,
        "source": pictures.source,
        "pixel_model": pixel_model.facts(),
        "unet": {
            name: pixel_model.unet.config[name]  # type: ignore[index]
            for name in ("block_out_channels", "layers_per_block", "down_block_types", "attention_head_dim", "dropout")
        },
    }
