"""The images a model was trained on, ready to be searched for those that an image resembles anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from pipelines.metrics.correlation import FULL_PX, shrinking
from pipelines.metrics.estimates import finite
from pipelines.metrics.inputs import checked_pictures, luminance
from pipelines.metrics.places import Peak, Places, chunks, shrunk, unit
from pipelines.metrics.poses import FLIPS, Pose

COARSE_PX = 32
NUM_REFINED = 8
MANY_TRAINING_IMAGES = 50  # from here on, Carlini's calibration by the 50 nearest
_ALPHA = 0.5
_AT_ONCE = 64  # images whose transforms are kept together


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

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Match:
        """Return what `as_json` wrote."""
        row, column = entry["shift_px"]
        relative = float("nan") if entry["relative"] is None else entry["relative"]
        return cls(entry["image"], entry["training"], entry["ncc"], entry["pose"], (row, column), relative)


class TrainingImages:
    """Training images, whole, ready to be searched."""

    def __init__(
        self,
        pictures: Sequence[np.ndarray],
        image_shape: tuple[int, int] | None = None,
        *,
        poses: Sequence[Pose] = FLIPS,
    ) -> None:
        """pictures: each float32 (H, W, 3) in [0, 1], of any size from image_shape on; read once here, and again one by
        one where a window of them is asked for. image_shape: (rows, columns) of the images to search for, by default
        those of the first picture. poses: those in which an image is compared with them.

        Raises DataError for bad pictures, smaller ones, and for quarter turns of images that are not square.
        """
        if not len(pictures):
            raise DataError("training images", "found 0 images, expected at least 1. Draw or give more.")
        rows, columns = image_shape or pictures[0].shape[:2]
        if rows != columns and any(pose.quarter_turns % 2 for pose in poses):
            raise DataError(
                "training images", f"found {rows} x {columns} px, and only square images can be turned by 90 degrees."
            )
        self.pictures, self.poses, self.image_shape = pictures, tuple(poses), (rows, columns)
        self._coarse = shrinking(self.image_shape, COARSE_PX)
        self._fine = shrinking(self.image_shape, FULL_PX)
        self._greys: list[Tensor] = []
        self._shapes: list[tuple[int, int]] = []
        groups: dict[tuple[int, ...], list[int]] = {}
        small: list[Tensor] = []
        for place, picture in enumerate(pictures):
            grey = torch.from_numpy(luminance(self._checked(place, picture)))
            self._shapes.append((grey.shape[1], grey.shape[2]))
            self._greys.append(shrunk(grey, self._fine)[0])
            small.append(shrunk(grey, self._coarse)[0])
            groups.setdefault(tuple(small[-1].shape), []).append(place)
        self._groups = [(places, torch.stack([small[place] for place in places])) for places in groups.values()]

    def __len__(self) -> int:
        return len(self.pictures)

    def _checked(self, place: int, picture: np.ndarray) -> np.ndarray:
        checked = checked_pictures(picture[None], f"training image {place}")
        if any(side < of_image for side, of_image in zip(checked.shape[1:3], self.image_shape, strict=True)):
            raise DataError(
                f"training image {place}",
                f"found {checked.shape[1]} x {checked.shape[2]} px, expected at least those of the images to search "
                f"for, {self.image_shape[0]} x {self.image_shape[1]} px.",
            )
        return checked

    def nearest(self, pictures: np.ndarray, progress: Callable[[int], object] | None = None) -> list[Match]:
        """Return the most similar place of all training images for each picture (N, H, W, 3), in their order.

        All training images in all poses and at all places are compared at 32 px, the best 8 again at full size (192 px
        at most). relative: with 50 training images or more, the distance to the nearest over half the mean distance to
        the 50 nearest (N. Carlini et al., "Extracting training data from diffusion models", 2023, section 4.2); with
        fewer, over the mean distance to the others; NaN with one. Distances there are Euclidean between windows of mean
        0 and length 1 at their best place, at 32 px; far below the usual value means a copy. progress: called after
        each picture with 1.
        Raises DataError for bad pictures and another size than image_shape.
        """
        checked = checked_pictures(pictures, "images to search for")
        if checked.shape[1:3] != self.image_shape:
            rows, columns = checked.shape[1:3]
            raise DataError(
                "pictures",
                f"found {rows} x {columns} px, expected {self.image_shape[0]} x {self.image_shape[1]} px, those that "
                "the training images are searched for. Cut or shrink all of them alike.",
            )
        matches: list[Match] = []
        for part in chunks(len(checked), _AT_ONCE):
            grey = luminance(checked[part])
            posed = torch.stack([torch.from_numpy(pose.of(grey).copy()) for pose in self.poses], dim=1)
            for image, (poses, coarse) in enumerate(zip(posed, self._coarse_values(posed), strict=True)):
                matches.append(self._match(part.start + image, poses, coarse))
                if progress is not None:
                    progress(1)
        return matches

    def window(self, match: Match) -> np.ndarray:
        """Return the window (H, W, 3) of the training image nearest to the place that was found."""
        row, column = self.origin_px(match)
        rows, columns = self.image_shape
        return np.asarray(self.pictures[match.training][row : row + rows, column : column + columns])

    def origin_px(self, match: Match) -> tuple[int, int]:
        """Return the (row, column) of `window` in the training image."""
        row, column = (
            int(np.clip(-step, 0, side - of_image))
            for step, side, of_image in zip(match.shift_px, self._shapes[match.training], self.image_shape, strict=True)
        )
        return row, column

    def beyond_px(self, match: Match) -> tuple[int, int]:
        """Return the rows and columns by which the content of `window` is moved in the image: 0 within the picture."""
        row, column = self.origin_px(match)
        return match.shift_px[0] + row, match.shift_px[1] + column

    def difference(self, picture: np.ndarray, match: Match) -> np.ndarray:
        """Return how far a picture (H, W, 3) is from its match, moved and mirrored as it was found, in the same shape.

        0 where the two are the same, 1 where they are opposite, and where the training image does not reach.
        """
        training = self.pictures[match.training]
        (rows, columns), (down, right) = training.shape[:2], match.shift_px
        moved = np.full_like(picture, np.nan)
        into = moved[max(0, down) : rows + down, max(0, right) : columns + right]
        into[:] = training[max(0, -down) :, max(0, -right) :][: into.shape[0], : into.shape[1]]
        pose = next(pose for pose in self.poses if pose.name == match.pose)
        return np.nan_to_num(np.abs(picture - pose.undone(moved[None])[0]), nan=1.0)

    def _coarse_values(self, posed: Tensor) -> np.ndarray:
        """posed: (N, poses, H, W). Returns the greatest correlation with each training image, (N, poses, M)."""
        small = unit(shrunk(posed.flatten(0, 1), self._coarse))
        found = np.empty((len(small), len(self)), np.float32)
        for places, greys in self._groups:
            for part in chunks(len(greys)):
                group = Places.of(greys[part], (small.shape[1], small.shape[2]))
                for number, spectrum in enumerate(group.spectra_of(small)):
                    found[number, places[part]] = group.values(spectrum).amax((1, 2)).numpy()
        return found.reshape(*posed.shape[:2], len(self))

    def _match(self, number: int, posed: Tensor, coarse: np.ndarray) -> Match:
        """posed: (poses, H, W) of the image at this place. coarse: (poses, M), its values."""
        candidates = np.argsort(-coarse, axis=None, kind="stable")[:NUM_REFINED]
        in_pose, training = np.unravel_index(candidates, coarse.shape)
        fine = unit(shrunk(posed, self._fine))
        peaks = [self._refined(fine[pose], int(place)) for pose, place in zip(in_pose, training, strict=True)]
        # the first at a tie: a symmetric image is like its mirror image, and is then told as it is
        best = max(range(len(peaks)), key=lambda place: (round(peaks[place].ncc, 5), -in_pose[place]))
        nearest = int(training[best])
        return Match(
            number,
            nearest,
            peaks[best].ncc,
            self.poses[in_pose[best]].name,
            peaks[best].shift_px,
            _relative(coarse.max(0), nearest),
        )

    def _refined(self, image: Tensor, training: int) -> Peak:
        places = Places.of(self._greys[training][None], (image.shape[0], image.shape[1]))
        return places.best(places.spectra_of(image), self._fine)[0]


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
