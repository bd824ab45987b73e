"""Settings as a file, and what may differ between a run and its continuation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.errors import OutputError, SettingsError
from data.strict_yaml import read_yaml
from finetune.core.option_groups import LENGTHS, OptimiseSettings, Settings

# What may differ between a run and its continuation without changing what is learnt.
FREE_ON_RESUME = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run", "dataloader_num_workers"),
        *("checkpointing_steps", "checkpoints_total_limit", "logging_steps", "on_save_error", "ddp_timeout_minutes"),
        *("report_to", "tracker_project_name", "logging_dir"),
        *("push_to_hub", "hub_model_id", "hub_private_repo"),
        *("validation_steps", "num_validation_images", "validation_prompt", "identifier_report"),
    }
)


def to_yaml(settings: Settings) -> str:
    """Return the settings as a YAML file that `--config` reads back to equal settings."""
    values = settings.model_dump(mode="json")
    if values.get("num_train_epochs") is not None:
        values.pop("max_train_steps", None)  # the epochs stand in its place
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class Changes(NamedTuple):
    """Options that differ between a run and its continuation: {name: (value then, value now)}."""

    free: dict[str, tuple[Any, Any]]
    refused: dict[str, tuple[Any, Any]]


def changed_settings(old: Mapping[str, Any], new: Settings) -> Changes:
    """Return the options that differ, those that may (FREE_ON_RESUME, a longer run) apart from those that must not.

    old: the mapping that `to_yaml` wrote when the run was started; an option that it lacks counts as its default, one
    that only it has is refused with None as its value now.
    A run may grow only where nothing depends on its length: every schedule but a constant one does, and a pivot.
    """
    now = new.model_dump(mode="json")
    then = {**_plain_defaults(new), **old}
    may_grow = not _depends_on_length(now)
    changes = Changes({}, {})
    for name in [*now, *(name for name in old if name not in now)]:
        before, after = then.get(name), now.get(name)
        if name in now and name in then and before == after:
            continue
        grows = name in LENGTHS and isinstance(before, int) and isinstance(after, int) and after > before
        free = name in FREE_ON_RESUME or (grows and may_grow)
        (changes.free if free else changes.refused)[name] = (before, after)
    return changes


def _plain_defaults(settings: Settings) -> dict[str, Any]:
    defaults = {n: option.default for n, option in type(settings).model_fields.items() if not option.is_required()}
    return settings.model_copy(update=defaults).model_dump(mode="json", include=set(defaults))


def _depends_on_length(now: Mapping[str, Any]) -> bool:
    """Return whether a step of a run with these settings would be another one in a longer run."""
    return "pivot" in now or not str(now.get("lr_scheduler")).startswith("constant")


def refuse_changes(settings_file: Path, new: OptimiseSettings, num_processes: tuple[int, int] = (1, 1)) -> None:
    """Raise OutputError naming every option that must not differ between a run and its continuation.

    settings_file: what `to_yaml` wrote when the run was started; OutputError too where it cannot be read.
    num_processes: how many there were and how many there are. On another number of them --train_batch_size must change
    so that as many images as before are taken at once: a step's place in the run says which images are its own.
    """
    try:
        old = read_yaml(settings_file, "the settings of the run to resume")
    except SettingsError as error:
        told = [f"the settings of the run to resume: {problem}" for problem in error.problems]
        raise OutputError(error.where, *told) from error
    if not isinstance(old, dict):
        raise OutputError(str(settings_file), f"found {old!r}, expected the settings of the run to resume.")
    refused = changed_settings(old, new).refused
    problems = []
    if num_processes[0] != num_processes[1]:
        then, _ = refused.pop("train_batch_size", (new.train_batch_size, None))
        problems += _other_images_at_once(then, new.train_batch_size, *num_processes)
    of_length = "It may grow, under a constant --lr_scheduler."
    if "pivot" in type(new).model_fields:
        of_length = "It may not change: --pivot is a share of it."
    problems += [
        f"--{name}: found {now!r}, the run was started with {then!r}." + (f" {of_length}" if name in LENGTHS else "")
        for name, (then, now) in refused.items()
    ]
    if problems:
        raise OutputError(str(settings_file), *problems, "Restore these, or start a new run with another --output_dir.")


def _other_images_at_once(size_then: int, size_now: int, processes_then: int, processes_now: int) -> list[str]:
    """Return what is wrong where processes take another number of images at once together, and how to keep it."""
    then, now = size_then * processes_then, size_now * processes_now
    if then == now:
        return []
    keep = f"Start {processes_then}"
    if then % processes_now == 0:
        keep = f"Write --train_batch_size {then // processes_now}, or start {processes_then}"
    return [
        f"--train_batch_size: found {size_now}, so {now} images at once with {processes_now} processes; the run was "
        f"started with {size_then}, so {then} with {processes_then}. {keep}."
    ]
