"""One run from its settings to its artefact: folder, lock, plan, training, export, and a truthful status."""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration

from data.errors import FilrougeError, Interrupted, NonFiniteError, OutputError, SettingsError, Stopped, UploadError
from data.exits import as_known
from data.plain_text import plain, plain_lines
from data.splits import manifest_hash
from finetune.core import files, hub, processes, stops
from finetune.core.checkpoint import Checkpoint, CheckpointStore, RunLock, RunState, RunStatus, prepare_run_folder
from finetune.core.contradictions import TYPED
from finetune.core.cost import Meter
from finetune.core.data_problems import telling_data_problems
from finetune.core.hardware import require
from finetune.core.loop import GO_ON, train
from finetune.core.memory import forecast
from finetune.core.method import Method
from finetune.core.option_groups import PART_RATES, fitting_warmup
from finetune.core.setting_changes import refuse_changes, to_yaml
from finetune.core.settings import LoopSettings
from finetune.core.threads import use_threads
from finetune.core.tracking import Tracker, start_trackers
from pipelines.fingerprints import differing_parts
from pipelines.run_records import MANIFEST_NAME, read_manifest

Settings = TypeVar("Settings", bound=LoopSettings)
_MANIFEST_OF_A_RUN = (
    "what the run wrote when it started, which says whose the checkpoints are. Restore it, or start a new run with "
    "another --output_dir"
)
_LIBRARIES = (
    "filrouge",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "tifffile",
)


def run(settings: Settings, build: Callable[[Settings, Accelerator], Method], *, default_dir: str) -> None:
    """Build a method, train it, export it, and print how to use the result.

    default_dir: the run folder where --output_dir is not given, below `runs/`.
    """
    run_dir = (settings.output_dir or Path("runs") / default_dir).absolute()
    with stops.listening(partial(_end_by_force, run_dir)):
        _run(settings, build, run_dir)


def _run(settings: Settings, build: Callable[[Settings, Accelerator], Method], run_dir: Path) -> None:
    require(settings)
    processes.join(settings.ddp_timeout_minutes)
    settings = _on_this_machine(settings)
    accelerator = Accelerator(
        mixed_precision=_mixed_precision(settings),
        gradient_accumulation_steps=1,
        log_with=list(settings.report_to) or None,
        project_config=ProjectConfiguration(str(run_dir), logging_dir=str(run_dir / settings.logging_dir)),
    )
    if accelerator.is_main_process:
        for warning in settings.origin.warnings:
            print(plain(f"filrouge: warning: {warning}"), file=sys.stderr, flush=True)
    use_threads(settings.num_threads, accelerator.device)
    if settings.push_to_hub and accelerator.is_main_process:
        settings = hub.with_repository(settings, run_dir)
    if settings.dry_run:
        method, expected = forecast(build, settings, accelerator)
        settings = _with_fitting_warmup(method, settings, accelerator)
        accelerator.print(plain_lines(_plan(method, settings, accelerator, run_dir, expected.lines())))
        return
    resume = settings.resume_from_checkpoint is not None
    if accelerator.is_main_process:
        goes_on = resume and not (settings.resume_from_checkpoint == "auto" and _is_new(run_dir))
        with telling_data_problems(settings, accelerator):
            prepare_run_folder(run_dir, overwrite=settings.overwrite_output_dir, resume=goes_on)
            with RunLock(run_dir):
                pass  # nobody else is at work there; it is taken for the whole run below
    processes.wait(accelerator)
    with RunLock(run_dir, enabled=accelerator.is_main_process):
        status = RunStatus(run_dir)
        if accelerator.is_main_process:
            status.settle()
        try:
            method = build(settings, accelerator)
            settings = _with_fitting_warmup(method, settings, accelerator)
            max_train_steps = _max_train_steps(method, settings, accelerator)
            run_id = _run_id(run_dir, resume=resume, accelerator=accelerator)
            store = CheckpointStore(run_dir, run_id, lambda step: _tell(status, accelerator, "running", step, ""))
            resume_from = _resume_point(store, settings, method, accelerator)
            processes.wait(accelerator)
        except Interrupted as request:
            text = "stopped while it was loading, before the first step. Repeat the command to run it."
            raise Stopped(str(run_dir), text, exit_code=request.exit_code) from None
        if accelerator.is_main_process:
            files.write_bytes_atomic(run_dir / "settings.yaml", to_yaml(settings).encode())
            manifest = _manifest(method, settings, store.run_id, accelerator)
            files.write_json_atomic(run_dir / MANIFEST_NAME, manifest)
            if skipped := manifest["data"].get("skipped"):
                lines = "".join(f"{fault['where']}: {fault['reason']}\n" for fault in skipped)
                files.write_bytes_atomic(run_dir / "skipped.txt", lines.encode("utf-8", "backslashreplace"))
            accelerator.print(plain_lines(_plan(method, settings, accelerator, run_dir)))
        if settings.push_to_hub and accelerator.is_main_process:
            hub.create_repository(settings)
        first_step = resume_from.step if resume_from else 0
        meter = Meter(
            run_dir,
            first_step=first_step,
            images_per_step=_global_batch(settings, accelerator),
            num_processes=accelerator.num_processes,
        )
        try:
            _tell(status, accelerator, "running", first_step, "")
            with closing(_tracker(settings, store, accelerator, meter, first_step, max_train_steps)) as tracker:
                how_to_use = train(
                    method,
                    settings,
                    max_train_steps=max_train_steps,
                    accelerator=accelerator,
                    store=store,
                    tracker=tracker,
                    resume_from=resume_from,
                )
            if accelerator.is_main_process:
                meter.write(max_train_steps)
                if meter.done:
                    print(
                        f"encoded     {meter.done['encoded']:,} images and captions; {meter.done['found_encoded']:,} "
                        "were found, encoded by earlier runs"
                    )
                print(plain_lines(how_to_use))
                from finetune.core.curves import draw_curves  # matplotlib, which a dry run has no use for

                draw_curves(tracker.path, run_dir / "curves.png")
        except BaseException as error:
            if accelerator.is_main_process:
                _record_end(error, store, status, meter)
            raise
        _tell(status, accelerator, "done", max_train_steps, "", exit_code=0)
        if settings.push_to_hub and accelerator.is_main_process:
            try:
                print(f"uploaded to {hub.upload(settings, run_dir)}")
            except UploadError as error:
                status.write(
                    "done", last_durable_step=max_train_steps, reason=str(error), exit_code=UploadError.exit_code
                )
                raise


def _record_end(error: BaseException, store: CheckpointStore, status: RunStatus, meter: Meter) -> None:
    """Write how a run has ended before its time, and add to the error what of it is saved.

    A disk that takes no more must not hide the error.
    """
    last = store.find_latest()
    is_stop = isinstance(error, Stopped | KeyboardInterrupt)
    known = as_known(error, store.run_dir.name)
    reason = f"{type(error).__name__}: {error}" if known is None else str(known)
    code = getattr(error if known is None else known, "exit_code", 130 if is_stop else 1)
    if not isinstance(error, Stopped | NonFiniteError):  # which name it; and what is not finite will be so again
        saved = "No step of the run is saved." if last is None else f"{last.folder.name} holds the run so far. {GO_ON}"
        error.add_note(f"  {saved}")
    try:
        status.write(
            "stopped" if is_stop else "failed",
            last_durable_step=last.step if last else 0,
            reason=reason,
            exit_code=code,
        )
        if last is not None:
            meter.write(last.step)
    except FilrougeError as unwritten:
        print(f"filrouge: warning: {unwritten}", file=sys.stderr, flush=True)


def _end_by_force(run_dir: Path, number: int) -> None:
    """Write that a run was asked twice to stop, and that it waited in a library meanwhile."""
    with suppress(OSError, ValueError, KeyError):
        before = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
        if before["status"] == "running" and RunLock.is_held(run_dir):
            reason = "was asked twice to stop, and did not answer"
            step = before["last_durable_step"]
            RunStatus(run_dir).write("stopped", last_durable_step=step, reason=reason, exit_code=128 + number)


def _is_new(run_dir: Path) -> bool:
    """Return whether a folder holds nothing that a run writes first, whole or half."""
    names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    return not any(name.removeprefix(".tmp-") in ("settings.yaml", "manifest.json", "status.json") for name in names)


def _tracker(
    settings: LoopSettings,
    store: CheckpointStore,
    accelerator: Accelerator,
    meter: Meter,
    first_step: int,
    last_step: int,
) -> Tracker:
    trackers = []
    if accelerator.is_main_process:
        trackers = start_trackers(accelerator, settings, store.run_dir, run_id=store.run_id, first_step=first_step)
    return Tracker(
        store.run_dir,
        first_step=first_step,
        last_step=last_step,
        images_per_step=_global_batch(settings, accelerator),
        done=meter.done,
        shown_in=trackers,
        enabled=accelerator.is_main_process,
        outlives_full_disk=settings.on_save_error == "warn",
    )


def _tell(
    status: RunStatus, accelerator: Accelerator, state: RunState, step: int, reason: str, exit_code: int | None = None
) -> None:
    if accelerator.is_main_process:
        status.write(state, last_durable_step=step, reason=reason, exit_code=exit_code)


def _on_this_machine(settings: Settings) -> Settings:
    """Return the settings with a precision that this machine has; that of a recipe gives way, and the plan says so."""
    wanted, launched = settings.mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION")
    if wanted in (None, launched) or settings.strength("mixed_precision") >= TYPED:
        return settings
    if launched not in (None, "", "no"):
        return settings.giving_way("mixed_precision", None, f"accelerate was launched with {launched}")
    if not torch.cuda.is_available() or PartialState().device.type == "cpu":
        return settings.giving_way("mixed_precision", None, "there is no GPU")
    if wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return settings.giving_way("mixed_precision", "fp16", "this GPU computes no bf16")
    return settings


def _with_fitting_warmup(method: Method, settings: Settings, accelerator: Accelerator) -> Settings:
    """Return the settings with a warm-up that is over before the epochs asked for; that of a recipe gives way."""
    if settings.num_train_epochs is None:
        return settings
    steps = _num_steps(settings.num_train_epochs, method, settings, accelerator)
    weaker = settings.strength("lr_warmup_steps") < settings.strength("num_train_epochs")
    if settings.lr_warmup_steps < steps or not weaker:
        return settings
    why = f"--num_train_epochs {settings.num_train_epochs} makes {steps} steps"
    return settings.giving_way("lr_warmup_steps", fitting_warmup(steps), why)


def _mixed_precision(settings: LoopSettings) -> str | None:
    """Return the run's precision; what the launcher was configured with must agree with what was asked for."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    asked = settings.mixed_precision
    is_typed = settings.strength("mixed_precision") >= TYPED
    if asked is not None and is_typed and launched not in (None, "", asked):
        raise SettingsError(
            "--mixed_precision",
            f"found {asked}, but accelerate was launched with {launched}. Leave the option out, or give it to "
            "accelerate launch.",
        )
    return asked


def _global_batch(settings: LoopSettings, accelerator: Accelerator) -> int:
    return settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes


def _max_train_steps(method: Method, settings: LoopSettings, accelerator: Accelerator) -> int:
    if settings.num_train_epochs is None:
        return settings.max_train_steps
    steps = _num_steps(settings.num_train_epochs, method, settings, accelerator)
    if settings.lr_warmup_steps >= steps:
        raise SettingsError(
            "--lr_warmup_steps",
            f"found {settings.lr_warmup_steps}, expected fewer than the {steps} steps of {settings.num_train_epochs} "
            "epochs. Lower it.",
        )
    return steps


def _num_steps(num_epochs: int, method: Method, settings: LoopSettings, accelerator: Accelerator) -> int:
    return math.ceil(num_epochs * len(method.dataset) / _global_batch(settings, accelerator))


def _plan(
    method: Method, settings: LoopSettings, accelerator: Accelerator, run_dir: Path, memory: Sequence[str] = ()
) -> list[str]:
    """Return the plan of a run in lines: images, steps, epochs, parameters, memory where it was computed, disk."""
    batch = _global_batch(settings, accelerator)
    steps = _max_train_steps(method, settings, accelerator)
    parts = {part.name: sum(p.numel() for p in part.named_parameters().values()) for part in method.trainables}
    trained = sum(parts.values())
    checkpoint_mib = (
        sum(t.nbytes for part in method.trainables for t in part.state().values()) / 2**20 + trained * 8 / 2**20
    )
    written = math.ceil(steps / settings.checkpointing_steps)
    kept = min(written, settings.checkpoints_total_limit or written)
    return [
        f"method      {method.name} -> {run_dir}",
        f"images      {len(method.dataset)} with {len(method.dataset.captions)} captions"
        + (f", and {len(method.prior)} of the class to preserve" if method.prior is not None else ""),
        f"steps       {steps} of {batch} images ({settings.train_batch_size} x {settings.gradient_accumulation_steps} "
        f"accumulated x {accelerator.num_processes} processes) = {steps * batch / len(method.dataset):.1f} epochs",
        f"trained     {trained:,} parameters: " + ", ".join(f"{name} {count:,}" for name, count in parts.items()),
        *memory,
        f"disk        {kept} checkpoints of {checkpoint_mib:.1f} MiB",
        f"rate        {_rate(settings)}",
        f"device      {accelerator.device}, precision {accelerator.mixed_precision}, {torch.get_num_threads()} threads",
        *settings.origin.plan,
        *(f"warning     {line}" for line in settings.origin.warnings),
        *method.notes,
    ]


def _rate(settings: LoopSettings) -> str:
    """Return the learning rates of a run and their course in words."""
    rates = [(name.removesuffix("_lr"), rate) for name, rate in settings if name in PART_RATES and rate is not None]
    own = [f", {part} {rate:g}" for part, rate in rates]
    scaled = " times the images of a step" if settings.scale_lr else ""
    warmup = f", {settings.lr_warmup_steps} steps of warm-up" if settings.lr_warmup_steps else ""
    return f"{settings.learning_rate:g}{''.join(own)}{scaled}, {settings.lr_scheduler}{warmup}, {settings.optimizer}"


def _manifest(method: Method, settings: LoopSettings, run_id: str, accelerator: Accelerator) -> dict[str, Any]:
    data = method.dataset.manifest()
    return {
        "method": method.name,
        "run_id": run_id,
        "seed": settings.seed,
        "num_processes": accelerator.num_processes,
        "settings": settings.model_dump(mode="json"),
        "data": data,
        "data_hash": manifest_hash(data),
        "prior": None if method.prior is None else method.prior.manifest(),
        **method.manifest,
        "versions": {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
    }


def _run_id(run_dir: Path, *, resume: bool, accelerator: Accelerator) -> str:
    if resume and (any(run_dir.glob("checkpoint-*")) or (run_dir / MANIFEST_NAME).exists()):
        return str(read_manifest(run_dir, _MANIFEST_OF_A_RUN, needs=("run_id",))["run_id"])
    return secrets.token_hex(4) if accelerator.is_main_process else "follower"


def _resume_point(
    store: CheckpointStore, settings: LoopSettings, method: Method, accelerator: Accelerator
) -> Checkpoint | None:
    """Return the checkpoint to go on from, once settings, data and base are known to be those it was made with."""
    if settings.resume_from_checkpoint is None:
        return None
    if accelerator.is_main_process:
        for stale in store.clean():
            accelerator.print(f"resume: removed {stale}, left by a save that did not end")
    processes.wait(accelerator)
    if settings.resume_from_checkpoint == "auto":
        newest = store.newest_or_none()
        if newest is None:
            accelerator.print("resume: no checkpoint is there, the run begins anew")
            return None
        checkpoint = newest
    else:
        checkpoint = store.resolve(settings.resume_from_checkpoint)
    before = read_manifest(store.run_dir, _MANIFEST_OF_A_RUN)
    now = json.loads(json.dumps(_manifest(method, settings, store.run_id, accelerator)))
    problems = [
        f"{key} is not what the checkpoint was made with: it was {before.get(key)}, it is {now.get(key)}."
        for key in ("method", "data", "prior", "vae", "text_encoder")
        if before.get(key) != now.get(key)
    ]
    told, found = before.get("base_fingerprint"), now.get("base_fingerprint")
    if told != found:
        others = ", ".join(differing_parts(told, found, exact=True)) or "whether there is one"
        problems.append(f"base_fingerprint is not what the checkpoint was made with: the base differs in {others}.")
    if problems:
        raise OutputError(str(store.run_dir), *problems, "Start a new run with another --output_dir.")
    # a run of an older version does not say how many there were
    num_processes = (before.get("num_processes", accelerator.num_processes), accelerator.num_processes)
    refuse_changes(store.run_dir / "settings.yaml", settings, num_processes)
    return checkpoint
