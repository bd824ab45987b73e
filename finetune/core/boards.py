"""Where a run is shown beside its own record: TensorBoard, or Weights & Biases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data.errors import SettingsError
from finetune.core.option_groups import TrackerName

WANDB_PROJECT = "filrouge"


class Board(Protocol):
    """Something that shows numbers and pictures over the steps of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a step."""

    def picture(self, step: int, path: Path) -> None:
        """Show the PNG of a step."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoard:
    """Event files in the run's folder; a resumed run replaces what was shown beyond the step it goes on from."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the service, or with WANDB_MODE=offline a folder in the run's own; a resumed run goes on in it."""

    def __init__(self, run_dir: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        """Raise SettingsError where the service cannot be reached or does not know the user."""
        import wandb

        self._image: Callable[[str], Any] = wandb.Image
        try:
            self._run: Any = wandb.init(
                project=WANDB_PROJECT,
                name=run_dir.name,
                id=run_id,
                resume="allow",
                dir=str(run_dir),
                config=dict(settings),
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:  # wandb and pydantic raise many kinds
            raise SettingsError(
                "--report_to",
                f"wandb does not start: {str(error).splitlines()[0]} Run `wandb login`, set WANDB_MODE=offline, or "
                "leave the option out.",
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        self._run.log({"samples": self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class Faultless:
    """A board that is left out, with one warning, as soon as it fails: no tracker's fault may end a run."""

    def __init__(self, board: Board, name: str) -> None:
        self._board: Board | None = board
        self._name = name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(lambda board: board.log(step, values))

    def picture(self, step: int, path: Path) -> None:
        self._attempt(lambda board: board.picture(step, path))

    def close(self) -> None:
        self._attempt(lambda board: board.close())

    def _attempt(self, show: Callable[[Board], None]) -> None:
        if self._board is None:
            return
        try:
            show(self._board)
        except Exception as error:
            warnings.warn(f"{self._name} failed and is left out from here on: {error}", stacklevel=3)
            self._board = None


def require(name: TrackerName) -> None:
    """Raise SettingsError where the package of a board is not installed."""
    if name != "none" and find_spec(name) is None:
        raise SettingsError(
            "--report_to",
            f"{name} is not installed. Leave the option out (metrics.jsonl and curves.png are written in any case), or "
            'install it: pip install "filrouge[trackers]".',
        )


def open_board(
    name: TrackerName, run_dir: Path, *, run_id: str, first_step: int, settings: Mapping[str, Any]
) -> Board | None:
    """Return the board of that name for a run that goes on from first_step; None for "none"."""
    match name:
        case "none":
            return None
        case "tensorboard":
            return Faultless(TensorBoard(run_dir, first_step), name)
        case "wandb":
            return Faultless(WeightsAndBiases(run_dir, run_id, settings), name)
