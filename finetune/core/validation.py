"""The denoising loss on held-out images, with the same noise and the same timesteps every time it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import DataError
from data.randomness import generator
from finetune.core import draws
from finetune.core.objective import NoiseObjective, noise_losses
from pipelines.sampling import evaluating

TOTAL = "validation_loss"  # the bins' names begin with it, too


@dataclass(frozen=True)
class _Sample:
    """One measured point: an image, by its place in the selection, at one timestep of a bin."""

    image: int
    bin: int
    timestep: int


class ValidationLoss:
    """The plain mean squared error of a noise objective's denoiser on fixed points, and on each range of timesteps.

    What a run's own loss hides in the scatter of its draws, this shows: every image is judged at one timestep in each
    of num_bins equal ranges of the noise schedule, and timesteps and noise depend on (seed, image, range) alone. Runs
    with the same seed, and the same images under as many captions, are judged on the same points, whatever their
    method, wording and batch size. The autoencoder's mean is taken instead of a draw; min-SNR weight, offset noise and
    input perturbation are left out.
    """

    def __init__(
        self,
        objective: NoiseObjective,
        images: Mapping[str, np.ndarray],
        *,
        seed: int,
        num_images: int = 16,
        num_bins: int = 4,
        batch_size: int,
        modules: Sequence[nn.Module] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """images: those of each caption, (N, 3, H, W) float32 in [-1, 1]; num_images of them are taken, as evenly over
        the captions and over each caption's images as their numbers allow, or all where there are fewer. modules:
        what the objective calls; they are in evaluation mode while it is measured. device: where pixels are put.

        Raises DataError where there is no image.
        """
        num_timesteps = len(objective.alphas_cumprod)
        assert 1 <= num_bins <= num_timesteps
        assert num_images >= 1
        assert batch_size >= 1
        chosen = _selection({caption: len(pixels) for caption, pixels in images.items()}, num_images)
        if not chosen:
            raise DataError("held-out images", "found none, and the validation loss needs at least one.")
        self._objective, self._seed, self._batch_size = objective, seed, batch_size
        self._modules, self._device = tuple(modules), device
        self._captions = tuple(caption for caption, _ in chosen)
        self.pixels = torch.from_numpy(np.stack([images[caption][index] for caption, index in chosen]))
        edges = [num_timesteps * k // num_bins for k in range(num_bins + 1)]
        self._names = [f"{TOTAL}_t{first}_{end - 1}" for first, end in pairwise(edges)]
        self._samples = [
            _Sample(image, k, int(generator(seed, "validation-timestep", image, k).integers(edges[k], edges[k + 1])))
            for image in range(len(chosen))
            for k in range(num_bins)
        ]

    def measure(self) -> dict[str, float]:
        """Return {"validation_loss": mean, "validation_loss_t0_249": mean of the range, ...}, low timesteps first.

        Leaves weights, gradients, every module's mode and the global generators as they were. Call it under the
        autocast that the run trains under: frozen parts keep what they encode here for the run.
        """
        parts = [self._samples[k : k + self._batch_size] for k in range(0, len(self._samples), self._batch_size)]
        # not inference_mode: what is cached in it could not enter a graph later
        with evaluating(*self._modules), torch.no_grad():
            losses = torch.cat([self._losses(part).double().cpu() for part in parts])
        of_bin = losses.view(-1, len(self._names)).mean(0)
        return {TOTAL: float(losses.mean()), **dict(zip(self._names, of_bin.tolist(), strict=True))}

    def _losses(self, samples: Sequence[_Sample]) -> Tensor:
        objective = self._objective
        mean, std = objective.space.moments(self.pixels[[sample.image for sample in samples]].to(self._device))
        shape = tuple(mean.shape[1:])
        noise = [draws.normal(self._seed, f"validation-noise-{s.bin}", [s.image], shape) for s in samples]
        return noise_losses(
            objective.denoise,
            x0=objective.space.sample(mean, std, torch.zeros_like(mean)),
            noise=torch.cat(noise).to(mean.device),
            timesteps=torch.tensor([sample.timestep for sample in samples], device=mean.device),
            conditioning=objective.conditioner.encode(tuple(self._captions[sample.image] for sample in samples)),
            alphas_cumprod=objective.alphas_cumprod.to(mean.device),
            prediction_type=objective.prediction_type,
        )


def _selection(counts: Mapping[str, int], num_images: int) -> list[tuple[str, int]]:
    """Return (caption, index) of the images taken, caption after caption, evenly spaced within each."""
    shares = dict.fromkeys(counts, 0)
    left = min(num_images, sum(counts.values()))
    while left:
        takers = [caption for caption in counts if shares[caption] < counts[caption]]
        takers = [takers[index] for index in _evenly(len(takers), min(left, len(takers)))]
        for caption in takers:
            shares[caption] += 1
        left -= len(takers)
    return [(caption, index) for caption, share in shares.items() for index in _evenly(counts[caption], share)]


def _evenly(length: int, count: int) -> list[int]:
    """Return `count` different indices below length, each in the middle of an equal part of it."""
    return [(2 * k + 1) * length // (2 * count) for k in range(count)]
