"""The seam between the training loop and what is trained.

The loop asks a method four questions: which parameters, what is the loss of this batch, is there something to do after
the step, how is it exported. A method is data: it says which parts are put together, and does nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.dataset import Dataset, Sample


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-step, on the device.

    positions: the key of all draws of a sample: its place in the run, p = 0, 1, 2, ...; -1 - p for the prior image that
    accompanies the sample at p. pixels: (B, C, H, W) float32 in [-1, 1]. is_prior: (B,) bool.
    """

    positions: tuple[int, ...]
    pixels: Tensor
    captions: tuple[str, ...]
    is_prior: Tensor
    sources: tuple[str, ...]

    @staticmethod
    def collate(groups: Sequence[Sequence[tuple[int, Sample]]]) -> Batch:
        """Return the batch of samples that come in groups: an image, or an image with the prior's beside it."""
        positions, samples = zip(*(pair for group in groups for pair in group), strict=True)
        return Batch(
            positions=tuple(positions),
            pixels=torch.stack([torch.from_numpy(sample.pixels) for sample in samples]),
            captions=tuple(sample.caption for sample in samples),
            is_prior=torch.tensor([sample.is_prior for sample in samples]),
            sources=tuple(sample.source for sample in samples),
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(self.positions, self.pixels.to(device), self.captions, self.is_prior.to(device), self.sources)


class Objective(Protocol):
    """What a batch is judged by. Every draw is keyed by the batch's positions."""

    def losses(self, batch: Batch) -> Tensor:
        """Return the loss of each sample, float32 (B,), with every weight applied."""
        ...


class Trainable(Protocol):
    """A set of parameters with a way to keep, restore and export them. All of them are float32 at least."""

    name: str
    module: nn.Module

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters under names that are the same in every run with the same settings."""
        ...

    def after_step(self, step: int) -> None:
        """Do what belongs after the optimiser's step number `step` (counted from 1)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that a checkpoint must hold for this trainable, the optimizer's apart."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; a missing or unexpected tensor is an OutputError."""
        ...


@dataclass(frozen=True)
class Method:
    """What one training run is made of.

    export: writes the artefact in diffusers' format into a folder, checks it, and returns the lines of text that say
    how to use it. prepare: makes ready what the samples at positions of the run need, before their steps, and returns
    what it did in numbers, by name. preview: draws the present state of the model for the file name it is given,
    without changing anything. validate: measures the present state as numbers with names. prior: images of the class
    that is to be preserved, one beside each image of the dataset. learning_rate_scale: factor on the run's learning
    rate for a trainable's name, 1 where absent. spans: the share of the run, (from, to) in [0, 1], in which a trainable
    of this name is trained; all of it where absent. notes: what is to be told before the training begins, in lines.
    """

    name: str
    dataset: Dataset
    objective: Objective
    trainables: tuple[Trainable, ...]
    export: Callable[[Path], list[str]]
    manifest: Mapping[str, Any]
    prepare: Callable[[Sequence[int]], Mapping[str, int]] | None = None
    preview: Callable[[Path], None] | None = None
    validate: Callable[[], dict[str, float]] | None = None
    prior: Dataset | None = None
    learning_rate_scale: Mapping[str, float] = field(default_factory=dict)
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
