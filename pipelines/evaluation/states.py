"""What is evaluated: the result of a run, or any adapter, and the states of it that its checkpoints hold."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data.errors import OutputError, SettingsError, nearest
from data.json_files import read_table
from pipelines.run_records import MANIFEST_NAME, METRICS_NAME, read_manifest, read_metrics

LOSS = "validation_loss"  # in a run's metrics.jsonl
AVERAGED = "averaged.safetensors"  # in a checkpoint of an optimizer that averages: the weights that are to be used
CHOICE = "choice.json"  # what an evaluation found to be the best checkpoint of a run
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_NOT_TRAINED = {"optimizer.safetensors"}

Selection = Literal["last", "best"] | int


@dataclass(frozen=True)
class State:
    """A run at one of its checkpoints, or as it ended.

    step: after how many optimiser steps; None where nothing says it. folder: of the checkpoint; None is the result.
    """

    step: int | None
    folder: Path | None


@dataclass(frozen=True)
class AskedRun:
    """A run folder of any method, a whole model in diffusers' format, or a file with an adapter or embeddings.

    label: a name that no other run of the evaluation has. manifest: what the run's folder says of it; {} for others'.
    """

    path: Path
    label: str
    manifest: Mapping[str, Any]

    @staticmethod
    def read(path: Path, label: str) -> AskedRun:
        """Return the run of a folder or file. Raises SettingsError where there is nothing."""
        if not path.exists():
            raise SettingsError(
                str(path), "does not exist; expected the folder of a run, or the file of an adapter or embeddings."
            )
        return AskedRun(path, label, read_manifest(path) if (path / MANIFEST_NAME).exists() else {})

    @cached_property
    def last_step(self) -> int | None:
        """After how many steps the run's result was written."""
        status = _read_json(self.path / "status.json") if self.path.is_dir() else {}
        step = status.get("last_durable_step")
        return step if isinstance(step, int) else None

    @cached_property
    def checkpoints(self) -> dict[int, Path]:
        """The folders of the checkpoints by step, in ascending order."""
        if not self.path.is_dir():
            return {}
        found = {
            int(match[1]): folder
            for folder in self.path.iterdir()
            if (match := _CHECKPOINT.fullmatch(folder.name)) and folder.is_dir()
        }
        return dict(sorted(found.items()))

    @property
    def result(self) -> State:
        """The run as it ended."""
        return State(self.last_step, None)

    @property
    def method(self) -> str:
        """The method that trained it, or "" where nothing says it."""
        return str(self.manifest.get("method", ""))

    @property
    def images_per_step(self) -> int | None:
        """How many images an optimiser step sees; None where nothing says it."""
        settings = self.manifest.get("settings", {})
        sizes = [settings.get(key) for key in ("train_batch_size", "gradient_accumulation_steps")]
        return sizes[0] * sizes[1] if all(isinstance(size, int) for size in sizes) else None

    @property
    def num_images(self) -> int | None:
        """How many images the run was trained on; None where nothing says it."""
        found = self.manifest.get("data", {}).get("num_images")
        return found if isinstance(found, int) else None

    def visits(self, step: int | None) -> tuple[int | None, float | None]:
        """Return how many images were seen up to a step, and how often each of them; None where nothing says it."""
        visits = None if step is None or self.images_per_step is None else step * self.images_per_step
        return visits, None if visits is None or not self.num_images else visits / self.num_images

    @property
    def held_out_losses(self) -> dict[int, float]:
        """The loss of held-out images at fixed noise by step, as far as the run measured it."""
        path = self.path / METRICS_NAME
        records = read_metrics(path) if path.is_file() else []
        return {int(record["step"]): float(record[LOSS]) for record in records if LOSS in record}

    def states(self, wanted: Literal["all"] | Sequence[Selection]) -> tuple[State, ...]:
        """Return the states that are asked for, by step; a checkpoint of the last step is the result.

        Raises SettingsError for a step without a checkpoint, or for "best" where no evaluation has chosen yet.
        """
        between = {step: folder for step, folder in self.checkpoints.items() if step != self.last_step}
        if wanted == "all":
            return (*(State(step, folder) for step, folder in between.items()), self.result)
        states = [self.state(selection) for selection in wanted]
        return tuple(sorted(dict.fromkeys(states), key=lambda state: (state.folder is None, state.step or 0)))

    def state(self, selection: Selection) -> State:
        """Return the state of one selection: the result, the best according to an evaluation, or a step."""
        if selection == "last":
            return self.result
        step = self._best() if selection == "best" else selection
        if step == self.last_step:
            return self.result
        if step not in self.checkpoints:
            known = ", ".join(str(step) for step in self.checkpoints) or "none"
            raise SettingsError(str(self.path), f"holds no checkpoint-{step}. Checkpoints there: {known}.")
        return State(step, self.checkpoints[step])

    def _best(self) -> int:
        choice = self.path / CHOICE
        if not choice.is_file():
            raise SettingsError(
                str(self.path),
                f"holds no {CHOICE}: no evaluation has compared its checkpoints. "
                "First: python pipelines/evaluate_prompts.py --checkpoints all --prompts FILE --adapter "
                f"{shlex.quote(str(self.path))}",
            )
        step = _read_json(choice).get("step")
        if not isinstance(step, int):
            raise SettingsError(str(choice), "names no step. Evaluate the checkpoints again.")
        return step

    def digest(self, state: State) -> str:
        """Return a hash of the files of a state; raise OutputError where a checkpoint is damaged."""
        result = _result_digest(self.path)
        return result if state.folder is None else _hash([result, *checkpoint_records(state.folder).values()])


def name_runs(paths: Sequence[Path]) -> tuple[AskedRun, ...]:
    """Return runs with labels that tell them apart: as much of the end of their paths as that takes."""
    resolved = [path.resolve() for path in paths]
    if repeated := sorted({str(path) for path in resolved if resolved.count(path) > 1}):
        raise SettingsError("--adapter", *[f"{path} is given twice. Give each run once." for path in repeated])
    labels = [path.stem if path.is_file() else path.name for path in resolved]
    depth = 2
    while len(set(labels)) < len(labels) and depth < 20:
        labels = ["/".join(path.with_suffix("").parts[-depth:]) for path in resolved]
        depth += 1
    return tuple(AskedRun.read(path, label) for path, label in zip(paths, labels, strict=True))


def parse_selections(text: str) -> Literal["all"] | list[Selection]:
    """Return what --checkpoints or --select says: "all", or a list of "last", "best" and steps.

    Raises SettingsError for anything else.
    """
    if text.strip() == "all":
        return "all"
    found: list[Selection] = []
    for part in (part.strip() for part in text.split(",")):
        if part in ("last", "best"):
            found.append(part)  # type: ignore[arg-type]
        elif part.isascii() and part.isdigit() and len(part) < 10:
            found.append(int(part))
        else:
            raise SettingsError(
                "checkpoints",
                f"found {part!r}, expected all, last, best or steps.{nearest(part, ('all', 'last', 'best'))}",
            )
    return found


def checkpoint_records(folder: Path) -> dict[str, str]:
    """Return the trained files of a checkpoint with their sha256, compared with its manifest.

    Raises OutputError for a checkpoint that is incomplete or damaged.
    """
    what = "that of a checkpoint, which is written last"
    said = read_table(folder / "manifest.json", what, needs=("files",))["files"]
    if not isinstance(said, dict) or not all(isinstance(record, dict) for record in said.values()):
        raise OutputError(str(folder / "manifest.json"), "says of no file what it holds. Leave this checkpoint out.")
    files = sorted(path for path in folder.glob("*.safetensors") if path.name not in _NOT_TRAINED)
    expected = {name for name in said if name.endswith(".safetensors")} - _NOT_TRAINED
    problems = [f"{name}: is missing." for name in sorted(expected - {path.name for path in files})]
    records = {}
    for path in files:
        records[path.name] = _hash_of_file(path)
        if said.get(path.name, {}).get("sha256") != records[path.name]:
            problems.append(f"{path.name}: its content is not what was written (sha256).")
    if problems or not files:
        raise OutputError(str(folder), *(problems or ["holds no trained weights."]), "Leave this checkpoint out.")
    return records


def _result_digest(path: Path) -> str:
    """Return a hash of all that a run's result is made of: weights, configurations, vocabularies."""
    if path.is_file():
        return _hash_of_file(path)
    files = list(path.glob("*.safetensors"))
    if (path / "model_index.json").exists():
        parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        files += [file for part in parts for file in (path / part).glob("*") if file.is_file()]
    if not files:
        raise SettingsError(str(path), "holds no result of a run; expected the folder of a run that has ended.")
    return _hash([f"{file.relative_to(path).as_posix()}:{_hash_of_file(file)}" for file in sorted(files)])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hash_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file; {} where there is no such file."""
    return read_table(path, "a file that a run or an evaluation wrote") if path.is_file() else {}
