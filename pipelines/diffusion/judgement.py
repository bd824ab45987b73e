"""How near drawn pictures come to held-out ones, kind by kind, beside what training pictures come.

A kind is a label, or a caption of the data: slices of different planes are never judged together. Pictures are float32
(N, H, W, C) in [0, 1] throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.dataset import ConceptDataset
from data.errors import DataError
from pipelines.diffusion.drawing import Way, draw
from pipelines.diffusion.pictures import pictures, to_images
from pipelines.metrics.classifiers import NearestCentroid
from pipelines.metrics.distances import Discrepancy, Estimate, bootstrap_interval, linear_kernel
from pipelines.metrics.estimates import prompt_seed, written
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.slices import SliceComparison, compare_slices
from pipelines.pixel_model import PixelModel

FEWEST_OF_A_KIND = 10  # below, no verdict

ByKind = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class RealPictures:
    """Training and held-out pictures by kind, of the kinds that have two or more of both.

    um_per_px: None where it is unknown. left_out: the other kinds, which cannot be judged.
    """

    training: ByKind
    held_out: ByKind
    um_per_px: float | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: PixelModel, dataset: ConceptDataset, num_images: int) -> RealPictures:
        """Return at most num_images pictures of each side, as many of each kind as there are.

        Raises DataError for fewer than two pictures of a kind by num_images, and where no kind can be judged.
        """
        num_kinds = len(dataset.captions)
        if num_images - (num_kinds - 1) * -(-num_images // num_kinds) < 2:
            raise DataError(
                "pictures of a kind",
                f"found {num_images} for {num_kinds} kinds, expected two or more of each. Raise --num_images.",
            )
        training, held_out = (
            {kind: to_images(model, pixels) for kind, pixels in pictures(model, dataset, side, num_images).items()}
            for side in ("training", "held-out")
        )
        kinds = [kind for kind in training if min(len(training[kind]), len(held_out.get(kind, ()))) > 1]
        if not kinds:
            raise DataError(
                "pictures of the run",
                "found no kind with two or more training and held-out pictures, among which to judge. Train with more "
                "pictures of a kind, or a larger --held_out_fraction.",
            )
        return cls(
            {kind: training[kind] for kind in kinds},
            {kind: held_out[kind] for kind in kinds},
            model.um_per_px,
            tuple(kind for kind in dict.fromkeys([*training, *held_out]) if kind not in kinds),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that there are on both sides."""
        return tuple(self.training)

    def told(self, model: PixelModel) -> tuple[str, ...]:
        """Return the kinds that a model can be told to draw: those of its labels; none where it has no labels."""
        return tuple(kind for kind in self.kinds if kind in model.class_labels)


@dataclass(frozen=True, eq=False)
class Judgement:
    """Drawn pictures of one kind against held-out ones.

    distance: squared centroid distance in texture features. floor: that of training pictures. slices: the physical
    descriptors by name; None for pictures in colour.
    """

    distance: Estimate
    floor: Estimate
    slices: Mapping[str, SliceComparison] | None

    def to_json(self) -> dict[str, Any]:
        """Return all as JSON can hold them, with their 95 % intervals over pictures."""
        return {
            "texture": {"distance": written(self.distance), "floor": written(self.floor)},
            "slices": None if self.slices is None else {name: each.to_json() for name, each in self.slices.items()},
        }


@dataclass(frozen=True, eq=False)
class Overall:
    """The judgements of several kinds as one.

    distance: the mean over kinds. slice_ratio: the median over the descriptors of all kinds of distance over floor, 1
    where drawn slices are as near as training slices; None where nothing was measured. num_measured: of
    num_descriptors, those that drawn and real slices show.
    """

    distance: Estimate
    slice_ratio: Estimate | None
    num_measured: int
    num_descriptors: int


def draw_in_turn(
    model: PixelModel, way: Way, real: RealPictures, num_images: int, *, batch_size: int = 32
) -> tuple[np.ndarray, list[str]]:
    """Return pictures of the seeds 0 to num_images - 1, and the kind that was told for each: all kinds in turn.

    Nothing is told to a model without labels.
    """
    kinds = real.told(model)
    told = [kinds[seed % len(kinds)] for seed in range(num_images)] if kinds else []
    labels = [model.class_labels.index(kind) for kind in told] or None
    return to_images(model, draw(model, way, range(num_images), labels=labels, batch_size=batch_size)), told


def by_kind(drawn: np.ndarray, real: RealPictures, told: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], str]:
    """Return drawn pictures by kind, and in words how their kinds were found where that is not certain.

    told: the kind of each, of a model with labels. Without it a classifier of the training pictures names them, and
    kinds of which there are fewer than FEWEST_OF_A_KIND are left out.
    """
    if len(told):
        assert len(told) == len(drawn), "a kind for each picture"
        return {kind: drawn[np.array(told) == kind] for kind in dict.fromkeys(told)}, ""
    if len(real.kinds) == 1:
        return {real.kinds[0]: drawn}, ""
    classifier = NearestCentroid.fit(*_labelled(real.training))
    named = classifier.predict(texture_features(drawn))
    accuracy = float(classifier.accuracy(*_labelled(real.held_out)))
    shares = ", ".join(f"{kind} {np.mean(named == kind):.0%}" for kind in real.kinds)
    kept = {kind: drawn[named == kind] for kind in real.kinds if (named == kind).sum() >= FEWEST_OF_A_KIND}
    return kept, (
        f"The model has no labels: a classifier of training pictures (right for {accuracy:.0%} of the held-out ones) "
        f"names the kind of what it draws: {shares}"
    )


def judged(
    drawn: np.ndarray, training: np.ndarray, held_out: np.ndarray, um_per_px: float | None, *, seed: int = 0
) -> Judgement:
    """Return how near drawn pictures of one kind come to held-out ones. seed: of the resamples.

    Raises DataError for sets of fewer than two pictures.
    """
    sizes = {"drawn": len(drawn), "training": len(training), "held-out": len(held_out)}
    if min(sizes.values()) < 2:
        found = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise DataError("pictures of a kind", f"found {found}, expected two or more of each. Raise --num_images.")
    slices = None
    if drawn.shape[-1] == 1:
        slices = compare_slices(training[..., 0], held_out[..., 0], drawn[..., 0], um_per_px, seed)
    return Judgement(
        texture_distance(drawn, held_out, seed=seed), texture_distance(training, held_out, seed=seed), slices
    )


def judged_together(drawn: ByKind, real: RealPictures) -> Overall:
    """Return the judgements of all kinds of drawn pictures as one.

    The kinds are resampled independently, and each of them alike for every model: values of two models that drew from
    the same seeds and as many of each kind are paired draw by draw. The distance of `real.training` is the floor.
    """
    assert drawn, "pictures of one kind or more"
    found = [
        judged(
            drawn[kind],
            real.training[kind],
            real.held_out[kind],
            real.um_per_px,
            seed=prompt_seed(0, real.kinds.index(kind)),
        )
        for kind in drawn
    ]
    descriptors = [each for one in found for each in (one.slices or {}).values()]
    measured = [each for each in descriptors if each.ratio is not None]
    return Overall(
        distance=mean_of([one.distance for one in found]),
        slice_ratio=_median_ratio(measured) if measured else None,
        num_measured=len(measured),
        num_descriptors=len(descriptors),
    )


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of one estimate for each kind or model, draw by draw: these themselves are not resampled."""
    return Estimate(
        float(np.mean([each.value for each in estimates])),
        np.mean([each.draws for each in estimates], axis=0),
        min(each.num_images for each in estimates),
    )


def texture_distance(one: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the squared centroid distance of two sets in texture features, resampled over pictures."""
    pair = Discrepancy.between(texture_features(one), texture_features(other), linear_kernel)
    return bootstrap_interval(pair, pair.sizes, seed=seed)


def texture_features(pictures: np.ndarray) -> np.ndarray:
    """Return unit vectors (N, D) of texture statistics, of the grey alone where pictures have one channel."""
    return TextureStatistics.fitting(pictures.shape[1]).extract(in_colour(pictures))


def in_colour(pictures: np.ndarray) -> np.ndarray:
    """Return pictures (N, H, W, 3) of pictures (N, H, W, 1 or 3)."""
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def _labelled(group: ByKind) -> tuple[np.ndarray, np.ndarray]:
    names = np.repeat(list(group), [len(each) for each in group.values()])
    return texture_features(np.concatenate(list(group.values()))), names


def _median_ratio(measured: Sequence[SliceComparison]) -> Estimate:
    """The descriptors of one kind are resampled alike, so that a draw is one set of slices."""
    draws, sizes = [], []
    for each in measured:
        assert each.distance is not None
        assert each.floor is not None
        assert each.smallest_floor is not None
        draws.append(each.distance.draws / np.fmax(each.floor.draws, each.smallest_floor))
        sizes.append(min(each.distance.num_images, each.floor.num_images))
    value = float(np.median([each.ratio for each in measured if each.ratio is not None]))
    return Estimate(value, np.nanmedian(draws, axis=0), min(sizes))
