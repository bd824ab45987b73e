"""The parts of a Stable Diffusion method, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from data.dataset import ConceptDataset, Dataset
from data.freed_memory import return_freed_memory
from data.progress import Progress
from data.wording import RewordedDataset, Wording
from finetune.core.concept_images import ConceptImages
from finetune.core.encodings import EncodedConditioner, EncodedSpace, identity, open_store
from finetune.core.objective import Conditioner, NoiseObjective, unet_denoiser
from finetune.core.option_groups import AdapterSettings, LossSettings, PlaceholderSettings
from finetune.core.settings import (
    ConceptSettings,
    DreamboothSettings,
    FullUnetSettings,
    LoopSettings,
    LoraDreamboothSettings,
    LoraSettings,
    PivotalTuningSettings,
    PromptedSettings,
    TextualInversionSettings,
)
from finetune.core.stops import at_once
from finetune.core.token_rows import TokenRows
from finetune.core.trainables import TEXT_ATTENTION, Lora, LoraShape, WholeModule, averages, unet_layers
from finetune.core.validation import ValidationLoss
from pipelines.components import (
    Components,
    FourBits,
    build_pipeline,
    load_components,
    present,
    release,
    tokenizer_fingerprint,
)
from pipelines.conditioning import TextConditioner
from pipelines.embeddings import Placeholder, add_placeholder, nearest_words
from pipelines.identifiers import examine_all, most_broken, num_predictions, rare, told, words_of
from pipelines.runs import predicting_as
from pipelines.sampling import sample
from pipelines.sheets import Row, save_png, sheet
from pipelines.spaces import LatentSpace

GUIDANCE_SCALE = 3.0  # of the pictures a run draws of itself
SAMPLING_STEPS = 30  # of the sheets that a user asks for
PREVIEW_PROMPTS = 4  # of a run with more captions
VALIDATION_IMAGES, FEWEST_VALIDATION_IMAGES = 16, 2
VALIDATION_BINS = 4
NEAREST_WORDS = 5
MOST_IDENTIFIERS = (
    4  # that a run examines: at most 112 predictions of the U-Net, which cost as much as some 40 steps of 1
)


def base(settings: ConceptSettings, accelerator: Accelerator, *, rounded: bool = True) -> Components:
    """Load the base model onto the run's device, with the prediction type and the noise schedule of the run.

    A dry run reads no weights. rounded: under mixed precision U-Net and text encoder are kept in that precision. False
    for a run that trains and exports whole modules: what is rounded once stays so, also in float32, and autocast lowers
    each pass anyway.
    """
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    four_bits = isinstance(settings, AdapterSettings) and settings.load_in_4bit
    components = load_components(
        settings.pretrained_model_name_or_path,
        revision=settings.revision,
        variant=settings.variant,
        weights=not settings.dry_run,
        four_bits=FourBits(dtype, accelerator.device) if four_bits else None,
    )
    if rounded:  # before it is placed, so that a GPU never holds it in float32
        if not four_bits:
            nn.Module.to(components.unet, dtype)  # diffusers' own way warns of modules that there are none of
        components.text_encoder.to(dtype)  # not the autoencoder: half precision overflows in it
    return placed(as_asked(components, settings), settings, accelerator)


def as_asked(components: Components, settings: LossSettings) -> Components:
    """Return a model with the prediction type and the noise schedule of the run."""
    asked = {"prediction_type": settings.prediction_type, "zero_terminal_snr": settings.zero_terminal_snr}
    return predicting_as(components, asked)


def placed(components: Components, settings: LoopSettings, accelerator: Accelerator) -> Components:
    """Move a model to the run's device, its gradients and attention computed as the settings say."""
    components.unet.to(accelerator.device)
    components.vae.to(accelerator.device)
    components.text_encoder.to(accelerator.device)
    if settings.gradient_checkpointing:
        components.unet.enable_gradient_checkpointing()
    if settings.enable_xformers_memory_efficient_attention:
        components.unet.enable_xformers_memory_efficient_attention()
    return components


def unet_lora(settings: AdapterSettings, components: Components, seed: int) -> Lora:
    """Return the adapters of the U-Net that the settings describe."""
    alpha = settings.lora_alpha or float(settings.rank)
    conv_alpha = settings.conv_alpha
    if conv_alpha is None and settings.conv_rank is not None:
        conv_alpha = alpha * settings.conv_rank / settings.rank
    shape = LoraShape(
        settings.rank, alpha, settings.lora_dropout, settings.conv_rank, conv_alpha, use_dora=settings.use_dora
    )
    return Lora("unet_lora", components.unet, unet_layers(components.unet, settings.target), shape, seed=seed)


def text_lora(settings: LoraSettings | LoraDreamboothSettings, components: Components) -> Lora | None:
    """Return the adapters of the text encoder's attention; None where it is not trained."""
    if not settings.train_text_encoder:
        return None
    rank = settings.text_encoder_rank or settings.rank
    alpha = settings.text_encoder_alpha
    if alpha is None:
        alpha = float(rank) if settings.text_encoder_rank else settings.lora_alpha or float(rank)
    shape = LoraShape(rank, alpha, settings.lora_dropout, use_dora=settings.use_dora)
    return Lora("text_encoder_lora", components.text_encoder, TEXT_ATTENTION, shape, seed=settings.seed)


def loras(settings: LoraSettings | LoraDreamboothSettings, components: Components) -> dict[str, Lora]:
    """Return the adapters of a run by the part of the model that they sit in."""
    parts = {"unet": unet_lora(settings, components, settings.seed)}
    text = text_lora(settings, components)
    return parts if text is None else {**parts, "text_encoder": text}


def whole_modules(settings: FullUnetSettings | DreamboothSettings, components: Components) -> tuple[WholeModule, ...]:
    """Return the whole U-Net as trained, and the text encoder where it is trained too."""
    ema_decay = settings.ema_decay if settings.use_ema else None
    parts = [WholeModule("unet", components.unet, ema_decay)]
    if settings.train_text_encoder:
        if settings.gradient_checkpointing:
            components.text_encoder.gradient_checkpointing_enable()
        parts.append(WholeModule("text_encoder", components.text_encoder, ema_decay))
    return tuple(parts)


def placeholder(
    settings: PlaceholderSettings, images: ConceptImages, subject: str, components: Components
) -> Placeholder:
    """Add the new word to the base's tokenizer and text encoder, and return it."""
    token = settings.placeholder_token
    if token is None:
        token = f"<{subject.lower().replace('_', '-')}>"
    return add_placeholder(
        components.tokenizer,
        components.text_encoder,
        token,
        images.source.class_noun if settings.initializer_token is None else settings.initializer_token,
        settings.num_vectors,
    )


def with_placeholder(
    settings: TextualInversionSettings | PivotalTuningSettings, images: ConceptImages, token: str
) -> RewordedDataset:
    """Return the images under templates that say the new word."""
    words = Wording.with_placeholder(
        images.dataset.captions, token, images.source.class_noun, settings.learnable_property
    )
    return RewordedDataset(images.dataset, words, settings.seed)


def noise_objective(
    settings: LossSettings,
    seed: int,
    components: Components,
    *,
    frozen_text: bool = True,
    high_noise_share: float = 0.0,
    prior_loss_weight: float = 1.0,
) -> NoiseObjective:
    """The noise objective on a Stable Diffusion model whose autoencoder stays frozen.

    frozen_text: False where the text encoder is trained, which forbids keeping what it made of a caption.
    """
    store, vae, encoder = open_store(), components.vae, components.text_encoder
    conditioner: Conditioner = TextConditioner(components.tokenizer, encoder)
    if frozen_text:
        awake = partial(present, components, ("text_encoder",))

        def reader() -> str:
            return identity(encoder) + tokenizer_fingerprint(components.tokenizer).exact

        conditioner = EncodedConditioner(conditioner, store, reader, awake, encoder.device)
    return NoiseObjective(
        denoise=unet_denoiser(components.unet),
        space=EncodedSpace(LatentSpace(vae), store, partial(identity, vae), partial(present, components, ("vae",))),
        conditioner=conditioner,
        alphas_cumprod=components.scheduler.alphas_cumprod,
        prediction_type=components.prediction_type,
        seed=seed,
        noise_offset=settings.noise_offset,
        input_perturbation=settings.input_perturbation,
        snr_gamma=settings.snr_gamma,
        high_noise_share=high_noise_share,
        prior_loss_weight=prior_loss_weight,
    )


def encoded_ahead(
    objective: NoiseObjective, dataset: Dataset, prior: Dataset | None, components: Components
) -> Callable[[Sequence[int]], Mapping[str, int]]:
    """Return what encodes the images at positions of the run, and all captions, before the steps that need them.

    What is frozen then leaves the memory, and is read again for a while when it is needed. It returns how many
    pictures and captions were encoded, and how many were there already.
    """
    space, conditioner = objective.space, objective.conditioner
    assert isinstance(space, EncodedSpace)
    sources = [dataset] if prior is None else [dataset, prior]
    is_follower = not PartialState().is_main_process

    def encode(positions: Sequence[int]) -> Mapping[str, int]:
        store = space.store
        made, found = store.num_made, store.num_found
        with Progress(total=len(positions) * len(sources), unit="image", desc="encode", disable=is_follower) as bar:

            def images() -> Iterator[Tensor]:
                for source in sources:
                    for position in positions:
                        yield torch.from_numpy(source.sample(position).pixels)
                        bar.update(1)

            space.ahead(images())
        frozen = ["vae"]
        if isinstance(conditioner, EncodedConditioner):
            conditioner.ahead(("", *(caption for source in sources for caption in source.captions)))
            frozen.append("text_encoder")
        if components.folder is not None:
            release(components, frozen)
            return_freed_memory()  # of the encoding, or it would come on top of what a step takes
        store.prune()
        return {"encoded": store.num_made - made, "found_encoded": store.num_found - found}

    return encode


def preview(
    settings: LoopSettings,
    components: Components,
    captions: tuple[str, ...],
    size_px: int,
    averaged: tuple[WholeModule, ...] = (),
) -> Callable[[Path], None] | None:
    """Return a function that draws a sample sheet of the captions from the live weights, the same seeds each time.

    None where the settings ask for no sheet. size_px: side of the images. averaged: modules to be shown with the
    average of their weights instead.
    """
    if not settings.draws_sheets:
        return None
    prompts = tuple(settings.validation_prompt or captions[:PREVIEW_PROMPTS])
    seeds = range(settings.num_validation_images or 1)
    pipeline = build_pipeline(components)

    def draw(path: Path) -> None:
        with averages(averaged), present(components), at_once():
            pictures = sample(
                pipeline,
                [prompt for prompt in prompts for _ in seeds],
                [seed for _ in prompts for seed in seeds],
                num_inference_steps=SAMPLING_STEPS,
                guidance_scale=GUIDANCE_SCALE,
                batch_size=settings.train_batch_size,
                height=size_px,
                width=size_px,
            ).reshape(len(prompts), len(seeds), size_px, size_px, 3)
        rows = [Row(prompt, list(row)) for prompt, row in zip(prompts, pictures, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(sheet(rows, title=path.stem), path)

    return draw


def validation(
    settings: LoopSettings,
    objective: NoiseObjective,
    dataset: ConceptDataset,
    components: Components,
    averaged: tuple[WholeModule, ...] = (),
) -> Callable[[], dict[str, float]] | None:
    """Return a measure of the loss on held-out images, at fixed noise and timesteps; None where there are none."""
    # a larger image says more, and costs more: as many pixels as sixteen images of 96 px have, or two images
    num_images = VALIDATION_IMAGES * 96**2 // dataset.resolution**2
    num_images = max(min(num_images, VALIDATION_IMAGES), min(FEWEST_VALIDATION_IMAGES, VALIDATION_IMAGES))
    images = dataset.held_out_pixels(num_images)
    if not images:
        return None
    measured = ValidationLoss(
        objective,
        images,
        seed=settings.seed,
        num_images=num_images,
        num_bins=VALIDATION_BINS,
        batch_size=settings.train_batch_size,
        modules=(components.unet, components.text_encoder),
    )

    def measure() -> dict[str, float]:
        with averages(averaged), at_once():
            if isinstance(objective.space, EncodedSpace):
                objective.space.ahead(iter(measured.pixels))
            return measured.measure()

    return measure


def watched(rows: TokenRows, validate: Callable[[], dict[str, float]] | None) -> Callable[[], dict[str, float]]:
    """Return a measure that says how far the new word has moved, beside what another one measures."""

    def measure() -> dict[str, float]:
        return {"token_distance": rows.distance(), **(validate() if validate is not None else {})}

    return measure


def learning_rates(settings: LoopSettings, rates: Mapping[str, float | None]) -> dict[str, float]:
    """Return the factor on the run's learning rate for each part that has a rate of its own."""
    return {name: rate / settings.learning_rate for name, rate in rates.items() if rate is not None}


def identifier_report(
    settings: PromptedSettings, images: ConceptImages, dataset: ConceptDataset, components: Components
) -> tuple[str, ...]:
    """Return what the base already makes of the rare words of a run's prompts, in lines; none where not asked for."""
    if not settings.identifier_report:
        return ()
    if settings.dry_run:
        return ("identifiers not examined in a dry run; pipelines/identify.py examines any word without a run",)
    noun, tokenizer = images.source.class_noun, components.tokenizer
    found, ordinary = rare(tokenizer, words_of(dataset.captions, noun))
    chosen = most_broken(tokenizer, found, MOST_IDENTIFIERS)
    others = [word for word in found if word not in chosen]
    if not chosen:
        return ("identifiers none: the prompts have ordinary words only",)
    reports = examine_all(components, chosen, noun, seed=settings.seed, size_px=dataset.resolution)
    return (
        f"identifiers measured with {num_predictions(len(chosen))} predictions of the U-Net",
        *(f"  {line}" for line in told(reports, ordinary, others)),
    )


def without_placeholder(
    settings: PlaceholderSettings, images: ConceptImages, dataset: ConceptDataset, word: Placeholder
) -> dict[str, str]:
    """Return for each prompt with the new word the one that says its initial word instead."""
    known = images.source.class_noun if settings.initializer_token is None else settings.initializer_token
    return {prompt: prompt.replace(word.tokens[0], known) for prompt in dataset.captions}


def word_report(components: Components, word: Placeholder) -> tuple[str, ...]:
    """Return the new word and the words nearest to where it starts, in lines."""
    return (
        f"new word    {' '.join(word.tokens)} ({len(word.tokens)} vectors)",
        *_near("starts near", components, word, word.initial[:1]),
    )


def word_learnt(components: Components, word: Placeholder, rows: TokenRows) -> Callable[[], tuple[str, ...]]:
    """Return a function that tells how far the new word has moved and what it is nearest to, in lines."""

    def tell() -> tuple[str, ...]:
        return (
            f"{word.tokens[0]} moved by {rows.distance():.2f} from where it started.",
            *_near("its vectors are nearest to", components, word, rows.rows),
        )

    return tell


def _near(title: str, components: Components, word: Placeholder, vectors: Tensor) -> tuple[str, ...]:
    if not components.has_weights:
        return ()
    table = components.text_encoder.get_input_embeddings().weight.detach().float()
    near = nearest_words(components.tokenizer, vectors.to(table.device), table, NEAREST_WORDS, exclude=word.ids)
    return tuple(f"{title} " + ", ".join(f"{text} {cosine:.2f}" for text, cosine in words) for words in near)


def origin(
    settings: ConceptSettings,
    components: Components,
    images: ConceptImages,
    base_prompts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return where a run's base and images came from, for its manifest.

    base_prompts: what the base is told in a comparison instead of a prompt with a word that it does not know.
    """
    return {
        "base": components.name,
        "base_fingerprint": components.fingerprint,
        "prediction_type": components.prediction_type,
        "zero_terminal_snr": components.ends_in_pure_noise,
        "subject": settings.subject,
        "source": images.source.manifest(),
        "base_prompts": dict(base_prompts),
    }
