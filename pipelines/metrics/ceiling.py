"""The ceiling that an autoencoder sets: held-out images before and after it, in figures and in words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.metrics.round_trip import RoundTrip, round_trip
from pipelines.metrics.slices import SliceComparison, SliceDescriptors, compare_slices

FRACTION_TOLERANCE = 1.0  # points of tow fraction that a round trip may change
PITCH_TOLERANCE = 0.02  # of the pitch
COARSE_TOLERANCE = 0.1  # error of the coarsest octave, as a share of its power, that is not worth a word
PITCHES = {"pitch_rows": "pitch down the rows", "pitch_columns": "pitch along the columns"}


class Space(Protocol):
    """The part of `pipelines.spaces.LatentSpace` that a round trip needs."""

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class View:
    """The images of one caption at one scale, before and after, float32 (N, 3, row, column) in [0, 1].

    loss: of slices that of their grey, the mean of the channels, as they are written to tif; else of the channels.
    values: of slices, every descriptor's value before the round trip. slices: the descriptors of the held-out slices
    after it ("generated") against the training block ("real held out"); their ratios are what a perfect denoiser would
    have. Both {} for other images.
    """

    before: np.ndarray
    after: np.ndarray
    loss: RoundTrip
    values: Mapping[str, float | None]
    slices: Mapping[str, SliceComparison]

    @property
    def tint(self) -> float:
        """The mean over pixels of the largest difference of two channels after: 0 for an image that is grey."""
        return float((self.after.max(1) - self.after.min(1)).mean())

    def change(self, name: str) -> tuple[float | None, float | None]:
        """Return a descriptor's value before and after."""
        return self.values[name], self.slices[name].value_generated


@dataclass(frozen=True, eq=False)
class Scale:
    """One pixel scale: its views by caption, and the loss over all of them. um_per_px: None where there is no scale."""

    um_per_px: float | None
    views: Mapping[str, View]
    loss: RoundTrip


def reconstruct(space: Space, pixels: np.ndarray, progress: Callable[[int], object] | None = None) -> np.ndarray:
    """Return images after encoding (the mean latent, no noise) and decoding, clipped to what a picture holds.

    pixels: float32 (N, 3, H, W) in [-1, 1], and so is the result. progress: told of every image.
    """
    images = []
    with torch.inference_mode():
        for image in torch.from_numpy(np.ascontiguousarray(pixels)).split(1):
            mean, std = space.moments(image)
            images.append(space.decode(space.sample(mean, std, torch.zeros_like(mean))).clamp(-1, 1).cpu().numpy())
            if progress is not None:
                progress(1)
    return np.concatenate(images)


def round_trips(space: Space) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives pictures, float32 (N, H, W, 3) in [0, 1], after encoding and decoding, each set once."""
    known: dict[bytes, np.ndarray] = {}

    def through(pictures: np.ndarray) -> np.ndarray:
        key = hashlib.sha256(pictures.tobytes()).digest()
        if key not in known:
            decoded = reconstruct(space, pictures.transpose(0, 3, 1, 2) * 2 - 1)
            known[key] = ((decoded.transpose(0, 2, 3, 1) + 1) / 2).astype(np.float32)
        return known[key]

    return through


def measure(
    space: Space,
    held_out: Mapping[str, np.ndarray],
    training: Mapping[str, np.ndarray],
    um_per_px: float | None,
    *,
    are_slices: bool,
    progress: Callable[[int], object] | None = None,
) -> Scale:
    """Return the losses of held-out images by caption; of slices their descriptors too.

    held_out, training: float32 (N, 3, H, W) in [-1, 1] by caption, two images or more each.
    """
    views: dict[str, View] = {}
    compared: list[tuple[np.ndarray, np.ndarray]] = []
    for caption, pixels in held_out.items():
        before, after = ((each + 1) / 2 for each in (pixels, reconstruct(space, pixels, progress)))
        if not are_slices:
            compared.append((before, after))
            views[caption] = View(before, after, round_trip(before, after), {}, {})
            continue
        real, end, reference = (np.clip(each.mean(1), 0, 1) for each in (before, after, (training[caption] + 1) / 2))
        compared.append((real[:, None], end[:, None]))
        # of the three sets, the first sets the threshold and the floor, and is like the third but for the loss
        slices = compare_slices(real, reference, end, um_per_px)
        values = SliceDescriptors.measure(real, um_per_px).values()
        views[caption] = View(before, after, round_trip(*compared[-1]), values, slices)
    before, after = (np.concatenate(sides) for sides in zip(*compared, strict=True))
    return Scale(um_per_px, views, round_trip(before, after))


@dataclass(frozen=True)
class Advice:
    """Which tried scale would do: the largest um per px without a shortcoming; None where none is without.

    shortcomings: for each scale, what the criterion finds wrong with it. lines: the same in words.
    """

    criterion: str
    um_per_px: float | None
    shortcomings: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]


def advice(scales: Sequence[Scale], finest_um: float | None = None) -> Advice:
    """Return which scale would do, from scales in order of falling um per px.

    finest_um: the period of the finest detail that must keep half its power; None is the mean chord of a tow in each
    caption's slices at the first scale.
    """
    wanted = "the mean chord of a tow" if finest_um is None else f"{finest_um:g} um"
    criterion = (
        f"tow fraction within {FRACTION_TOLERANCE:g} point, each pitch that the slices show at the first scale within "
        f"{PITCH_TOLERANCE:.0%}, and details drawn right at periods down to {wanted} (half the power kept, and an "
        "error of at most half the power)"
    )
    if not any(view.slices for view in scales[0].views.values()):
        finest = scales[0].loss.finest_right_px
        if finest is None:
            line = "This base draws every detail of these images right."
        elif math.isinf(finest):
            line = "This base draws no detail of these images right: choose another one, or train its autoencoder."
        else:
            line = (
                f"These images have no pixel scale to choose: what matters in them needs a period above {finest:.1f} "
                "px. A larger --resolution shows it larger."
            )
        return Advice("none: these images have no pixel scale", None, ((),) * len(scales), (line,))
    shortcomings = tuple(tuple(_shortcomings(scale, scales[0], finest_um)) for scale in scales)
    passed = [scale.um_per_px for scale, wrong in zip(scales, shortcomings, strict=True) if not wrong]
    lines = [f"Criterion: {criterion}."]
    for scale, wrong in zip(scales, shortcomings, strict=True):
        lines += [f"  {scale_name(scale.um_per_px)}: {'; '.join(wrong) or 'passes'}"]
    if passed and scales[0].um_per_px is None:
        lines.append("The one scale of these slices passes; their voxel size is unknown.")
    elif passed:
        lines.append(f"The coarsest scale that passes: --um_per_px {passed[0]:g}.")
    elif scales[0].um_per_px is None:
        lines.append("The one scale fails. Say the voxel size in volumes.yaml, and finer ones are tried.")
    else:
        lines.append("No tried scale passes. Try a larger --resolution with a finer --um_per_px, or another base.")
    return Advice(criterion, passed[0] if passed else None, shortcomings, tuple(lines))


def _shortcomings(scale: Scale, first: Scale, finest_um: float | None) -> list[str]:
    found = []
    for caption, view in scale.views.items():
        problems = [
            *_fraction_problems(view),
            *_pitch_problems(view, first.views.get(caption, view), scale.um_per_px),
            *_detail_problems(view, first.views.get(caption, view), scale.um_per_px, finest_um),
        ]
        found += [f"{caption}: {problem}" for problem in problems]
    return found


def _fraction_problems(view: View) -> list[str]:
    before, after = view.change("tow_fraction")
    if before is None or after is None:
        return ["the tow fraction cannot be measured"]
    if abs(after - before) <= FRACTION_TOLERANCE:
        return []
    return [f"tow fraction {before:.1f} -> {after:.1f} %"]


def _pitch_problems(view: View, first: View, um_per_px: float | None) -> list[str]:
    problems = []
    for name, called in PITCHES.items():
        wanted = first.change(name)[0]
        before, after = view.change(name)
        if wanted is None:
            continue
        if before is None:
            side = min(view.before.shape[2:])
            problems.append(f"a crop of {_length(side, um_per_px)} does not show the {called}, {wanted:.0f} um")
        elif after is None:
            problems.append(f"{called} {before:.0f} {view.slices[name].unit} is lost")
        elif abs(after - before) > PITCH_TOLERANCE * before:
            problems.append(f"{called} {before:.0f} -> {after:.0f} {view.slices[name].unit}")
    return problems


def _detail_problems(view: View, first: View, um_per_px: float | None, finest_um: float | None) -> list[str]:
    scale = 1.0 if um_per_px is None else um_per_px
    unit = "px" if um_per_px is None else "um"
    wanted = finest_um if finest_um is not None else first.change("tow_chord")[0]
    finest = view.loss.finest_right_px
    if wanted is None:
        return ["no chord of a tow lies within a slice: give --finest_um"]
    if finest is None or finest * scale <= wanted:
        return []
    return [f"details below {finest * scale:.0f} {unit} are lost or wrong, wanted {wanted:.0f} {unit}"]


def words(scale: Scale) -> list[str]:
    """Return what the base cannot show at this scale."""
    lines = [f"{scale_name(scale.um_per_px)}:"]
    views = {**scale.views, **({"all": None} if len(scale.views) > 1 else {})}
    for caption, view in views.items():
        loss = scale.loss if view is None else view.loss
        lines.append(
            f"  {caption} ({loss.num_images} images): PSNR {loss.psnr_db.value:.1f} dB "
            f"[{loss.psnr_db.low:.1f}, {loss.psnr_db.high:.1f}]; {_finest(loss, scale.um_per_px)}"
        )
        if view is None or not view.slices:
            continue
        before, after = view.change("tow_fraction")
        parts = [f"tint {view.tint:.1%} of the window"]
        if before is not None and after is not None:
            parts.append(f"tow fraction {before:.1f} -> {after:.1f} %")
        for name, called in PITCHES.items():
            before, after = view.change(name)
            if before is not None:
                end = "lost" if after is None else f"{after:.0f} {view.slices[name].unit}"
                parts.append(f"{called} {before:.0f} -> {end}")
        worst = {name: each.ratio for name, each in view.slices.items() if each.verdict in ("apart", "far")}
        if worst:
            parts.append(
                "beyond twice the real-versus-real floor: "
                + ", ".join(f"{name} {ratio:.1f}x" for name, ratio in worst.items())
            )
        lines.append(f"    {'; '.join(parts)}")
    lines += _octave_lines(scale)
    coarsest = scale.loss.octaves[0].error.value
    if coarsest > COARSE_TOLERANCE:
        lines.append(
            f"  Even the coarsest octave is wrong by {coarsest:.0%} of its power: colours or contrasts of these images "
            "are beyond this base."
        )
    return lines


def _finest(loss: RoundTrip, um_per_px: float | None) -> str:
    kept, right = loss.finest_kept_px, loss.finest_right_px
    parts = [
        "all details keep half their power"
        if kept is None
        else f"details finer than {_length(kept, um_per_px)} lose more than half their power"
    ]
    if right is not None and right != kept:
        parts.append(f"details finer than {_length(right, um_per_px)} are drawn wrong (error above half the power)")
    return "; ".join(parts)


def _octave_lines(scale: Scale) -> list[str]:
    lines = []
    for octave in scale.loss.octaves:
        if scale.um_per_px is None:
            band = f"{octave.low:.3f}-{octave.high:.3f} cycles/px"
        else:
            band = "{:.2f}-{:.2f} cycles/mm".format(*(1000 / scale.um_per_px * f for f in (octave.low, octave.high)))
        lines.append(
            f"  {band}: power kept {octave.kept.value:.2f} [{octave.kept.low:.2f}, {octave.kept.high:.2f}], "
            f"error {octave.error.value:.2f} of the power"
        )
    return lines


def _length(px: float, um_per_px: float | None) -> str:
    if math.isinf(px):
        return "the whole image"
    written = f"{px:.3g} px"
    return written if um_per_px is None else f"{written} = {px * um_per_px:.0f} um"


def scale_name(um_per_px: float | None) -> str:
    return "as they are" if um_per_px is None else f"{um_per_px:g} um per px"
