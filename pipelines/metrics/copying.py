"""Whether generated images are copies of training images, also moved and mirrored ones.

Texture statistics forget positions and cannot tell; the comparer here is spatial: the greatest normalised correlation
of two images over all shifts, and over mirrored poses. A periodic texture resembles itself at many places, so nothing
is said without the same measure on real images that were held out of training, from another part of the specimen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.errors import DataError
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import prompt_seed, share, written
from pipelines.metrics.training_images import Match, TrainingImages

FLAGGED_QUANTILE = 0.05
FEWEST_OF_A_GROUP = 5  # with fewer of one caption, its images alone decide whether there is a verdict


class Group(NamedTuple):
    """The matches of generated images of one caption, and of the held-out real images that calibrate them."""

    generated: Sequence[Match]
    held_out: Sequence[Match]


@dataclass(frozen=True)
class Copying:
    """How near generated images are to training images, against held-out real images of the same caption.

    auc: how often a generated image is nearer to training than a held-out one of its caption: 0.5 no copying, 1
    copying; the mean over captions; None without held-out images. flagged: places of the generated images that are
    nearer than 95 % of the held-out images of their caption. flagged_share: their share, 5 % expected. matches,
    held_out: the nearest training image of each. num_uncalibrated: generated images of captions without held-out ones.
    """

    auc: Estimate | None
    flagged_share: Estimate | None
    flagged: tuple[int, ...]
    matches: tuple[Match, ...]
    held_out: tuple[Match, ...]
    num_uncalibrated: int
    num_training: int
    comparer_id: str

    @property
    def worst(self) -> list[Match]:
        """The matches of the generated images, the most similar first."""
        return sorted(self.matches, key=lambda match: -match.ncc)

    @property
    def verdict(self) -> str:
        """What may be said, in words."""
        if self.auc is not None and self.num_uncalibrated:
            return f"{self._calibrated_verdict}; {self.num_uncalibrated} images have no held-out ones to compare with"
        return self._calibrated_verdict

    @property
    def _calibrated_verdict(self) -> str:
        if self.auc is None:
            return "not calibrated: there are no held-out images, so look at the pairs"
        if self.auc.verdict == "none":
            return "no verdict: fewer than 10 generated or held-out images"
        if self.auc.low > 0.5:
            return "nearer to the training images than held-out real images are"
        if self.auc.high < 0.5:
            return "farther from the training images than held-out real images are"
        return "inconclusive: as near to the training images as held-out real images may be"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it; `matches` are sorted, the most similar first."""
        return {
            "auc": written(self.auc),
            "flagged_share": written(self.flagged_share),
            "flagged": list(self.flagged),
            "matches": [match.as_json() for match in self.worst],
            "held_out_ncc": [match.ncc for match in self.held_out],
            "counts": {"generated": len(self.matches), "held_out": len(self.held_out), "training": self.num_training},
            "comparer": self.comparer_id,
            "verdict": self.verdict,
        }


def copying(generated: np.ndarray, training: TrainingImages, held_out: np.ndarray | None, *, seed: int = 0) -> Copying:
    """Return how near generated pictures of one caption are to the training images, calibrated on held-out real ones.

    generated, held_out: float32 (N, H, W, 3) in [0, 1], of the size that is searched for. held_out: from another block
    than the training images; None or empty where there are none, and then nothing is calibrated. One index of training
    images serves all models and held-out images of a run.
    Raises DataError for bad pictures and other sizes.
    """
    usual = [] if held_out is None or not len(held_out) else training.nearest(held_out)
    group = Group(training.nearest(generated), usual)
    return calibrated([group], num_training=len(training), comparer_id=comparer_id(training), seed=seed)


def calibrated(groups: Sequence[Group], *, num_training: int, comparer_id: str, seed: int = 0) -> Copying:
    """Return the result of `copying` for the matches of one caption or more, which are known already.

    Each caption is held against its own held-out images, as captions differ in how like themselves their images are.
    """
    asked = [group for group in groups if group.generated]
    if not asked:
        raise DataError("copying", "found no generated image, expected at least one.")
    known = [group for group in asked if group.held_out]
    below = [(match, match.distance < _threshold(group)) for group in known for match in group.generated]
    return Copying(
        _mean_auc(known, seed) if known else None,
        share(np.array([near for _, near in below]), seed=seed, purpose="flagged") if known else None,
        tuple(match.image for match, near in below if near),
        tuple(match for group in asked for match in group.generated),
        tuple(match for group in asked for match in group.held_out),
        sum(len(group.generated) for group in asked if not group.held_out),
        num_training,
        comparer_id,
    )


def _threshold(group: Group) -> float:
    """The distance that 5 % of a caption's held-out images fall below."""
    return float(np.quantile([match.distance for match in group.held_out], FLAGGED_QUANTILE))


def _mean_auc(groups: Sequence[Group], seed: int) -> Estimate:
    """The captions are all that there are, and are not resampled; their images are, caption by caption."""
    found = [
        copy_auc(*(np.array([match.distance for match in side]) for side in group), seed=prompt_seed(seed, place))
        for place, group in enumerate(groups)
    ]
    smallest = min(each.num_images for each in found)
    together = min(sum(len(group.generated) for group in groups), sum(len(group.held_out) for group in groups))
    return Estimate(
        float(np.mean([each.value for each in found])),
        np.mean([each.draws for each in found], axis=0),
        together if smallest >= FEWEST_OF_A_GROUP else smallest,
    )


def searched_in(num_searched: int, num_training: int) -> str:
    """Return in words in how many of the training images copies were searched."""
    part = (
        f"all {num_training}" if num_searched == num_training else f"{num_searched} of {num_training}, evenly spaced,"
    )
    return f"copies were searched in {part} training images, at every place of each"


def copy_auc(generated: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return P(distance of a generated image < distance of a held-out one), ties counting half.

    generated: (N,), held_out: (M,), distances to the nearest training image. The statistic of Mann and Whitney 1947
    over N M; resampled over both sets.
    """
    nearer = (generated[:, None] < held_out) + 0.5 * (generated[:, None] == held_out)

    def auc(in_generated: np.ndarray, in_held_out: np.ndarray) -> np.ndarray:
        pairs = in_generated.sum(1) * in_held_out.sum(1)
        return np.asarray(((in_generated @ nearer) * in_held_out).sum(1) / pairs)

    return bootstrap_interval(auc, nearer.shape, seed=seed)


def comparer_id(training: TrainingImages) -> str:
    """Return the name to keep beside every number: only numbers of the same name may be compared."""
    rows, columns = training.image_shape
    return f"ncc-v2-{rows}x{columns}px-{len(training.poses)}poses"
