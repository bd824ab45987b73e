"""What a run tells while it goes on: a progress bar, metrics.jsonl, and a board when asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

from data.progress import Progress
from finetune.core import files
from finetune.core.boards import Board


class Tracker:
    """Records one line of metrics.jsonl for each logged step; the record survives a crash and a resumed run."""

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        last_step: int,
        images_per_step: int,
        board: Board | None = None,
        enabled: bool = True,
    ) -> None:
        """enabled: False for all processes of a run but the first, which write nothing and have no board."""
        self.path = run_dir / "metrics.jsonl"
        if enabled:
            self._drop_lines_after(first_step)
        self._images_per_step = images_per_step
        self._bar = Progress(total=last_step, initial=first_step, unit="step", desc="train", disable=not enabled)
        self._started, self._first_step = time.monotonic(), first_step
        self._board = board

    def step(self, step: int, loss: float) -> None:
        seconds = time.monotonic() - self._started
        rate = (step - self._first_step) * self._images_per_step / max(seconds, 1e-9)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s", refresh=False)
        self._bar.update(1)

    def log(self, step: int, **values: float) -> None:
        files.append_line(self.path, json.dumps({"step": step, **values}))
        if self._board is not None:
            self._board.log(step, values)

    def picture(self, step: int, path: Path) -> None:
        """Show the sample sheet of a step."""
        if self._board is not None:
            self._board.picture(step, path)

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _drop_lines_after(self, step: int) -> None:
        """Forget lines beyond the step from which a run goes on, and a last line that was torn by a crash."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
        files.write_bytes_atomic(self.path, "".join(f"{line}\n" for line in kept).encode())
