"""Pictures of a pixel model: each depends on its own seed and label, whatever it is drawn together with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion import noise
from pipelines.diffusion.guidance import Classifier, classifier_free, classifier_guided
from pipelines.diffusion.posterior import Variance
from pipelines.diffusion.prediction import Denoiser, clipped
from pipelines.diffusion.samplers import Callback, ancestral, ddim_sampler
from pipelines.diffusion.schedules import Spacing, strided
from pipelines.pixel_model import PixelModel


@dataclass(frozen=True)
class Way:
    """How pictures are drawn.

    sampler: ancestral, ddim, or the class name of a scheduler of diffusers. eta: of ddim. variance: of ancestral.
    spacing: of the steps of both. guidance_scale: of classifier-free guidance, for a model with labels; 1 is none.
    classifier_scale: of a classifier's gradient; 0 is none. clip: keep the image that the model sees in its range.
    """

    sampler: str = "ddim"
    num_steps: int = 50
    eta: float = 0.0
    variance: Variance = "small"
    spacing: Spacing = "linear"
    guidance_scale: float = 1.0
    classifier_scale: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        """Raise SettingsError for options that this sampler has no use for."""
        problems = []
        if self.eta != 0 and self.sampler != "ddim":
            problems.append(f"--eta: {self.sampler} has none. Leave it out, or write --sampler ddim.")
        if self.variance != "small" and self.sampler != "ancestral":
            problems.append(f"--variance: {self.sampler} has none. Leave it out, or write --sampler ancestral.")
        if self.spacing != "linear" and self.sampler not in ("ancestral", "ddim"):
            problems.append(f"--spacing: {self.sampler} has its own. Leave it out.")
        if problems:
            raise SettingsError("way of sampling", *problems)


def denoiser(
    model: PixelModel, way: Way, labels: Tensor | None = None, classifier: Classifier | None = None
) -> Denoiser:
    """Return the model as a denoiser of one batch, with guidance and clipping as the way says.

    labels: (B,) indices into the model's class labels. classifier: of noisy pictures, for the same labels.
    Raises SettingsError for guidance without what it needs.
    """
    problems = []
    if way.guidance_scale != 1 and (labels is None or not model.class_labels):
        problems.append("--guidance_scale: this model knows no labels to be guided to. Leave it out.")
    if way.classifier_scale != 0 and (labels is None or classifier is None):
        problems.append("--classifier_scale: expected a --classifier, and labels to be guided to.")
    if way.classifier_scale == 0 and classifier is not None:
        problems.append("--classifier: does nothing at a --classifier_scale of 0. Give a scale, such as 1.")
    if problems:
        raise SettingsError("guidance", *problems)
    left = model.alphas_cumprod
    told = partial(model.predict, labels=labels if model.class_labels else None)
    denoise: Denoiser = told
    if labels is not None and model.class_labels:
        denoise = classifier_free(told, model.predict, left, way.guidance_scale)
    if classifier is not None and labels is not None:
        denoise = classifier_guided(denoise, classifier, labels, left, way.classifier_scale)
    return clipped(denoise, left, *pixel_range(model)) if way.clip else denoise


def pixel_range(model: PixelModel) -> tuple[float, float]:
    """Return the least and the largest value of the model's pixels."""
    return (-1.0 if model.normalized else 0.0), 1.0


@torch.no_grad()
def draw(
    model: PixelModel,
    way: Way,
    seeds: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    classifier: Classifier | None = None,
    batch_size: int = 16,
    callback: Callback | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return one picture for each seed, (N, C, H, W) on the CPU in the model's range.

    labels: one for each seed, or None. callback: told the steps of each batch. progress: told how many pictures are
    done. Raises SettingsError for a way that this model cannot go, NonFiniteError for pictures that are not finite.
    """
    assert len(seeds) > 0, "a drawing has seeds"
    assert labels is None or len(labels) == len(seeds), "a label for each seed"
    shape = (model.channels, model.size_px, model.size_px)
    device = next(model.unet.parameters()).device
    drawn = []
    for first in range(0, len(seeds), batch_size):
        batch = list(seeds[first : first + batch_size])
        chosen = None if labels is None else torch.tensor(labels[first : first + batch_size], device=device)
        denoise = denoiser(model, way, chosen, classifier)
        drawn.append(_sampled(model, way, denoise, noise.start(batch, shape).to(device), batch, callback).cpu())
        if progress is not None:
            progress(len(batch))
    return torch.cat(drawn)


def _sampled(
    model: PixelModel, way: Way, denoise: Denoiser, x: Tensor, seeds: Sequence[int], callback: Callback | None
) -> Tensor:
    left = model.alphas_cumprod
    if way.sampler not in ("ancestral", "ddim"):
        from pipelines.diffusion.schedulers import named_scheduler, scheduled

        chosen = named_scheduler(way.sampler)
        return scheduled(denoise, x, left, chosen, way.num_steps, seeds=seeds, callback=callback)
    steps = strided(left, way.num_steps, way.spacing)
    chance = noise.seeded(seeds, tuple(x.shape[1:]))
    if way.sampler == "ancestral":
        return ancestral(denoise, x, steps, noise=chance, variance=way.variance, callback=callback)
    return ddim_sampler(denoise, x, steps, noise=chance, eta=way.eta, callback=callback)
