"""What one look at a picture says of it: size, brightness, colour, clipping, and a small likeness of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

NUM_BINS = 32
LIKENESS_PX = 64
_SAMPLE_PIXELS = 65_536  # of a picture, on a regular grid, are counted in its histograms
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """A picture that was decoded without complaint.

    sha256: of its file. shape_px: upright, (row, column). brightness, saturation: how many sampled pixels lie in each
    of NUM_BINS equal bins of [0, 1]. clipped_share: of the pixels that are pure black or pure white. contrast:
    standard deviation of the brightness, 0 to 0.5. likeness: brightness squashed to LIKENESS_PX squared, as int8 about
    the mean; all zeros where the brightness does not vary.
    """

    sha256: str
    shape_px: tuple[int, int]
    brightness: tuple[int, ...]
    saturation: tuple[int, ...]
    clipped_share: float
    contrast: float
    likeness: np.ndarray

    @property
    def mean_saturation(self) -> float:
        """The mean saturation (HSV) to the width of a bin; 0 for a grey picture."""
        counts = np.array(self.saturation)
        return float(counts @ np.arange(NUM_BINS) / counts.sum() / (NUM_BINS - 1))

    def stored(self) -> tuple[str, bytes]:
        """Return the facts as a line of JSON and the bytes of the likeness."""
        values = {name: value for name, value in vars(self).items() if name != "likeness"}
        return json.dumps(values), self.likeness.tobytes()

    @staticmethod
    def from_stored(line: str, likeness: bytes) -> ImageFacts:
        """Return the facts that `stored` wrote; raise ValueError, KeyError or TypeError for anything else."""
        values: dict[str, Any] = json.loads(line)
        rows, columns = values["shape_px"]
        return ImageFacts(
            sha256=values["sha256"],
            shape_px=(int(rows), int(columns)),
            brightness=tuple(values["brightness"]),
            saturation=tuple(values["saturation"]),
            clipped_share=float(values["clipped_share"]),
            contrast=float(values["contrast"]),
            likeness=np.frombuffer(likeness, np.int8).reshape(LIKENESS_PX, LIKENESS_PX),
        )


def image_facts(content: bytes, pixels: np.ndarray) -> ImageFacts:
    """Return what is to be known of a picture. content: of its file. pixels: float32 (row, column, 3) in [0, 1]."""
    rows, columns = pixels.shape[:2]
    stride = max(1, int(np.ceil(np.sqrt(rows * columns / _SAMPLE_PIXELS))))
    sample = pixels[::stride, ::stride].reshape(-1, 3)
    largest, smallest = sample.max(axis=1), sample.min(axis=1)
    saturation = np.divide(largest - smallest, largest, out=np.zeros_like(largest), where=largest > 0)
    brightness = sample @ _LUMA
    return ImageFacts(
        sha256=hashlib.sha256(content).hexdigest(),
        shape_px=(rows, columns),
        brightness=_histogram(brightness),
        saturation=_histogram(saturation),
        clipped_share=float(np.mean((smallest >= 1) | (largest <= 0))),
        contrast=float(brightness.std()),
        likeness=_likeness(pixels @ _LUMA),
    )


def _histogram(values: np.ndarray) -> tuple[int, ...]:
    counts = np.bincount(np.minimum((values * NUM_BINS).astype(int), NUM_BINS - 1), minlength=NUM_BINS)
    return tuple(int(count) for count in counts)


def _likeness(brightness: np.ndarray) -> np.ndarray:
    """Return a picture squashed to a small square, its deviations from the mean as -127 to 127."""
    small = Image.fromarray(brightness, "F").resize((LIKENESS_PX, LIKENESS_PX), Image.Resampling.BOX)
    deviation = np.asarray(small)
    deviation = deviation - deviation.mean()
    largest = np.abs(deviation).max()
    if largest < 0.5 / 255:  # less than half a grey level is no picture
        return np.zeros((LIKENESS_PX, LIKENESS_PX), np.int8)
    return np.rint(deviation * (127 / largest)).astype(np.int8)
