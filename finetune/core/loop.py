"""The one training loop. It knows no method: it asks for a loss, steps, keeps checkpoints, and stops when told to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor

from data.errors import DiskError, Interrupted, NonFiniteError, OutputError, Stopped
from data.json_files import read_table
from data.randomness import derive
from finetune.core import files, stops
from finetune.core.checkpoint import Checkpoint, CheckpointStore
from finetune.core.loader import Loader, own_positions
from finetune.core.method import Batch, Method
from finetune.core.optimizer_state import load_optimizer, optimizer_to_tensors
from finetune.core.optimizers import averages_itself, build_optimizer, evaluation_weights, learning_rate
from finetune.core.processes import asked_to_stop, sum_gradients, summed, wait
from finetune.core.settings import LoopSettings
from finetune.core.tracking import Tracker
from pipelines.evaluation.states import AVERAGED
from pipelines.finite import LARGEST_HALF, largest, not_finite

# positions that are prepared together, or an epoch where that is more: frozen parts are in memory meanwhile
_PREPARED = 1024
_OF_A_CHECKPOINT = "what the checkpoint was written with. Resume from another one"
# fp16 alone: how many steps in a row the loss scaler may skip while it looks for a scale
_LARGEST_SKIP = 20
# saves in a row that may fail under --on_save_error warn
_MOST_FAILED_SAVES = 3


def train(
    method: Method,
    settings: LoopSettings,
    *,
    max_train_steps: int,
    accelerator: Accelerator,
    store: CheckpointStore,
    tracker: Tracker,
    resume_from: Checkpoint | None,
) -> list[str]:
    """Train a method up to max_train_steps, from a checkpoint or from the start, export it, and return how to use it.

    The last step is checkpointed too. Step k takes the positions [k B, (k + 1) B) of the run, B = train_batch_size x
    gradient_accumulation_steps x processes; every process takes its share of each micro-batch. A prior image comes
    beside each of them and is not counted: the loss is the mean over the images plus the mean over the prior's.
    Gradients are summed over processes by hand, so a method may train any number of modules and none is wrapped.

    Raises NonFiniteError before a step that would spoil the weights or after one that has, and Stopped (after a
    checkpoint) on a request to stop: what a measurement or a sheet of samples it falls into would have said, the
    continuation says.
    """
    named = {f"{part.name}/{name}": p for part in method.trainables for name, p in part.named_parameters().items()}
    assert named, "a method trains something"
    exact = (torch.float32, torch.float64)
    assert all(p.dtype in exact for p in named.values()), "trained weights are float32 at least"
    micro_batch = settings.train_batch_size * accelerator.num_processes
    global_batch = micro_batch * settings.gradient_accumulation_steps
    optimizer = make_optimizer(method, settings, global_batch, max_train_steps)
    rate = _rate(optimizer, settings, max_train_steps)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    first_step = 0
    untold: _Told | None = None
    if resume_from is not None:
        first_step, untold = _restore(resume_from, method, optimizer, named, accelerator)
    stepper = accelerator.prepare_optimizer(optimizer)
    parameters = list(named.values())  # a list: an iterator would be used up by the first of its two uses
    skipped, prepared, failed_saves = 0, first_step, 0

    def set_rates(step: int) -> None:
        hold_still(method, step / max_train_steps)
        factor = rate(step)
        for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = base_rate * factor

    def tell(done: int, told: _Told) -> _Told | None:
        """Measure and log a step where that is due; return what a request to stop has kept from being told."""
        is_last = done == max_train_steps
        measured: dict[str, float] = {}
        if method.validate is not None and (is_last or done % settings.validation_steps == 0):
            try:
                with evaluation_weights(optimizer), accelerator.autocast():
                    measured = method.validate()
            except Interrupted:
                return told
        if measured or is_last or done % settings.logging_steps == 0:
            tracker.log(done, loss=told[0], grad_norm=told[1], **_rates(method, optimizer), **measured)
        return None

    for part in method.trainables:
        part.module.train()
    loader = Loader(method, settings, accelerator, range(first_step, max_train_steps))
    with stops.listening(), stops.deferred(), loader as batches:
        if untold is not None:
            set_rates(first_step - 1)
            untold = tell(first_step, untold) if accelerator.is_main_process else None
            if stop := asked_to_stop(accelerator):  # again, and the checkpoint still has it to tell
                raise _stopped(store, first_step, max_train_steps, stop)
        for step in range(first_step, max_train_steps):
            if step == prepared and method.prepare is not None:
                ahead = math.ceil(max(_PREPARED, len(method.dataset)) / global_batch)
                prepared = min(step + ahead, max_train_steps)
                try:
                    with stops.at_once(), accelerator.autocast():
                        tracker.prepared(method.prepare(own_positions(settings, accelerator, range(step, prepared))))
                except Interrupted:
                    prepared = step
                if stop := asked_to_stop(accelerator):
                    if accelerator.is_main_process and step > 0:
                        _checkpoint(step, method, optimizer, named, store, accelerator, untold)
                    raise _stopped(store, step, max_train_steps, stop)
            set_rates(step)
            loss_sum = torch.zeros((), dtype=torch.float64)
            seen: list[Batch] = []
            for micro in range(settings.gradient_accumulation_steps):
                batch = next(batches).to(accelerator.device)
                # dropout alone reads the global generator
                torch.manual_seed(derive(settings.seed, "dropout", step, micro, accelerator.process_index))
                with accelerator.autocast():
                    losses = method.objective.losses(batch)
                accelerator.backward(losses.sum() / global_batch)
                loss_sum += losses.detach().double().sum().cpu()
                seen.append(batch)
            sum_gradients(parameters, accelerator)
            loss = float(summed(loss_sum, accelerator)) / global_batch
            accelerator.unscale_gradients(stepper)
            norm = _clipped(parameters, settings.max_grad_norm)
            if not math.isfinite(norm) and accelerator.scaler is not None and math.isfinite(loss):
                skipped += 1
            else:
                skipped = 0
            if not math.isfinite(loss) or (not math.isfinite(norm) and not 0 < skipped <= _LARGEST_SKIP):
                found = f"loss {loss}, gradient norm {norm}: expected finite numbers. The weights were not changed by "
                raise _spoilt(step, loss, norm, found + "this step", seen, store, settings, accelerator)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
            done = step + 1
            if not float(_norm(parameters)) < LARGEST_HALF and not (weight := largest(parameters)) < LARGEST_HALF:
                found = f"after it the largest weight is {weight:.4g}; expected less than {LARGEST_HALF:.0f}, as half "
                found += "precision holds no more. The weights of this step were not saved"
                raise _spoilt(step, loss, norm, found, seen, store, settings, accelerator)
            for part in method.trainables:
                part.after_step(done)
            if accelerator.is_main_process:
                tracker.step(done, loss)
                untold = tell(done, (loss, norm))
            stop = asked_to_stop(accelerator)
            if done % settings.checkpointing_steps == 0 or done == max_train_steps or stop:
                if accelerator.is_main_process:
                    try:
                        _checkpoint(done, method, optimizer, named, store, accelerator, untold)
                        store.rotate(settings.checkpoints_total_limit)
                        failed_saves = 0
                    except DiskError as error:
                        failed_saves += 1
                        must_save = stop or done == max_train_steps or failed_saves > _MOST_FAILED_SAVES
                        if settings.on_save_error == "stop" or must_save:
                            raise
                        print(f"filrouge: warning: step {done} is not saved. {error}", file=sys.stderr, flush=True)
                wait(accelerator)
            if stop:
                raise _stopped(store, done, max_train_steps, stop)
            is_due = done % settings.validation_steps == 0 or done == max_train_steps
            if is_due and accelerator.is_main_process and method.preview is not None:
                _draw(done, method, optimizer, store, tracker)
        if not accelerator.is_main_process:
            return []
        try:
            with stops.at_once(), evaluation_weights(optimizer):
                return method.export(store.run_dir)
        except Interrupted as request:
            raise Stopped(
                str(store.run_dir),
                f"stopped after the last of {max_train_steps} steps, which is saved, before the result was exported. "
                f"{GO_ON}",
                exit_code=request.exit_code,
            ) from None


_Told = tuple[float, float]  # loss and norm of the gradient of a step
GO_ON = "To go on, repeat the command with --resume_from_checkpoint latest."


def _stopped(store: CheckpointStore, step: int, max_train_steps: int, number: int) -> Stopped:
    text = f"stopped after step {step} of {max_train_steps}, everything is saved. {GO_ON}"
    if step == 0:
        text = (
            "stopped before the first step. To begin again, repeat the command with --resume_from_checkpoint auto, "
            "which goes on from a checkpoint where there is one."
        )
    return Stopped(str(store.run_dir), text, exit_code=128 + number)


def _draw(
    done: int, method: Method, optimizer: torch.optim.Optimizer, store: CheckpointStore, tracker: Tracker
) -> None:
    """Draw the sheet of samples of a step; a request to stop leaves it out."""
    assert method.preview is not None
    picture = store.run_dir / "samples" / f"step-{done:06d}.png"
    try:
        with evaluation_weights(optimizer):
            method.preview(picture)
        tracker.picture(done, picture)
    except Interrupted:
        print(f"filrouge: {picture} was not drawn, as the run is to stop.", file=sys.stderr, flush=True)
    for part in method.trainables:
        part.module.train()


def hold_still(method: Method, done_share: float) -> None:
    """Take the gradients from what is not to be trained now; the optimizer leaves what has none as it is."""
    for part in method.trainables:
        start, stop = method.spans.get(part.name, (0.0, 1.0))
        for parameter in part.named_parameters().values():
            parameter.requires_grad_(start <= done_share < stop)


def _rates(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the rate of the parts that are trained now: "lr", and "lr_<part>" of others with a factor of their own."""
    parts = zip(method.trainables, optimizer.param_groups, strict=True)
    trained = [(part.name, group) for part, group in parts if any(p.requires_grad for p in group["params"])]
    factor = {name: method.learning_rate_scale.get(name, 1.0) for name, _ in trained}
    (first, of_first), *others = trained
    told = {"lr": learning_rate(of_first)}
    return told | {f"lr_{name}": learning_rate(group) for name, group in others if factor[name] != factor[first]}


def make_optimizer(method: Method, settings: LoopSettings, global_batch: int, max_steps: int) -> torch.optim.Optimizer:
    rate = settings.learning_rate * (global_batch if settings.scale_lr else 1)
    groups: list[dict[str, Any]] = [
        {
            "params": list(part.named_parameters().values()),
            "lr": rate * method.learning_rate_scale.get(part.name, 1.0),
        }
        for part in method.trainables
    ]
    return build_optimizer(
        settings.optimizer,
        groups,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
        max_steps=max_steps,
        warmup_steps=settings.lr_warmup_steps,
    )


def _rate(optimizer: torch.optim.Optimizer, settings: LoopSettings, max_train_steps: int) -> Callable[[int], float]:
    """Return the learning-rate factor as a function of the step: diffusers' schedules, without a state to restore."""
    schedule = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=max_train_steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    for group in optimizer.param_groups:  # the schedule has set the rate of its first step
        group["lr"] = group["initial_lr"]
    return factor


def _clipped(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    """Scale gradients with a larger norm than max_norm down to it, and return the norm that they had.

    clip_grad_norm_ writes all of them also where it multiplies by 1, which takes a tenth of a step of 860 M weights.
    """
    norm = _norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if not value + 1e-6 <= max_norm:  # as clip_grads_with_norm_ would; not a number, too
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of gradients or weights, all of them together.

    On a CPU a product of each with itself takes half the time of torch's norm, whose sum of 80 million squares is also
    off by a thousandth.
    """
    if not tensors or any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors):
        return torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors])
    flat = [tensor.detach().flatten() for tensor in tensors]
    return torch.stack([torch.dot(each, each) for each in flat]).sum().sqrt()


def _checkpoint(
    step: int,
    method: Method,
    optimizer: torch.optim.Optimizer,
    named: dict[str, torch.nn.Parameter],
    store: CheckpointStore,
    accelerator: Accelerator,
    untold: _Told | None,
) -> None:
    """Publish all that a continuation needs. untold: what it has to tell of this step, as a request kept it back."""

    def write(folder: Path) -> None:
        for part in method.trainables:
            files.save_tensors(folder / f"{part.name}.safetensors", part.state(), {})
        tensors, groups = optimizer_to_tensors(optimizer, list(named.items()))
        files.save_tensors(folder / "optimizer.safetensors", tensors, {})
        files.write_json(folder / "optimizer.json", groups)
        if averages_itself(optimizer):  # for who draws with a checkpoint; a resumed run does not read it
            with evaluation_weights(optimizer):
                files.save_tensors(folder / AVERAGED, named, {})
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        state = {
            "step": step,
            "scaler": scaler,
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
            "num_processes": accelerator.num_processes,
        }
        if untold is not None:
            state["untold"] = {"loss": untold[0], "grad_norm": untold[1]}
        files.write_json(folder / "state.json", state)

    store.publish(step, write)


def _restore(
    checkpoint: Checkpoint,
    method: Method,
    optimizer: torch.optim.Optimizer,
    named: dict[str, torch.nn.Parameter],
    accelerator: Accelerator,
) -> tuple[int, _Told | None]:
    """Restore everything a checkpoint holds; return its step, and what is still to be told of it.

    Says when the result will not be bit-identical. Raises OutputError for weights that are not finite.
    """
    for part in method.trainables:
        path = checkpoint.folder / f"{part.name}.safetensors"
        if not path.exists():
            raise OutputError(str(checkpoint.folder), f"holds no {path.name}; it was written by another method.")
        tensors = files.load_tensors(path)
        if names := not_finite(tensors):
            raise OutputError(
                str(path), f"holds weights that are not finite ({names[0]}). Go on from an earlier checkpoint-N."
            )
        part.restore(tensors)
    groups = read_table(checkpoint.folder / "optimizer.json", _OF_A_CHECKPOINT)
    tensors = files.load_tensors(checkpoint.folder / "optimizer.safetensors")
    load_optimizer(optimizer, list(named.items()), tensors, groups)
    needs = ("step", "scaler", "torch", "num_threads", "num_processes")
    state = read_table(checkpoint.folder / "state.json", _OF_A_CHECKPOINT, needs=needs)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    present = {
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
    }
    for key, value in present.items():
        if state[key] != value and accelerator.is_main_process:
            print(f"resume: {key} was {state[key]} and is {value}: the result is valid, but not bit-identical.")
    untold = state.get("untold")
    return int(state["step"]), None if untold is None else (untold["loss"], untold["grad_norm"])


def _spoilt(
    step: int,
    loss: float,
    norm: float,
    found: str,
    seen: list[Batch],
    store: CheckpointStore,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> NonFiniteError:
    """Return the error of a step that gives, or has given, numbers that cannot be used. found: what was found."""
    report = store.run_dir / f"nonfinite-{accelerator.process_index}.json"
    record = {
        "step": step + 1,
        "loss": repr(loss),
        "grad_norm": repr(norm),
        "seed": settings.seed,
        "positions": [p for batch in seen for p in batch.positions],
        "sources": [s for batch in seen for s in batch.sources],
    }
    files.write_json(report, record)
    last = store.find_latest()
    return NonFiniteError(
        f"step {step + 1}",
        f"{found}; the last checkpoint is {last.folder.name if last else 'none'}. The images of the step are listed in "
        f"{report}. Lower --learning_rate (now {settings.learning_rate}), or train in float32 or bf16.",
    )
