"""What a model has lost on prompts that it was not trained on: in its noise predictions and in its images.

The prompts stand in three rings: the class word ("a texture"), related ones ("two zebras"), unrelated ones. Pictures
and features come as one array for each prompt, image i of every model drawn with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError, NonFiniteError
from data.randomness import derive, generator
from pipelines.components import Components
from pipelines.conditioning import TextConditioner
from pipelines.diffusion.prediction import READINGS
from pipelines.metrics.distances import (
    Discrepancy,
    Estimate,
    bootstrap_interval,
    linear_kernel,
    unit_vectors,
)
from pipelines.metrics.diversity import PairwiseDistance
from pipelines.metrics.estimates import mean_over_prompts, prompt_seed, ratio_over_prompts, written
from pipelines.metrics.inputs import check_widths, checked_features, checked_pictures
from pipelines.metrics.permutations import split_null
from pipelines.spaces import LatentSpace

NUM_TIMESTEPS = 8


@dataclass(frozen=True)
class DriftPoints:
    """Where noise predictions are compared: latents of the base model's images, with frozen noise and timesteps.

    prompts: one for each latent (N). latents: (N, C, h, w) on the denoiser's scale. timesteps: (N, T), one in each of T
    equal ranges of the base's schedule. alpha_bars: (N, T), the base's at these. seed: of the noise.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    timesteps: Tensor
    alpha_bars: Tensor
    seed: int

    def noise(self, image: int, place: int) -> Tensor:
        """Return the standard normal noise (C, h, w) of an image at one of its timesteps."""
        rng = torch.Generator().manual_seed(derive(self.seed, "drift-noise", image, place))
        return torch.randn(self.latents.shape[1:], generator=rng)


def drift_points(
    pictures: Mapping[str, np.ndarray], base: Components, *, num_timesteps: int = NUM_TIMESTEPS, seed: int = 0
) -> DriftPoints:
    """Return the points of the base model's pictures by prompt, float32 (N, H, W, 3) in [0, 1] each.

    About 16 pictures of each prompt. The autoencoder's mean is taken. They depend on pictures, base and seed alone: one
    set of points serves every tuned model. Raises DataError for no picture and pictures of different sizes.
    """
    if not pictures:
        raise DataError("noise-prediction drift", "found no prompt, expected at least one.")
    checked = {prompt: checked_pictures(each, f"base images of {prompt!r}") for prompt, each in pictures.items()}
    if len({each.shape[1:3] for each in checked.values()}) > 1:
        raise DataError("noise-prediction drift", "found base images of different sizes, expected one size.")
    space = LatentSpace(base.vae)
    latents = []
    with torch.no_grad():
        for each in checked.values():
            for picture in torch.from_numpy(each).permute(0, 3, 1, 2).split(1):  # so that none depends on the others
                mean, std = space.moments(picture * 2 - 1)
                latents.append(space.sample(mean, std, torch.zeros_like(mean)).cpu())
    prompts = tuple(prompt for prompt, each in checked.items() for _ in each)
    alphas = base.scheduler.alphas_cumprod.cpu()
    edges = [len(alphas) * place // num_timesteps for place in range(num_timesteps + 1)]
    timesteps = torch.tensor(
        [
            [
                int(generator(seed, "drift-timestep", image, place).integers(edges[place], edges[place + 1]))
                for place in range(num_timesteps)
            ]
            for image in range(len(prompts))
        ]
    )
    return DriftPoints(prompts, torch.cat(latents), timesteps, alphas[timesteps], seed)


def predicted_noise(
    components: Components,
    points: DriftPoints,
    *,
    batch_size: int = 32,
    progress: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """Return the noise that a model predicts at the points, float32 (N, T, C, h, w), for `noise_drift`.

    components: the base, or the same parts with adapters or embeddings attached to U-Net, text encoder and tokenizer:
    call it once before and once after attaching, or with adapters off and on. What predicts v or x0 is converted; a
    model with another noise schedule is asked at its timestep of the nearest alpha_bar. Modules are put into evaluation
    mode and back. progress: called with the number of latents of which all timesteps are done.
    Raises NonFiniteError for predictions that are not finite.
    """
    conditioner = TextConditioner(components.tokenizer, components.text_encoder)
    unet = components.unet
    own = components.scheduler.alphas_cumprod.cpu()
    places = [(image, place) for image in range(len(points.prompts)) for place in range(points.timesteps.shape[1])]
    predicted = torch.empty((len(places), *points.latents.shape[1:]))
    modes = {part: part.training for module in (unet, components.text_encoder) for part in module.modules()}
    try:
        unet.eval()
        components.text_encoder.eval()
        with torch.no_grad():
            states = {prompt: conditioner.encode([prompt])[0] for prompt in dict.fromkeys(points.prompts)}
            for start in range(0, len(places), batch_size):
                batch = places[start : start + batch_size]
                alpha_bar = torch.stack([points.alpha_bars[place] for place in batch])
                noise = torch.stack([points.noise(*place) for place in batch])
                spread = alpha_bar.view(-1, 1, 1, 1)
                noisy = spread.sqrt() * points.latents[[image for image, _ in batch]] + (1 - spread).sqrt() * noise
                found = unet(
                    noisy.to(unet.device, unet.dtype),
                    (own[None] - alpha_bar[:, None]).abs().argmin(1).to(unet.device),
                    encoder_hidden_states=torch.stack([states[points.prompts[image]] for image, _ in batch]).to(
                        unet.device, unet.dtype
                    ),
                    return_dict=False,
                )[0]
                said = READINGS[components.prediction_type](found.float().cpu(), noisy, alpha_bar)
                predicted[start : start + len(batch)] = said.eps
                timesteps = points.timesteps.shape[1]
                progress((start + len(batch)) // timesteps - start // timesteps)
    finally:
        for part, training in modes.items():
            part.training = training
    if not bool(predicted.isfinite().all()):
        raise NonFiniteError("noise-prediction drift", "the model predicts values that are not finite.")
    return predicted.view(*points.timesteps.shape, *points.latents.shape[1:]).numpy()


def noise_drift(tuned: np.ndarray, base: np.ndarray, points: DriftPoints, *, seed: int = 0) -> Estimate:
    """Return how far the tuned model's noise predictions are from the base's, over the base's own error.

    ED = E |eps_tuned - eps_base|^2 / E |eps_base - eps|^2, both summed over all draws of the points' prompts before
    dividing; 0 is no change at all. tuned, base: of `predicted_noise`. Resampled over images and prompts.
    Give the points of one ring, or take `DriftParts.of_prompts` for a part of them.
    """
    return drift_parts(tuned, base, points).estimate(tuple(dict.fromkeys(points.prompts)), seed=seed)


@dataclass(frozen=True)
class DriftParts:
    """The sums behind a drift, by prompt: for each image, over its timesteps, (N_p,) each.

    changes: |eps_tuned - eps_base|^2. errors: |eps_base - eps|^2.
    """

    changes: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]

    def estimate(self, prompts: Sequence[str], *, seed: int = 0) -> Estimate:
        """Return the drift over some of the prompts: a ring, or one of them."""
        return ratio_over_prompts(
            [self.changes[prompt] for prompt in prompts], [self.errors[prompt] for prompt in prompts], seed=seed
        )


def drift_parts(tuned: np.ndarray, base: np.ndarray, points: DriftPoints) -> DriftParts:
    """Return the sums of a drift by prompt, for estimates over rings or single prompts; arguments of `noise_drift`."""
    expected = (*points.timesteps.shape, *points.latents.shape[1:])
    if tuned.shape != expected or base.shape != expected:
        raise DataError(
            "noise-prediction drift",
            f"found predictions of shapes {tuned.shape} and {base.shape}, the points have {expected}.",
        )
    images, places = points.timesteps.shape
    noise = np.stack([np.stack([points.noise(i, p).numpy() for p in range(places)]) for i in range(images)])
    inner = tuple(range(1, tuned.ndim))
    changes = np.square(tuned.astype(np.float64) - base).sum(inner)
    errors = np.square(base.astype(np.float64) - noise).sum(inner)
    of_prompt = np.asarray(points.prompts)
    prompts = dict.fromkeys(points.prompts)
    return DriftParts(
        {prompt: changes[of_prompt == prompt] for prompt in prompts},
        {prompt: errors[of_prompt == prompt] for prompt in prompts},
    )


@dataclass(frozen=True)
class PairedDrift:
    """How far the tuned model's images are from the base's of the same prompt and seed.

    distance: mean feature distance, 0 is unchanged. relative: the same over the distance of base images of different
    seeds; at 1 the seed no longer says what is drawn. None where all base images of a prompt are one. distances: of
    every image, by prompt, in the order given: the page sorts by them.
    """

    distance: Estimate
    relative: Estimate | None
    distances: Mapping[str, np.ndarray]
    extractor_id: str

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "distance": written(self.distance),
            "relative": written(self.relative),
            "distances": {prompt: each.tolist() for prompt, each in self.distances.items()},
            "extractor": self.extractor_id,
        }


def paired_drift(
    tuned: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], *, extractor_id: str, seed: int = 0
) -> PairedDrift:
    """Return the distance of each tuned image to the base image of the same prompt and seed, over a ring's prompts.

    tuned, base: features (N, D) by prompt, row i of both drawn with one seed. Euclidean between unit vectors, 0 to 2.
    Raises DataError for other prompts, different numbers of images, and features that are not finite.
    """
    pairs = _paired(tuned, base)
    distances = {
        prompt: np.linalg.norm(unit_vectors(one) - unit_vectors(other), axis=1)
        for prompt, (one, other) in pairs.items()
    }
    usual = [
        np.full(len(other), float(PairwiseDistance.of(other)(np.ones((1, len(other))))[0]))
        for _, other in pairs.values()
        if len(other) > 1
    ]
    relative = None
    if len(usual) == len(pairs) and min(float(each[0]) for each in usual) > 1e-9:
        relative = ratio_over_prompts(list(distances.values()), usual, seed=seed)
    return PairedDrift(ratio_over_prompts(list(distances.values()), seed=seed), relative, distances, extractor_id)


@dataclass(frozen=True)
class PriorDistance:
    """How far the tuned model's images of a ring have gone from the base's, as sets.

    distance: squared centroid distance of the tuned images to base images of other seeds, mean over the prompts. floor:
    the same of base images, with draws of what chance alone gives. limit: the 95 % quantile of these, for
    `selection.onset`.
    """

    distance: Estimate
    floor: Estimate
    extractor_id: str

    @property
    def limit(self) -> float:
        """What base against base exceeds in one case of twenty."""
        return float(np.quantile(self.floor.draws, 0.95))

    @property
    def has_moved(self) -> bool:
        """Whether the lower end of the distance's interval is above the limit."""
        return self.distance.low > self.limit

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "distance": written(self.distance),
            "floor": written(self.floor),
            "limit": self.limit,
            "has_moved": self.has_moved,
            "extractor": self.extractor_id,
        }


def prior_distance(
    tuned: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    base_other: Mapping[str, np.ndarray],
    *,
    extractor_id: str,
    seed: int = 0,
) -> PriorDistance:
    """Return the distance of tuned to base images over a ring's prompts, and its floor of base against base.

    Features (N, D) by prompt: tuned and base with the same seeds, base_other the base with other seeds. Tuned images
    are held against those other seeds: with their own they are paired, and the distance of sets would come out too
    small by that.
    Raises DataError for other prompts, fewer than two images, and features that are not finite.
    """
    pairs = _paired(tuned, base)
    problems = [f"base images of other seeds lack {prompt!r}." for prompt in pairs if prompt not in base_other]
    if problems:
        raise DataError("images of the rings", *problems)
    distances, floors = [], []
    for place, (prompt, (one, other)) in enumerate(pairs.items()):
        away = checked_features(base_other[prompt], f"base images of {prompt!r} with other seeds", at_least=2)
        one, other = (checked_features(each, f"images of {prompt!r}", at_least=2) for each in (one, other))
        pair = Discrepancy.between(away, one, linear_kernel)
        distances.append(bootstrap_interval(pair, pair.sizes, seed=prompt_seed(seed, place)))
        floors.append(split_null(away, other, seed=prompt_seed(seed, place)))
    floor = Estimate(
        float(np.mean([each.value for each in floors])),
        np.mean([each.draws for each in floors], axis=0),
        min(each.num_images for each in floors),
    )
    return PriorDistance(mean_over_prompts(distances, seed=seed), floor, extractor_id)


def prior_likeness(prior: np.ndarray, concept: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean cosine of images of the prior class with real images of the concept: lower is better.

    PRES of N. Ruiz et al., "DreamBooth", CVPR 2023, section 4.3, there with DINO features; show the base model's
    beside it. prior: features (N, D) of images of random members of the class. concept: features (M, D), real.
    """
    prior, concept = checked_features(prior, "images of the prior class"), checked_features(concept, "concept images")
    check_widths(prior=prior, concept=concept)
    cosines = unit_vectors(prior) @ unit_vectors(concept).T

    def mean(in_prior: np.ndarray, in_concept: np.ndarray) -> np.ndarray:
        return np.asarray(((in_prior @ cosines) * in_concept).sum(1) / (in_prior.sum(1) * in_concept.sum(1)))

    return bootstrap_interval(mean, cosines.shape, seed=seed)


def _paired(
    tuned: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    problems = [f"found {prompt!r} of one model only." for prompt in sorted(set(tuned) ^ set(base))]
    problems += [
        f"{prompt!r}: found {len(tuned[prompt])} tuned and {len(base[prompt])} base images, expected as many."
        for prompt in tuned
        if prompt in base and len(tuned[prompt]) != len(base[prompt])
    ]
    if not tuned and not base:
        problems.append("found no prompt, expected at least one.")
    if problems:
        raise DataError("images of the rings", *problems)
    pairs = {}
    for prompt in tuned:
        one = checked_features(tuned[prompt], f"tuned images of {prompt!r}")
        other = checked_features(base[prompt], f"base images of {prompt!r}")
        check_widths(tuned=one, base=other)
        pairs[prompt] = one, other
    return pairs
