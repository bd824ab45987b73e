"""What is declared about the volumes of a folder: file names, planes, voxel sizes, windows, in volumes.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data.errors import DataError, SettingsError, nearest
from data.strict_yaml import read_yaml

PLANES = ("thickness", "warp", "weft")
STATE_FILES = {"dry": "dry.tif", "compacted": "dry_compacted.tif", "injected": "injected.tif"}
SPECS_FILE = "volumes.yaml"


class VolumeError(DataError):
    """A volume that is missing, damaged, or not what was declared."""


@dataclass(frozen=True)
class VolumeSpec:
    """What is declared about a volume before it is opened.

    path: one tif file, or a folder with one tif file for each slice. planes: plane name -> axis of (Z, Y, X) that its
    slices are cut along. voxel_size_um: (Z, Y, X), or None where the file must say it. window: (low, high) native grey
    values, or None for percentiles. shape: (Z, Y, X), or None. accept_warnings: open files about which the tif reader
    warns. planes_are_declared: False where nobody said the planes.
    """

    state: str
    path: Path
    planes: Mapping[str, int]
    voxel_size_um: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    shape: tuple[int, int, int] | None = None
    accept_warnings: bool = False
    planes_are_declared: bool = True


_Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, gt=0)]
_Grey = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Axis = Annotated[int, Field(strict=True, ge=0, le=2)]
_Plane = Literal["thickness", "warp", "weft"]
_DEFAULT_PLANES: dict[_Plane, int] = {"thickness": 0, "warp": 1, "weft": 2}


class _Entry(BaseModel):
    """One state of volumes.yaml."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[str, Field(strict=True, min_length=1)] | None = None
    planes: dict[_Plane, _Axis] | None = None
    voxel_size_um: tuple[_Positive, _Positive, _Positive] | None = None
    window: tuple[_Grey, _Grey] | None = None
    shape: tuple[_Count, _Count, _Count] | None = None
    accept_warnings: Annotated[bool, Field(strict=True)] = False

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str | None) -> str | None:
        if file is not None:
            path = PurePosixPath(file.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise ValueError("must be a path inside the data root; move the file there")
        return file

    @field_validator("planes")
    @classmethod
    def _permutation(cls, planes: dict[_Plane, int] | None) -> dict[_Plane, int] | None:
        if planes is not None and sorted(planes.values()) != [0, 1, 2]:
            raise ValueError("must give each of thickness, warp and weft another axis of 0, 1 and 2")
        return planes

    @field_validator("window")
    @classmethod
    def _ordered(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and window[0] >= window[1]:
            raise ValueError("must be [low, high] with low < high")
        return window


def read_volume_specs(data_root: Path) -> dict[str, VolumeSpec]:
    """Return what is declared about the volume of each state: defaults, overridden by volumes.yaml in the data root.

    The volumes themselves need not exist. Raises SettingsError with everything that is wrong in volumes.yaml, and
    VolumeError when the data root is no folder.
    """
    if not data_root.is_dir():
        raise VolumeError(
            str(data_root), "is not a folder; give the folder that holds " + ", ".join(STATE_FILES.values())
        )
    entries = _read_entries(data_root / SPECS_FILE)
    specs = {}
    for state, default_file in STATE_FILES.items():
        entry = entries.get(state, _Entry())
        specs[state] = VolumeSpec(
            state=state,
            path=data_root / (entry.file or default_file),
            planes={str(plane): axis for plane, axis in (entry.planes or _DEFAULT_PLANES).items()},
            voxel_size_um=entry.voxel_size_um,
            window=entry.window,
            shape=entry.shape,
            accept_warnings=entry.accept_warnings,
            planes_are_declared=entry.planes is not None,
        )
    return specs


def _read_entries(path: Path) -> dict[str, _Entry]:
    if not path.exists():
        return {}
    content = read_yaml(path, "a mapping for each state, such as dry: {file: dry.tif}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(
            str(path), f"found {_brief(content)}, expected one mapping for each state, such as dry: {{file: dry.tif}}"
        )
    problems, entries = [], {}
    for state, fields in content.items():
        if state not in STATE_FILES:
            problems.append(f"{state!r} is not a state.{nearest(str(state), STATE_FILES)}")
            continue
        try:
            entries[state] = _Entry.model_validate({} if fields is None else fields)
        except ValidationError as error:
            problems += _sentences(state, fields, error)
    files = {state: entries.get(state, _Entry()).file or default for state, default in STATE_FILES.items()}
    problems += [
        f"{state} and {other} are both read from {file}; give every state a file of its own"
        for position, (state, file) in enumerate(files.items())
        for other in list(files)[:position]
        if files[other] == file
    ]
    if problems:
        raise SettingsError(str(path), *problems)
    return entries


def _sentences(state: str, fields: Any, error: ValidationError) -> list[str]:
    """Return one sentence for each problem that pydantic found: where, what was found, what was expected."""
    sentences = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in (state, *problem["loc"]) if part != "[key]")
        key = str(problem["loc"][-1]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{where} is not a key.{nearest(key, _Entry.model_fields)}")
        elif problem["type"] == "literal_error":
            sentences.append(f"{where} is not a plane.{nearest(str(problem['input']), PLANES)}")
        elif problem["type"] == "model_type":
            sentences.append(f"{state}: found {_brief(fields)}, expected a mapping such as {{file: scan.tif}}")
        else:
            expected = problem["msg"].removeprefix("Value error, ")
            sentences.append(f"{where}: found {_brief(problem['input'])}: {expected[0].lower()}{expected[1:]}")
    return sentences


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
