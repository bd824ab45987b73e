"""The bases that runs stand on: each loaded once, and compared with what the runs were trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.errors import SettingsError
from pipelines.components import Components
from pipelines.devices import move
from pipelines.evaluation.states import AskedRun
from pipelines.fingerprints import differing_parts
from pipelines.runs import BaseNeed, is_whole, read_facts


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A base that runs stand on, as it stands in its folder: what a run has it predict is the run's own.

    need: what it was loaded from. identity: a hash of all its weights and of how it is sampled.
    """

    label: str
    need: BaseNeed
    components: Components
    identity: str

    @staticmethod
    def load(label: str, need: BaseNeed, device: torch.device | str) -> BaseModel:
        """Load a base. Raises SettingsError where there is no such model."""
        components = need.load()
        identity = hashlib.sha256(components.fingerprint.encode())
        for scheduler in (components.scheduler, components.sampler):
            identity.update(f"{type(scheduler).__name__}{sorted(scheduler.config.items())}".encode())
        move(components, device)
        return BaseModel(label, need, components, identity.hexdigest())


def base_of(run: AskedRun, asked_for: str | None) -> tuple[BaseNeed, str | None]:
    """Return the base of a run, and the fingerprint of its weights where the run says it.

    asked_for: the base that the user names; None takes the one that the run names.

    Raises SettingsError for a whole model that does not say what it was made from.
    """
    facts = _told_by_manifest(run.manifest) | read_facts(run.path)
    if is_whole(run.path) and asked_for is None and facts.get("base") is None:
        raise SettingsError(
            str(run.path),
            "is a whole model without the manifest of a run, which would say what it was trained from. "
            "Name its base: --pretrained_model_name_or_path.",
        )
    return BaseNeed.of(facts, asked_for), facts.get("base_fingerprint")


def _told_by_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's manifest says of its base, under the names of the facts."""
    settings = manifest.get("settings", {})
    said = {key: manifest.get(key) for key in ("base", "base_fingerprint")}
    return {**said, **{key: settings.get(key) for key in ("revision", "variant")}}


def load_bases(
    runs: Sequence[AskedRun], asked_for: str | None, device: torch.device | str
) -> tuple[dict[str, BaseModel], dict[str, str]]:
    """Return the bases by label, each loaded once, and the label of every run's base.

    Raises SettingsError where a run was trained on other weights than its base has.
    """
    needs = {run.label: base_of(run, asked_for) for run in runs}
    distinct = list(dict.fromkeys(need for need, _ in needs.values())) or [BaseNeed(asked_for or "swatch")]
    bases, labels, problems = {}, {}, []
    for number, need in enumerate(distinct):
        label = "base" if len(distinct) == 1 else f"base {number + 1}"
        bases[label] = BaseModel.load(label, need, device)
        found = bases[label].components.fingerprint
        for run, (of_run, fingerprint) in needs.items():
            if of_run != need:
                continue
            labels[run] = label
            others = differing_parts(fingerprint, found)
            if others:
                problems.append(
                    f"{run} was trained on another base, from which {need.name} differs in {', '.join(others)}. "
                    "Give the base it was trained on, or leave it out."
                )
    if problems:
        raise SettingsError("--adapter", *problems)
    return bases, labels
