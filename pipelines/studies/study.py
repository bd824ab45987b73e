"""A study: methods, data and seeds, of which every combination is one training run.

    prompts: configs/prompts/methods.yaml                 # what every result is asked
    tier: standard                                        # of the evaluation: smoke, standard, full
    num_inference_steps: 20                               # of every image (default: 30)
    images_per_prompt: 12                                 # of every model (default: by tier)
    common: {max_train_steps: 400, train_batch_size: 8}   # options of every run
    seeds: [0, 1, 2]                                      # of the trainings
    data:
      sf_dry: {concept: sf_dry}
      sf_dry, nine images: {concept: sf_dry, images_per_class: 3}
    methods:
      lora: {script: lora}
      lora, rank 4: {script: lora, rank: 4}                # and any option of that script

    claims:                                              # what is expected, by the names of methods and data
      - {text: LoRA learns more than at rank 4, data: sf_dry, measure: skill, greater: lora, than: "lora, rank 4"}

A method's own options win over those of the data, and these over the common ones. Claims are written as
`evaluation.asked_claims` says; besides the measures of images they can be about COSTS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import SettingsError, nearest
from data.strict_yaml import read_yaml
from pipelines.evaluation.asked_claims import AskedClaim, read_claims
from pipelines.evaluation.result import KINDS

SCRIPTS = ("full_unet", "textual_inversion", "dreambooth", "lora", "lora_dreambooth", "pivotal_tuning")
RESERVED = ("seed", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run")  # the study's own
_KEYS = ("prompts", "tier", "num_inference_steps", "images_per_prompt", "common", "seeds", "data", "methods", "claims")
COSTS = ("core_minutes", "memory_gib", "artefact_mb", "trained_parameters")
TIERS = ("smoke", "standard", "full")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,._+-]{0,59}")

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One training of a study. options: of its script, by name, without what the study itself decides."""

    method: str
    data: str
    seed: int
    script: str
    options: Options

    @property
    def folder_name(self) -> str:
        """The name of its folder, which no other run of the study has."""
        return f"{_slug(self.data)}--{_slug(self.method)}--seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """What is trained, in the order of the file: all runs of the first data before those of the next.

    prompts, tier, num_inference_steps, images_per_prompt: what every result is asked, and how large its evaluation is.
    """

    path: Path
    prompts: Path
    tier: str
    num_inference_steps: int
    images_per_prompt: int | None
    methods: tuple[str, ...]
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    claims: tuple[AskedClaim, ...]


def read_study(path: Path) -> Study:
    """Return the study of a YAML file. Raises SettingsError with everything that is wrong with it.

    The options of the scripts are checked by the scripts themselves, before the first of them trains.
    """
    content = _read(path)
    problems = [f"{key}: unknown key.{nearest(str(key), _KEYS)}" for key in content if key not in _KEYS]
    prompts, tier = content.get("prompts"), content.get("tier", "standard")
    if not isinstance(prompts, str) or not prompts:
        problems.append("prompts: missing; expected a file of prompts, such as configs/prompts/methods.yaml.")
    if tier not in TIERS:
        problems.append(f"tier: found {tier!r}.{nearest(str(tier), TIERS)}")
    steps, images = content.get("num_inference_steps", 30), content.get("images_per_prompt")
    # images are compared as sets, and a set of one says nothing
    for key, value, least in (("num_inference_steps", steps, 1), ("images_per_prompt", images, 2)):
        if key in content and (type(value) is not int or value < least):
            problems.append(f"{key}: found {value!r}, expected a whole number from {least}.")
    common = _options(content.get("common", {}), "common", problems)
    seeds = _seeds(content.get("seeds", [0]), problems)
    data = _named(content.get("data"), "data", problems)
    methods = _named(content.get("methods"), "methods", problems)
    for name, options in methods.items():
        script = options.get("script")
        if script not in SCRIPTS:
            problems.append(f"methods.{name}.script: found {script!r}.{nearest(str(script), SCRIPTS)}")
    for kind, names in (("data", data), ("methods", methods)):
        slugs = [_slug(name) for name in names]
        problems += [
            f"{kind}: two names make one folder's, {slug!r}." for slug in sorted(set(slugs)) if slugs.count(slug) > 1
        ]
    claims = read_claims(content.get("claims", []), (*KINDS, *COSTS), problems)
    for claim in claims:
        problems += [
            f"claims: {claim.text}: found the {kind} {name!r}.{nearest(name, known)}"
            for kind, names, known in (("method", claim.runs, methods), ("data", (claim.data,), data))
            for name in names
            if name not in known
        ]
    if problems:
        raise SettingsError(str(path), *problems)
    runs = tuple(
        Run(
            method,
            of_data,
            seed,
            str(options["script"]),
            {**common, **data[of_data], **{key: value for key, value in options.items() if key != "script"}},
        )
        for of_data in data
        for method, options in methods.items()
        for seed in seeds
    )
    return Study(path, Path(str(prompts)), tier, steps, images, tuple(methods), tuple(data), seeds, runs, claims)


def _read(path: Path) -> dict[Any, Any]:
    content = read_yaml(path, "the YAML file of a study")
    if not isinstance(content, dict):
        raise SettingsError(str(path), f"found {type(content).__name__}, expected the keys {', '.join(_KEYS)}.")
    return content


def _named(found: Any, where: str, problems: list[str]) -> dict[str, Options]:
    if not isinstance(found, dict) or not found:
        problems.append(f"{where}: expected one or more names with options, as {where}: {{name: {{option: value}}}}.")
        return {}
    for name in found:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            problems.append(
                f"{where}: found the name {name!r}, expected up to 60 letters, digits, spaces and , . _ + -"
            )
    return {str(name): _options(options, f"{where}.{name}", problems) for name, options in found.items()}


def _options(found: Any, where: str, problems: list[str]) -> Options:
    if not isinstance(found, dict):
        problems.append(f"{where}: found {found!r}, expected options as {{option: value}}.")
        return {}
    for name in found:
        if name in RESERVED:
            problems.append(f"{where}.{name}: is decided by the study (seeds, --output_dir). Leave it out.")
    return found


def _seeds(found: Any, problems: list[str]) -> tuple[int, ...]:
    is_list = isinstance(found, list) and bool(found)
    if not is_list or not all(type(seed) is int and seed >= 0 for seed in found) or len(set(found)) < len(found):
        problems.append(f"seeds: found {found!r}, expected different numbers of 0 or more, as [0, 1, 2].")
        return ()
    return tuple(found)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+]+", "_", name)
