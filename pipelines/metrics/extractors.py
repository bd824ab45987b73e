"""What turns pictures into features: the embedded texture statistics, and networks whose weights are at hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import SettingsError
from data.json_files import parsed
from pipelines.fingerprints import weights_fingerprint
from pipelines.metrics.inputs import checked_pictures
from pipelines.metrics.texstat import TexStat, size_for

TEXSTAT, INCEPTION, CLIP, DINOV2 = "texstat", "inception", "clip", "dinov2"
KNOWN = {CLIP: "openai/clip-vit-large-patch14", DINOV2: "facebook/dinov2-base"}
_BATCH = 16


class Extractor(Protocol):
    """What gives features of pictures.

    extractor_id: the name to keep beside every number; only numbers of the same name may be compared. is_network:
    whether it is one of those of which papers report FID, KID or CMMD.
    """

    @property
    def extractor_id(self) -> str: ...

    @property
    def is_network(self) -> bool: ...

    def extract(self, pictures: np.ndarray) -> np.ndarray:
        """Return features, float64 (N, D), of pictures, float32 (N, H, W, 3) in [0, 1]."""
        ...


@dataclass(frozen=True)
class TextureStatistics:
    """The embedded extractor: TexStat at one size, of the colours, also of scans: a tint that they have not is seen."""

    texstat: TexStat

    @classmethod
    def fitting(cls, short_side_px: int) -> TextureStatistics:
        """Return the extractor for pictures of this short side. Raises DataError below 32 px."""
        return cls(TexStat(size_for(short_side_px)))

    @property
    def extractor_id(self) -> str:
        """TexStat's own name."""
        return self.texstat.extractor_id

    @property
    def is_network(self) -> bool:
        """No: nobody else reports distances in these features."""
        return False

    def extract(self, pictures: np.ndarray) -> np.ndarray:
        """Return unit vectors, float64 (N, 245), or (N, 314) at 256 px."""
        checked = checked_pictures(pictures, self.extractor_id)
        pixels = torch.from_numpy(np.ascontiguousarray(checked.transpose(0, 3, 1, 2)))
        return self.texstat.features(pixels).double().numpy()


class Remembering:
    """An extractor that does the work once for each set of pictures, whoever asks: runs share their real images."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._known: dict[bytes, np.ndarray] = {}

    @property
    def extractor_id(self) -> str:
        """That of the extractor."""
        return self._extractor.extractor_id

    @property
    def is_network(self) -> bool:
        """As the extractor."""
        return self._extractor.is_network

    def extract(self, pictures: np.ndarray) -> np.ndarray:
        """Return what the extractor gives; not to be changed."""
        key = repr(pictures.shape).encode() + hashlib.sha256(pictures.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._extractor.extract(pictures)
        return self._known[key]


class VisionNetwork:
    """An image network of transformers, CLIP or DINOv2, read from a local folder."""

    is_network = True

    def __init__(self, folder: Path) -> None:
        """folder: config.json, preprocessor_config.json and safetensors. Raises SettingsError for anything else."""
        from transformers import AutoConfig, CLIPVisionModelWithProjection, Dinov2Model

        classes = {"clip": CLIPVisionModelWithProjection, "dinov2": Dinov2Model}
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._preparation = _Preparation.read(folder / "preprocessor_config.json")
            kind = config.model_type.removesuffix("_vision_model")
            if kind not in classes:
                raise SettingsError(str(folder), f"is a {config.model_type}, expected one of {', '.join(classes)}.")
            self._network: nn.Module = classes[kind].from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise SettingsError(str(folder), f"cannot be read as a vision network: {_first_line(error)}") from None
        self._network.requires_grad_(False).eval()
        self.extractor_id = f"{kind}-{weights_fingerprint(self._network)[:12]}-{self._preparation.size_px}px"

    def extract(self, pictures: np.ndarray) -> np.ndarray:
        """Return features, float64 (N, D): CLIP's projected image embedding, DINOv2's class token."""
        checked = checked_pictures(pictures, self.extractor_id)
        found = []
        with torch.no_grad():
            for start in range(0, len(checked), _BATCH):
                pixels = torch.from_numpy(np.ascontiguousarray(checked[start : start + _BATCH].transpose(0, 3, 1, 2)))
                output = self._network(pixel_values=self._preparation.of(pixels))
                found.append(output.image_embeds if "image_embeds" in output else output.pooler_output)
        return torch.cat(found).double().numpy()


def open_extractor(name: str, short_side_px: int) -> Extractor:
    """Return an extractor for pictures of this short side; nothing is downloaded.

    name: "texstat", "clip", "dinov2", a folder, or a hub id in the local cache.
    Raises SettingsError with the reason where it cannot be had, DataError for pictures below 32 px with texstat.
    """
    if name == TEXSTAT:
        return TextureStatistics.fitting(short_side_px)
    if name == INCEPTION:
        raise SettingsError(
            INCEPTION,
            "the network of FID (pt_inception-2015-12-05) is not part of any package here, and torchvision's Inception "
            "is another one, whose numbers nobody could compare. Take texstat, clip or dinov2.",
        )
    folder = Path(name).expanduser()
    return VisionNetwork(folder if folder.is_dir() else _cached(KNOWN.get(name, name), name))


@dataclass(frozen=True)
class _Preparation:
    """How a network's own preprocessor makes its input: shrink the short side, cut the middle, standardise."""

    short_side_px: int
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> _Preparation:
        said = parsed(path.read_bytes())
        crop = _side(said["crop_size"]) if said.get("do_center_crop", True) else _side(said["size"])
        return cls(_side(said["size"]), crop, tuple(said["image_mean"]), tuple(said["image_std"]))

    def of(self, pixels: Tensor) -> Tensor:
        """Return the input (B, 3, size_px, size_px) of pixels (B, 3, row, column) in [0, 1]."""
        rows, columns = pixels.shape[-2:]
        factor = self.short_side_px / min(rows, columns)
        shape = max(self.size_px, round(rows * factor)), max(self.size_px, round(columns * factor))
        resized = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (shape[0] - self.size_px) // 2, (shape[1] - self.size_px) // 2
        cut = resized[..., top : top + self.size_px, left : left + self.size_px]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (cut - mean) / std


def _side(size: Any) -> int:
    """Return the side in px that a preprocessor's settings mean by 224, {"shortest_edge": 224} or height and width."""
    if isinstance(size, int):
        return size
    return int(size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"]))


def _cached(hub_id: str, name: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise SettingsError(
            name,
            f"found no folder of this name and no copy of {hub_id} in the local cache. "
            f"Fetch it where there is a network (hf download {hub_id}), or give a folder.",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
