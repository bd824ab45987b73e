"""Poses of an image: mirrored, and turned by quarter turns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
