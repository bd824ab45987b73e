"""A training script in a process of its own, with a clock on its U-Net, its other parts and its optimizer.

The script is not changed: `timed_run` starts this file, which puts clocks around the classes that diffusers,
transformers and torch train with, and then runs the script as python would. So one clock serves every loop that is
made of these classes, ours and any other.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("unet", "text_encoder", "vae", "clip", "optimizer")


@dataclass(frozen=True)
class Part:
    """What one part took of a phase. items: pictures or captions that went in."""

    seconds: float
    cpu_seconds: float
    calls: int
    items: int


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: what stands before the first step, a step, or what comes after the last one.

    end: on the machine's monotonic clock. peak_mib: largest resident memory of the process up to then.
    """

    end: float
    seconds: float
    cpu_seconds: float
    peak_mib: float
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class TimedRun:
    """What a run took. A step lasts from the end of the optimizer's last step to the end of its own.

    first_encoding: when the autoencoder first read a picture, on the clock of `Phase.end`; None where it read none.
    """

    before: Phase
    steps: tuple[Phase, ...]
    closing: Phase
    first_encoding: float | None
    num_threads: int

    @property
    def later_steps(self) -> tuple[Phase, ...]:
        """All steps but the first, which makes what the others find in place."""
        return self.steps[1:]

    @property
    def step_seconds(self) -> float:
        return statistics.median(step.seconds for step in self.later_steps)

    @property
    def step_cpu_seconds(self) -> float:
        return statistics.median(step.cpu_seconds for step in self.later_steps)

    @property
    def training_peak_mib(self) -> float:
        return self.steps[-1].peak_mib

    def share(self, part: str) -> float:
        """Return which share of the time of the later steps a part takes."""
        return sum(step.parts[part].seconds for step in self.later_steps) / sum(s.seconds for s in self.later_steps)

    def items(self, part: str) -> int:
        """Return how many pictures or captions a part read in the whole run."""
        return sum(phase.parts[part].items for phase in (self.before, *self.steps, self.closing))

    def epoch_step_seconds(self, num_steps: int) -> tuple[float, float]:
        """Return the time of a step in the first epoch, with all encoding, and in the later ones.

        num_steps: of an epoch. What is encoded before the first step belongs to the first epoch.
        """
        assert num_steps < len(self.steps), "a run has later epochs"
        start = self.before.end if self.first_encoding is None else min(self.first_encoding, self.before.end)
        first = (self.steps[num_steps - 1].end - start) / num_steps
        return first, statistics.median(step.seconds for step in self.steps[num_steps:])


def timed_run(
    script: Path, arguments: Sequence[str], *, log: Path, num_threads: int, environment: Mapping[str, str]
) -> TimedRun:
    """Run a script and return what it took; SystemExit with the end of its log where it fails.

    log: gets what the script prints; the clock's record lies beside it. environment: variables added to those of this
    process.
    """
    record = log.with_suffix(".json")
    record.unlink(missing_ok=True)
    command = [sys.executable, __file__, str(record), str(script), *arguments]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONPATH": path, **environment}
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    ended = time.monotonic()
    if status or not record.exists():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{script} ended with {os.waitstatus_to_exitcode(status)}; see {log}\n{tail}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return _read(record, started, ended, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


def _read(record: Path, started: float, ended: float, cpu_seconds: float, peak_mib: float) -> TimedRun:
    told = json.loads(record.read_text(encoding="utf-8"))
    ends = [started, *(phase["end"] for phase in told["phases"])]
    cpu = [0.0, *(phase["cpu"] for phase in told["phases"])]
    # the process goes on after its script has ended: what it frees and unloads is part of the closing
    ends[-1], cpu[-1], told["phases"][-1]["peak_mib"] = ended, cpu_seconds, peak_mib
    phases = [
        Phase(
            end=ends[k + 1],
            seconds=ends[k + 1] - ends[k],
            cpu_seconds=cpu[k + 1] - cpu[k],
            peak_mib=phase["peak_mib"],
            parts={name: Part(*phase["parts"].get(name, (0.0, 0.0, 0, 0))) for name in PARTS},
        )
        for k, phase in enumerate(told["phases"])
    ]
    before, *steps, closing = phases
    return TimedRun(before, tuple(steps), closing, told["first_encoding"], told["num_threads"])


class _Clock:
    """Adds up the time of each part, phase by phase."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self.phases: list[dict[str, Any]] = []
        self.first_encoding: float | None = None
        self._parts: dict[str, list[float]] = {}
        self._open: tuple[str, float, float, int] | None = None

    def begin(self, part: str, items: int = 0) -> None:
        self._open = (part, time.monotonic(), time.process_time(), items)

    def end(self) -> None:
        if self._open is None:
            return
        part, wall, cpu, items = self._open
        self._open = None
        spent = (time.monotonic() - wall, time.process_time() - cpu, 1, items)
        self._parts[part] = [a + b for a, b in zip(self._parts.get(part, [0, 0, 0, 0]), spent, strict=True)]

    def go_on_with(self, part: str) -> None:
        self.end()
        self.begin(part)

    def end_phase(self) -> None:
        import torch

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        self.phases.append(
            {"end": time.monotonic(), "cpu": time.process_time(), "peak_mib": peak, "parts": self._parts}
        )
        self._parts = {}
        # after each phase: a run that is killed leaves what it had
        told = {"phases": self.phases, "first_encoding": self.first_encoding, "num_threads": torch.get_num_threads()}
        self._record.write_text(json.dumps(told), encoding="utf-8")


def _put_clocks(clock: _Clock) -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
    from transformers import CLIPTextModel

    def around(owner: Any, name: str, part: str, items: Callable[..., int] = lambda *_, **__: 0) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            clock.begin(part, items(*args, **kwargs))
            try:
                return inner(*args, **kwargs)
            finally:
                clock.end()

        setattr(owner, name, timed)

    def pictures(_: object, pixels: torch.Tensor, *__: Any, **___: Any) -> int:
        if clock.first_encoding is None:
            clock.first_encoding = time.monotonic()
        return len(pixels)

    around(AutoencoderKL, "encode", "vae", pictures)
    around(AutoencoderKL, "decode", "vae")
    around(CLIPTextModel, "forward", "text_encoder", lambda _, ids=None, *__, **k: len(k.get("input_ids", ids)))
    for name in ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"):
        around(torch.nn.utils, name, "clip")

    forward = UNet2DConditionModel.forward

    @functools.wraps(forward)
    def timed_forward(
        unet: Any, sample: Any, timestep: Any, encoder_hidden_states: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if torch.is_grad_enabled() and not clock.phases:
            clock.end_phase()  # the first step begins
        clock.begin("unet", len(sample))
        out = forward(unet, sample, timestep, encoder_hidden_states, *args, **kwargs)
        clock.end()
        prediction = out[0]
        if prediction.requires_grad:
            prediction.register_hook(lambda _: clock.begin("unet"))
            if encoder_hidden_states.requires_grad:
                # its gradient is complete when the U-Net is done; what is left of the way back is the text encoder's
                encoder_hidden_states.register_hook(lambda _: clock.go_on_with("text_encoder"))
        return out

    UNet2DConditionModel.forward = timed_forward
    backward = torch.Tensor.backward

    @functools.wraps(backward)
    def timed_backward(*args: Any, **kwargs: Any) -> None:
        backward(*args, **kwargs)
        clock.end()

    torch.Tensor.backward = timed_backward  # type: ignore[method-assign]

    def stepped(*_: object) -> None:
        clock.end()
        clock.end_phase()

    register_optimizer_step_pre_hook(lambda *_: clock.begin("optimizer"))
    register_optimizer_step_post_hook(stepped)


def main() -> None:
    """Run a script under the clock: timed_runs.py RECORD SCRIPT [ARGUMENT ...]."""
    record, script, *arguments = sys.argv[1:]
    clock = _Clock(Path(record))
    _put_clocks(clock)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        clock.end_phase()


if __name__ == "__main__":
    main()
