"""A diffusion model of pixels as data: denoiser, noise schedule, and what its numbers stand for.

A folder in diffusers' format holds it, `unet/` and `scheduler/`, which `DDPMPipeline` loads too; `pixel_model.json`
beside them says what diffusers has no place for: labels, grey values, voxel size, range of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.diffusion.posterior import log_variance_bounds, posterior
from pipelines.diffusion.prediction import READINGS, Prediction
from pipelines.diffusion.schedules import SCHEDULES, Schedule
from pipelines.diffusion.schedules import alphas_cumprod as schedule_of
from pipelines.fingerprints import weights_fingerprint
from pipelines.finite import module_problems

FACTS_NAME = "pixel_model.json"
PixelPredictionType = Literal["epsilon", "sample", "v_prediction"]
# how far the schedule of a folder's scheduler, in float32, may be from the one that its facts name
_SCHEDULE_TOLERANCE = 1e-4
_LUMINANCE = (0.299, 0.587, 0.114)
_EXPECTED = f"expected a pixel model in diffusers' format: unet/, scheduler/ (and {FACTS_NAME})"


@dataclass(frozen=True, eq=False)
class PixelModel:
    """A denoiser of pixels.

    unet: called as unet(x_t, t, labels, return_dict=False); gives C channels, or 2 C with a learnt variance.
    alphas_cumprod: (T,) float64. channels: 1 or 3. class_labels: empty for a model without classes; the index
    len(class_labels) stands for "no label". normalized: whether pixels are in [-1, 1], or else in [0, 1].
    grey_values: by caption, window (low, high) and dtype in which 0 to 1 of a picture stands for grey values; empty
    where nothing does. um_per_px: None where it is unknown. schedule: the name of the noise schedule; None for one
    that a scheduler alone describes. fingerprint: of the weights; empty for a model in training.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction_type: PixelPredictionType
    learned_variance: bool
    channels: int
    size_px: int
    class_labels: tuple[str, ...] = ()
    normalized: bool = True
    grey_values: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    um_per_px: float | None = None
    schedule: Schedule | None = None
    fingerprint: str = ""

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def no_label(self) -> int:
        """The index that stands for "no label" in a model with classes."""
        assert self.class_labels, "a model with classes"
        return len(self.class_labels)

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        """Return what the model says about x_t (B, C, H, W), float32, at timesteps t (B,), 0 to T - 1.

        labels: (B,) indices into class_labels, or `no_label`; None is no label for all.
        """
        output: Tensor = self.unet(x_t, t, self._labels(labels, t), return_dict=False)[0].float()
        return self.interpret(output, x_t, t)

    def interpret(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """Return what the network's output (B, C or 2 C, H, W) says about x_t at t.

        A learnt variance is a share, (output + 1) / 2, not clipped, of the way from log beta~_t to log beta_t.
        """
        value, raw_share = output.chunk(2, dim=1) if self.learned_variance else (output, None)
        log_variance = None
        if raw_share is not None:
            share = (raw_share + 1) / 2
            low, high = self.log_variance_bounds(t)
            log_variance = share * high + (1 - share) * low
        return READINGS[self.prediction_type](value, x_t, self.alphas_cumprod[t.cpu()], log_variance)

    def log_variance_bounds(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log beta~_t and log beta_t, each (B, 1, 1, 1) float32 (Nichol and Dhariwal 2021, eq. 15).

        beta~_0 is 0; as in their code, the value at 1 stands in its place.
        """
        low, high = self._log_variance_table.to(t.device)[t].view(-1, 2, 1, 1, 1).unbind(1)
        return low, high

    @cached_property
    def _log_variance_table(self) -> Tensor:
        levels = [1.0, *self.alphas_cumprod.tolist()]
        first = posterior(levels[2], levels[1]).variance
        return torch.tensor([log_variance_bounds(now, before, first) for before, now in pairwise(levels)])

    def posterior_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0), each (B, 1, 1, 1) float64."""
        x0_weight, xt_weight = self._posterior_table.to(t.device)[t].view(-1, 2, 1, 1, 1).unbind(1)
        return x0_weight, xt_weight

    @cached_property
    def _posterior_table(self) -> Tensor:
        laws = [posterior(now, before) for before, now in pairwise([1.0, *self.alphas_cumprod.tolist()])]
        return torch.tensor([(law.x0_weight, law.xt_weight) for law in laws], dtype=torch.float64)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1] in the channels and the range of the model.

        A model of one channel takes the first of three equal ones as it is, and the luminance of a coloured picture
        (ITU-R BT.601).
        """
        if self.channels == 1:
            first = pixels[:, :1]
            weights = pixels.new_tensor(_LUMINANCE).view(1, 3, 1, 1)
            is_grey = (pixels == first).flatten(1).all(1).view(-1, 1, 1, 1)
            pixels = torch.where(is_grey, first, (pixels * weights).sum(1, keepdim=True))
        return pixels if self.normalized else (pixels + 1) / 2

    def to_unit(self, pixels: Tensor) -> Tensor:
        """Return pixels of the model's range in [0, 1], clipped."""
        return (pixels / 2 + 0.5 if self.normalized else pixels).clamp(0, 1)

    def _labels(self, labels: Tensor | None, t: Tensor) -> Tensor | None:
        if not self.class_labels:
            assert labels is None, "a model without classes takes no labels"
            return None
        return torch.full_like(t, self.no_label) if labels is None else labels

    def facts(self) -> dict[str, Any]:
        """Return what `load_pixel_model` reads beside diffusers' files, as JSON can hold it."""
        return {
            "schedule": self.schedule,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "learned_variance": self.learned_variance,
            "channels": self.channels,
            "size_px": self.size_px,
            "normalized": self.normalized,
            "class_labels": list(self.class_labels),
            "grey_values": {caption: dict(values) for caption, values in self.grey_values.items()},
            "um_per_px": self.um_per_px,
        }


def load_pixel_model(folder: Path) -> PixelModel:
    """Return the pixel model of a folder, float32, frozen, in evaluation mode, on the CPU.

    A folder of diffusers without `pixel_model.json` is taken for a model of pixels in [-1, 1] without classes.
    Raises SettingsError for a folder that holds no such model, or one whose files disagree.
    """
    unet_config = _json(folder, folder / "unet" / "config.json")
    scheduler_config = _json(folder, folder / "scheduler" / "scheduler_config.json")
    facts = _json(folder, folder / FACTS_NAME) if (folder / FACTS_NAME).exists() else {}
    problems = _problems(unet_config, scheduler_config)
    if problems:
        raise SettingsError(str(folder), *problems)
    scheduler = DDPMScheduler.from_config(scheduler_config)
    unet = _unet(folder)
    model = PixelModel(
        unet=unet,
        alphas_cumprod=_schedule(folder, facts, scheduler),
        prediction_type=scheduler.config.prediction_type,
        learned_variance=scheduler.config.variance_type == "learned_range",
        channels=unet.config.in_channels,
        size_px=int(unet.config.sample_size),
        class_labels=tuple(facts.get("class_labels", ())),
        normalized=bool(facts.get("normalized", True)),
        grey_values=facts.get("grey_values", {}),
        um_per_px=facts.get("um_per_px"),
        schedule=facts.get("schedule"),
        fingerprint=weights_fingerprint(unet),
    )
    disagreements = _disagreements(model, facts)
    if disagreements:
        raise SettingsError(str(folder), *disagreements, "Export the model again, or restore its files.")
    return model


def _json(folder: Path, path: Path) -> dict[str, Any]:
    try:
        content = parsed(path.read_bytes())
    except OSError:
        raise SettingsError(str(folder), f"holds no {path.relative_to(folder)}; {_EXPECTED}.") from None
    except ValueError as error:
        raise SettingsError(str(path), f"is not JSON: {error}. Restore the file.") from None
    if not isinstance(content, dict):
        raise SettingsError(str(path), f"found {type(content).__name__}, expected an object. Restore the file.")
    return content


def _problems(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> list[str]:
    """Return what keeps two configs from being those of a pixel model."""
    problems = []
    if unet.get("_class_name") != "UNet2DModel":
        problems.append(f"unet/ holds a {unet.get('_class_name')}, expected a UNet2DModel. {_EXPECTED}.")
    if not isinstance(unet.get("sample_size"), int):
        problems.append(f"unet/ has a sample_size of {unet.get('sample_size')}, expected one side of a square in px.")
    if scheduler.get("prediction_type", "epsilon") not in get_args(PixelPredictionType):
        problems.append(
            f"scheduler/ has the prediction type {scheduler['prediction_type']}, expected one of "
            f"{', '.join(get_args(PixelPredictionType))}."
        )
    channels, outputs = unet.get("in_channels", 3), unet.get("out_channels", 3)
    learned = scheduler.get("variance_type") == "learned_range"
    if outputs != channels * (1 + learned):
        problems.append(
            f"unet/ makes {outputs} channels of {channels} with the variance type {scheduler.get('variance_type')}; "
            "expected as many as it reads, or twice as many with learned_range."
        )
    return problems


def _unet(folder: Path) -> UNet2DModel:
    try:
        unet, report = UNet2DModel.from_pretrained(
            str(folder / "unet"), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(str(folder / "unet"), f"its weights cannot be read: {reason}") from None
    if report["missing_keys"] or report["unexpected_keys"]:
        found = [*report["missing_keys"], *report["unexpected_keys"]][0]
        raise SettingsError(str(folder / "unet"), f"its weights do not fit its config: {found}. Restore its files.")
    if problems := module_problems(unet):
        raise SettingsError(str(folder / "unet"), *problems)
    unet = unet.float().requires_grad_(False).eval()
    for tensor in (*unet.parameters(), *unet.buffers()):
        # out of the file's memory, where they lie unaligned and sums come out otherwise than they did in training
        tensor.data = tensor.data.clone()
    return unet


def _schedule(folder: Path, facts: Mapping[str, Any], scheduler: DDPMScheduler) -> Tensor:
    """Return the noise schedule in float64: the named one, where the scheduler agrees that it is."""
    stored = (1 - scheduler.betas.double()).cumprod(0)
    name = facts.get("schedule")
    if name is None:
        return stored
    if name not in SCHEDULES:
        raise SettingsError(str(folder / FACTS_NAME), f"schedule: found {name!r}, expected {', '.join(SCHEDULES)}.")
    exact = schedule_of(name, len(stored))
    if float((exact - stored).abs().max()) > _SCHEDULE_TOLERANCE:
        raise SettingsError(
            str(folder), f"scheduler/ has another noise schedule than {FACTS_NAME}, {name} in {len(stored)} steps."
        )
    return exact


def _disagreements(model: PixelModel, facts: Mapping[str, Any]) -> list[str]:
    """Return where a model's facts say something else than its network and scheduler."""
    read = model.facts()
    names = ("num_train_timesteps", "prediction_type", "learned_variance", "channels", "size_px")
    found = [
        f"{FACTS_NAME}: {name} is {facts[name]!r}, the other files say {read[name]!r}."
        for name in names
        if name in facts and facts[name] != read[name]
    ]
    embeddings = model.unet.config.num_class_embeds  # type: ignore[union-attr]
    expected = len(model.class_labels) + 1 if model.class_labels else None
    if embeddings != expected:
        found.append(
            f"{FACTS_NAME}: names {len(model.class_labels)} labels, but unet/ has {embeddings or 'no'} class "
            "embeddings; expected one for each label and one for none."
        )
    return found
