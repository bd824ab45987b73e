"""The images of a run and the words over them, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from data.captions import with_article
from data.checks.captions_findings import too_long
from data.dataset import ConceptDataset
from data.environment import cache_folder
from data.errors import SettingsError
from data.image_dataset import NO_CAPTIONS, ImageDataset
from data.plain_text import plain_lines
from data.sources import ImageSource, refuse_unused
from data.stand_ins import generated_data
from data.wording import RewordedDataset, Wording
from finetune.core.class_images import ClassImages, ClassRecipe, class_images
from finetune.core.option_groups import PlaceholderSettings
from finetune.core.settings import (
    ConceptSettings,
    DdpmSettings,
    DreamboothSettings,
    LoraDreamboothSettings,
    PivotalTuningSettings,
)
from pipelines.components import Components

CLASS_GUIDANCE_SCALE = 3.0
CLASS_SAMPLING_STEPS = 30


@dataclass(frozen=True)
class ConceptImages:
    """The opened images of a run, under the captions of the data, and where they came from."""

    source: ImageSource
    dataset: ConceptDataset

    @property
    def class_prompt(self) -> str:
        """What the class of the images is called: "a texture", "a slice"."""
        return with_article(f"a {self.source.class_noun}")


def open_images(settings: ConceptSettings, components: Components, accelerator: Accelerator) -> ConceptImages:
    """Open the images of a run on a base model."""
    resolution = settings.resolution or components.resolution
    images = open_source(
        settings,
        resolution,
        settings.proportion_empty_prompts,
        accelerator,
        needs_captions=needs_captions(settings),
    )
    tokenizer = components.tokenizer
    told = _cut_captions(images, settings, lambda texts: tokenizer(list(texts)).input_ids, tokenizer.model_max_length)
    for line in told:
        accelerator.print(line)
    return images


def needs_captions(settings: ConceptSettings) -> bool:
    """Return whether a run says the captions of the data: not where one prompt or a new word stands for all."""
    return not isinstance(settings, PlaceholderSettings) and len(settings.instance_prompt) != 1


def _cut_captions(
    images: ConceptImages,
    settings: ConceptSettings,
    token_ids: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    limit: int,
) -> list[str]:
    """Return which captions of either side, or prompts in their place, are longer than a text encoder reads."""
    texts = [("--instance_prompt", prompt) for prompt in settings.instance_prompt]
    if not texts and images.source.needs_captions and isinstance(images.dataset, ImageDataset):
        both = (*images.dataset.training, *images.dataset.held_out)
        texts = [(image.name, image.caption) for image in both if image.caption]
    distinct = list(dict.fromkeys(text for _, text in texts))
    lengths = dict(zip(distinct, map(len, token_ids(distinct)), strict=True)) if distinct else {}
    over = [(name, lengths[text]) for name, text in texts if lengths[text] > limit]
    return [f"warning     {too_long(over, limit)}"] if over else []


def open_source(
    settings: ConceptSettings | DdpmSettings,
    resolution: int,
    proportion_empty: float,
    accelerator: Accelerator,
    *,
    needs_captions: bool,
) -> ConceptImages:
    """Open the run's images; for a concept without a data root the generated stand-ins, and say so.

    resolution: side in px. proportion_empty: of the samples lose their caption. needs_captions: False where the run
    says other words.
    """
    data_root = settings.data_root
    if settings.concept is not None and data_root is None:
        with accelerator.main_process_first():
            data_root, said = generated_data(settings.concept)
        accelerator.print(said)
    source = ImageSource(
        concept=settings.concept,
        data_root=data_root if settings.concept is not None else None,
        train_data_dir=settings.train_data_dir,
        dataset_name=settings.dataset_name,
        dataset_config_name=settings.dataset_config_name,
        image_column=settings.image_column,
        caption_column=settings.caption_column,
        resolution=resolution,
        seed=settings.seed,
        um_per_px=settings.um_per_px,
        images_per_class=settings.images_per_class,
        center_crop=settings.center_crop,
        random_flip=settings.random_flip,
        proportion_empty_prompts=proportion_empty,
        held_out_fraction=settings.held_out_fraction,
        px_per_voxel=settings.px_per_voxel,
        bucket_batch=settings.train_batch_size * accelerator.num_processes if settings.aspect_buckets else None,
        dtd_split=settings.dtd_split,
        split_by=settings.split_by,
        group_column=settings.group_column,
        allow_outside_files=settings.allow_outside_files,
        default_caption=settings.default_caption,
        needs_captions=needs_captions,
        skip_bad=settings.skip_bad,
    )
    refuse_unused(source, settings.changed())
    dataset = source.open()
    accelerator.print(plain_lines(dataset.notes))
    return ConceptImages(source, dataset)


def captioned(images: ConceptImages, settings: ConceptSettings) -> ConceptDataset:
    """Return the images under their own captions, or under --instance_prompt where it is given."""
    if settings.instance_prompt:
        return identified(images, settings)
    if "" in images.dataset.captions:
        raise SettingsError("--instance_prompt", NO_CAPTIONS)
    return images.dataset


def identified(images: ConceptImages, settings: ConceptSettings) -> ConceptDataset:
    """Return the images under --instance_prompt; by default "a <caption> <class noun>"."""
    prompts = settings.instance_prompt
    if not prompts:
        if "" in images.dataset.captions:
            raise SettingsError("--instance_prompt", NO_CAPTIONS)
        noun = images.source.class_noun
        prompts = tuple(with_article(f"a {caption} {noun}") for caption in images.dataset.captions)
    return RewordedDataset(images.dataset, Wording.identified(images.dataset.captions, prompts), settings.seed)


def prior(
    settings: DreamboothSettings | LoraDreamboothSettings | PivotalTuningSettings,
    images: ConceptImages,
    components: Components,
    accelerator: Accelerator,
) -> ClassImages | None:
    """Return images of the class drawn by the untouched base model; None where the prior is not preserved."""
    if not settings.with_prior_preservation:
        return None
    base = components.as_loaded()  # it has yet to learn what the run has it predict
    recipe = ClassRecipe(
        prompt=settings.class_prompt or images.class_prompt,
        base_fingerprint=base.fingerprint,
        prediction_type=base.prediction_type,
        resolution=images.source.resolution,
        seed=settings.seed,
        num_inference_steps=CLASS_SAMPLING_STEPS,
        guidance_scale=CLASS_GUIDANCE_SCALE,
        precision="nf4" if getattr(base.unet, "is_loaded_in_4bit", False) else str(accelerator.mixed_precision),
    )
    folder = settings.class_data_dir or cache_folder() / "class-images"
    with accelerator.main_process_first(), accelerator.autocast():  # the base may be in float32 under mixed precision
        return class_images(
            base,
            recipe,
            folder,
            num_images=settings.num_class_images,
            batch_size=settings.sample_batch_size,
            write=accelerator.is_main_process and not settings.dry_run,
        )
