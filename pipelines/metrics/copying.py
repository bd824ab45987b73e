"""Whether generated images are copies of training images, also moved and mirrored ones.

Texture statistics forget positions and cannot tell; the comparer here is spatial: the greatest normalised correlation
of two images over all shifts, and over mirrored poses. A periodic texture resembles itself at many places, so nothing
is said without the same measure on real images that were held out of training, from another part of the specimen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from pipelines.metrics.correlation import FULL_PX, Scale, chunks
from pipelines.metrics.distances import Estimate, bootstrap_interval
from pipelines.metrics.estimates import finite, share, written
from pipelines.metrics.inputs import check_sizes, checked_pictures, luminance

COARSE_PX = 32
NUM_REFINED = 8
FLAGGED_QUANTILE = 0.05
MANY_TRAINING_IMAGES = 50  # from here on, Carlini's calibration by the 50 nearest
_ALPHA = 0.5


@dataclass(frozen=True)
class Pose:
    """How an image is turned before it is compared: by quarter turns, then mirrored left to right."""

    name: str
    quarter_turns: int
    mirrored: bool

    def of(self, images: np.ndarray) -> np.ndarray:
        """Return images (N, H, W) in this pose."""
        turned = np.rot90(images, self.quarter_turns, axes=(1, 2))
        return turned[:, :, ::-1] if self.mirrored else turned

    def undone(self, images: np.ndarray) -> np.ndarray:
        """Return posed images (N, H, W, ...) as they were before."""
        turned = images[:, :, ::-1] if self.mirrored else images
        return np.rot90(turned, -self.quarter_turns, axes=(1, 2))


AS_IT_IS = Pose("as it is", 0, False)
FLIPS = (
    AS_IT_IS,
    Pose("mirrored left to right", 0, True),
    Pose("mirrored top to bottom", 2, True),
    Pose("turned by 180 degrees", 2, False),
)
# square images only
FLIPS_AND_TURNS = (
    *FLIPS,
    Pose("turned by 90 degrees", 1, False),
    Pose("turned by 270 degrees", 3, False),
    Pose("turned by 90 degrees and mirrored", 1, True),
    Pose("turned by 270 degrees and mirrored", 3, True),
)


@dataclass(frozen=True)
class Match:
    """The training image that is most like an image.

    image, training: their places in the sets. ncc: the correlation, at most 1. pose: in which the image is compared.
    shift_px: rows and columns by which the training image's content is moved in the posed image. relative: distance to
    it over that to the others; see `TrainingImages.nearest`.
    """

    image: int
    training: int
    ncc: float
    pose: str
    shift_px: tuple[int, int]
    relative: float

    @property
    def distance(self) -> float:
        """1 - ncc."""
        return 1 - self.ncc

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "image": self.image,
            "training": self.training,
            "ncc": self.ncc,
            "pose": self.pose,
            "shift_px": list(self.shift_px),
            "relative": finite(self.relative),
        }


class TrainingImages:
    """The images a model was trained on, ready to be searched."""

    def __init__(self, pictures: np.ndarray, *, poses: Sequence[Pose] = FLIPS) -> None:
        """pictures: float32 (M, H, W, 3) in [0, 1]. poses: those in which an image is compared with them.

        Raises DataError for bad pictures, and for quarter turns of images that are not square.
        """
        self.pictures = checked_pictures(pictures, "training images")
        rows, columns = self.pictures.shape[1:3]
        if rows != columns and any(pose.quarter_turns % 2 for pose in poses):
            raise DataError(
                "training images", f"found {rows} x {columns} px, and only square images can be turned by 90 degrees."
            )
        self.poses = tuple(poses)
        grey = luminance(self.pictures)
        self._coarse, self._fine = Scale.fitting(grey, COARSE_PX), Scale.fitting(grey, FULL_PX)
        self._coarse_spectra = np.conj(self._coarse.spectra(grey))
        self._fine_images = self._fine.shrunk(grey)

    def __len__(self) -> int:
        return len(self.pictures)

    def nearest(self, pictures: np.ndarray, progress: Callable[[int], object] | None = None) -> list[Match]:
        """Return the most similar training image of each picture (N, H, W, 3), in the order of the pictures.

        All training images in all poses are compared at 32 px, the best 8 again at full size (192 px at most).
        relative: with 50 training images or more, the distance to the nearest over half the mean distance to the 50
        nearest (N. Carlini et al., "Extracting training data from diffusion models", 2023, section 4.2); with fewer,
        over the mean distance to the others; NaN with one. Distances there are Euclidean between images of mean 0 and
        length 1 at their best shift, at 32 px; far below the usual value means a copy. progress: called after each
        picture with 1.
        Raises DataError for bad pictures and another size than that of the training images.
        """
        checked = checked_pictures(pictures, "images to search for")
        check_sizes(images=checked, training_images=self.pictures)
        grey = luminance(checked)
        matches = []
        for number, image in enumerate(grey):
            matches.append(self._match(number, image))
            if progress is not None:
                progress(1)
        return matches

    def difference(self, picture: np.ndarray, match: Match) -> np.ndarray:
        """Return how far a picture (H, W, 3) is from its match, moved and mirrored as it was found, in the same shape.

        0 where the two are the same, 1 where they are opposite, and where the moved training image does not reach.
        """
        rows, columns = self.pictures.shape[1:3]
        down, right = match.shift_px
        moved = np.full_like(picture, np.nan)
        moved[max(0, down) : rows + down, max(0, right) : columns + right] = self.pictures[
            match.training, max(0, -down) : rows - down, max(0, -right) : columns - right
        ]
        pose = next(pose for pose in self.poses if pose.name == match.pose)
        return np.nan_to_num(np.abs(picture - pose.undone(moved[None])[0]), nan=1.0)

    def _match(self, number: int, grey: np.ndarray) -> Match:
        """grey: (H, W) of the image at this place."""
        poses = np.stack([pose.of(grey[None])[0] for pose in self.poses])
        coarse = np.stack([self._coarse_correlations(spectrum) for spectrum in self._coarse.spectra(poses)])
        candidates = np.argsort(-coarse, axis=None, kind="stable")[:NUM_REFINED]
        in_pose, training = np.unravel_index(candidates, coarse.shape)
        fine = np.conj(self._fine.spectra_of_shrunk(self._fine_images[training]))
        peaks = self._fine.peaks(self._fine.spectra(poses)[in_pose] * fine)
        # the first at a tie: a symmetric image is like its mirror image, and is then told as it is
        best = max(range(len(peaks)), key=lambda place: (round(peaks[place][0], 5), -in_pose[place]))
        ncc, shift_px = peaks[best]
        nearest = int(training[best])
        relative = _relative(coarse.max(0), nearest)
        return Match(number, nearest, ncc, self.poses[in_pose[best]].name, shift_px, relative)

    def _coarse_correlations(self, spectrum: np.ndarray) -> np.ndarray:
        """The greatest correlation of one posed image with every training image, (M,)."""
        parts = [self._coarse.maps(spectrum * self._coarse_spectra[part]).max((1, 2)) for part in chunks(len(self))]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Copying:
    """How near generated images are to training images, against held-out real images.

    auc: how often a generated image is nearer to training than a held-out one: 0.5 no copying, 1 copying; None without
    held-out images. threshold: the distance that 5 % of held-out images fall below. flagged_share: generated images
    below it, 5 % expected. flagged: their places. matches, held_out: the nearest training image of each.
    """

    auc: Estimate | None
    threshold: float | None
    flagged_share: Estimate | None
    flagged: tuple[int, ...]
    matches: tuple[Match, ...]
    held_out: tuple[Match, ...]
    num_training: int
    comparer_id: str

    @property
    def worst(self) -> list[Match]:
        """The matches of the generated images, the most similar first."""
        return sorted(self.matches, key=lambda match: -match.ncc)

    @property
    def verdict(self) -> str:
        """What may be said, in words."""
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
            "threshold_distance": self.threshold,
            "flagged_share": written(self.flagged_share),
            "flagged": list(self.flagged),
            "matches": [match.as_json() for match in self.worst],
            "held_out_ncc": [match.ncc for match in self.held_out],
            "counts": {"generated": len(self.matches), "held_out": len(self.held_out), "training": self.num_training},
            "comparer": self.comparer_id,
            "verdict": self.verdict,
        }


def copying(generated: np.ndarray, training: TrainingImages, held_out: np.ndarray | None, *, seed: int = 0) -> Copying:
    """Return how near generated pictures are to the training images, calibrated on held-out real pictures.

    generated, held_out: float32 (N, H, W, 3) in [0, 1], of the training images' size. held_out: from another block
    than the training images; None or empty where there are none, and then nothing is calibrated. One index of training
    images serves all models and held-out images of a run.
    Raises DataError for bad pictures and other sizes.
    """
    return calibrated(
        training.nearest(generated),
        [] if held_out is None or not len(held_out) else training.nearest(held_out),
        num_training=len(training),
        comparer_id=comparer_id(training),
        seed=seed,
    )


def calibrated(
    matches: Sequence[Match], held_out: Sequence[Match], *, num_training: int, comparer_id: str, seed: int = 0
) -> Copying:
    """Return the result of `copying` for matches that are known already, such as those of a cache."""
    if not matches:
        raise DataError("copying", "found no generated image, expected at least one.")
    auc = threshold = flagged_share = None
    flagged: tuple[int, ...] = ()
    if held_out:
        near = np.array([match.distance for match in matches])
        usual = np.array([match.distance for match in held_out])
        auc = copy_auc(near, usual, seed=seed)
        threshold = float(np.quantile(usual, FLAGGED_QUANTILE))
        below = near < threshold
        flagged = tuple(int(place) for place in np.flatnonzero(below))
        flagged_share = share(below, seed=seed, purpose="flagged")
    return Copying(auc, threshold, flagged_share, flagged, tuple(matches), tuple(held_out), num_training, comparer_id)


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
    rows, columns = training.pictures.shape[1:3]
    return f"ncc-v1-{rows}x{columns}px-{len(training.poses)}poses"


def windows(picture: np.ndarray, size_px: int, stride_px: int) -> np.ndarray:
    """Return overlapping squares of a picture (H, W, 3), (N, size_px, size_px, 3), that cover it, row by row.

    For training images larger than the generated ones, which may copy any part of them. stride_px: a copy between two
    windows loses the overlap of half of it; half of size_px or less is of use.
    Raises DataError for a picture smaller than size_px.
    """
    assert 1 <= stride_px <= size_px, f"found a stride of {stride_px} px for windows of {size_px} px"
    rows, columns = picture.shape[:2]
    if min(rows, columns) < size_px:
        raise DataError("training images", f"found {rows} x {columns} px, expected sides of at least {size_px} px.")
    starts = [
        np.linspace(0, side - size_px, -(-(side - size_px) // stride_px) + 1).round().astype(int)
        for side in (rows, columns)
    ]
    return np.stack([picture[r : r + size_px, c : c + size_px] for r in starts[0] for c in starts[1]])


def _relative(ncc: np.ndarray, nearest: int) -> float:
    """ncc: (M,), with every training image at 32 px. nearest: the place of the one that was chosen."""
    distances = np.sqrt(np.clip(2 - 2 * ncc.astype(np.float64), 0, None))
    if len(distances) < 2:
        return float("nan")
    if len(distances) >= MANY_TRAINING_IMAGES:
        usual = _ALPHA * float(np.sort(distances)[:MANY_TRAINING_IMAGES].mean())
    else:
        usual = float(np.delete(distances, nearest).mean())
    return float(distances[nearest]) / usual if usual > 0 else float("nan")
