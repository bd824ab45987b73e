"""The one training loop. It knows no method: it asks for a loss, steps, keeps checkpoints, and stops when told to."""

from __future__ import annotations

import math
import signal
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import Sample
from data.errors import NonFiniteError, OutputError, Stopped
from data.json_files import read_table
from data.randomness import derive
from finetune.core import files
from finetune.core.checkpoint import Checkpoint, CheckpointStore
from finetune.core.method import Batch, Method
from finetune.core.optimizer_state import load_optimizer, optimizer_to_tensors
from finetune.core.optimizers import averages_itself, build_optimizer, evaluation_weights, learning_rate
from finetune.core.settings import LoopSettings
from finetune.core.tracking import Tracker
from pipelines.evaluation.states import AVERAGED

# positions that are prepared together, or an epoch where that is more: frozen parts are in memory meanwhile
_PREPARED = 1024
_OF_A_CHECKPOINT = "what the checkpoint was written with. Resume from another one"
# fp16 alone: how many steps in a row the loss scaler may skip while it looks for a scale
_LARGEST_SKIP = 20


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

    Raises NonFiniteError before a step that would spoil the weights, and Stopped (after a checkpoint) on SIGINT or
    SIGTERM.
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
    if resume_from is not None:
        first_step = _restore(resume_from, method, optimizer, named, accelerator)
    stepper = accelerator.prepare_optimizer(optimizer)
    parameters = list(named.values())  # a list: an iterator would be used up by the first of its two uses
    batches = _batches(method, settings, accelerator, range(first_step, max_train_steps))
    skipped, prepared = 0, first_step
    for part in method.trainables:
        part.module.train()
    with _Interrupts() as interrupts:
        for step in range(first_step, max_train_steps):
            if step == prepared and method.prepare is not None:
                ahead = math.ceil(max(_PREPARED, len(method.dataset)) / global_batch)
                prepared = min(step + ahead, max_train_steps)
                with accelerator.autocast():
                    tracker.prepared(method.prepare(_own_positions(settings, accelerator, range(step, prepared))))
            hold_still(method, step / max_train_steps)
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
            _sum_gradients(parameters, accelerator)
            loss = float(_summed(loss_sum, accelerator)) / global_batch
            accelerator.unscale_gradients(stepper)
            norm = _clipped(parameters, settings.max_grad_norm)
            if not math.isfinite(norm) and accelerator.scaler is not None and math.isfinite(loss):
                skipped += 1
            else:
                skipped = 0
            if not math.isfinite(loss) or (not math.isfinite(norm) and not 0 < skipped <= _LARGEST_SKIP):
                raise _non_finite(step, loss, norm, seen, store, settings, accelerator)
            factor = rate(step)
            for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = base_rate * factor
            stepper.step()
            stepper.zero_grad(set_to_none=True)
            done = step + 1
            for part in method.trainables:
                part.after_step(done)
            look = accelerator.is_main_process and (done % settings.validation_steps == 0 or done == max_train_steps)
            measured: dict[str, float] = {}
            if look and method.validate is not None:
                with evaluation_weights(optimizer), accelerator.autocast():
                    measured = method.validate()
            if accelerator.is_main_process:
                tracker.step(done, loss)
                if measured or done % settings.logging_steps == 0 or done == max_train_steps:
                    tracker.log(done, loss=loss, grad_norm=norm, **_rates(method, optimizer), **measured)
            stop = interrupts.agreed(accelerator)
            if done % settings.checkpointing_steps == 0 or done == max_train_steps or stop:
                if accelerator.is_main_process:
                    _checkpoint(done, method, optimizer, named, store, accelerator)
                    store.rotate(settings.checkpoints_total_limit)
                accelerator.wait_for_everyone()
            if stop:
                raise Stopped(
                    str(store.run_dir),
                    f"stopped after step {done} of {max_train_steps}, everything is saved. To go on, repeat the "
                    "command with --resume_from_checkpoint latest.",
                    exit_code=128 + stop,
                )
            if look and method.preview is not None:
                picture = store.run_dir / "samples" / f"step-{done:06d}.png"
                with evaluation_weights(optimizer):
                    method.preview(picture)
                tracker.picture(done, picture)
                for part in method.trainables:
                    part.module.train()
    if not accelerator.is_main_process:
        return []
    with evaluation_weights(optimizer):
        return method.export(store.run_dir)


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


class _Positions(Dataset[list[tuple[int, Sample]]]):
    """The images of a run as a torch dataset: position -> keyed samples, the prior's beside the image."""

    def __init__(self, method: Method) -> None:
        self._images, self._prior = method.dataset, method.prior

    def __getitem__(self, position: int) -> list[tuple[int, Sample]]:
        group = [(position, self._images.sample(position))]
        if self._prior is not None:
            group.append((-1 - position, self._prior.sample(position)))
        return group


def _batches(method: Method, settings: LoopSettings, accelerator: Accelerator, steps: range) -> Iterator[Batch]:
    positions, size = _own_positions(settings, accelerator, steps), settings.train_batch_size
    return iter(
        DataLoader(
            _Positions(method),
            batch_sampler=[positions[start : start + size] for start in range(0, len(positions), size)],
            collate_fn=Batch.collate,
            num_workers=settings.dataloader_num_workers,
            worker_init_fn=_outlive_interrupt,
            # its base seed must not come from the global generator
            generator=torch.Generator().manual_seed(derive(settings.seed, "loader")),
        )
    )


def _own_positions(settings: LoopSettings, accelerator: Accelerator, steps: range) -> list[int]:
    """Return the positions of the run that this process takes in some steps, in their order."""
    size, ranks = settings.train_batch_size, accelerator.num_processes
    micro_steps = range(
        steps.start * settings.gradient_accumulation_steps, steps.stop * settings.gradient_accumulation_steps
    )
    shares = [(micro_step * ranks + accelerator.process_index) * size for micro_step in micro_steps]
    return [position for share in shares for position in range(share, share + size)]


def _outlive_interrupt(_: int) -> None:
    """Leave a terminal's interrupt, which every process gets, to the one that trains and needs images for its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


def _sum_gradients(parameters: list[torch.nn.Parameter], accelerator: Accelerator) -> None:
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    summed: Tensor = accelerator.reduce(flat, reduction="sum")
    for gradient, part in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _clipped(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    """Scale gradients with a larger norm than max_norm down to it, and return the norm that they had.

    clip_grad_norm_ writes all of them also where it multiplies by 1, which takes a tenth of a step of 860 M weights.
    """
    norm = _norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if not value + 1e-6 <= max_norm:  # as clip_grads_with_norm_ would; not a number, too
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together.

    On a CPU a product of each with itself takes half the time of torch's norm, whose sum of 80 million squares is also
    off by a thousandth.
    """
    if not gradients or any(gradient.device.type != "cpu" or gradient.dtype != torch.float32 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    flat = [gradient.flatten() for gradient in gradients]
    return torch.stack([torch.dot(each, each) for each in flat]).sum().sqrt()


def _summed(value: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return value
    summed: Tensor = accelerator.reduce(value.to(accelerator.device), reduction="sum")
    return summed.cpu()


def _checkpoint(
    step: int,
    method: Method,
    optimizer: torch.optim.Optimizer,
    named: dict[str, torch.nn.Parameter],
    store: CheckpointStore,
    accelerator: Accelerator,
) -> None:
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
        files.write_json(folder / "state.json", state)

    store.publish(step, write)


def _restore(
    checkpoint: Checkpoint,
    method: Method,
    optimizer: torch.optim.Optimizer,
    named: dict[str, torch.nn.Parameter],
    accelerator: Accelerator,
) -> int:
    """Restore everything a checkpoint holds and return its step. Says when the result will not be bit-identical."""
    for part in method.trainables:
        path = checkpoint.folder / f"{part.name}.safetensors"
        if not path.exists():
            raise OutputError(str(checkpoint.folder), f"holds no {path.name}; it was written by another method.")
        part.restore(files.load_tensors(path))
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
    return int(state["step"])


def _non_finite(
    step: int,
    loss: float,
    norm: float,
    seen: list[Batch],
    store: CheckpointStore,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> NonFiniteError:
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
        f"loss {loss}, gradient norm {norm}: expected finite numbers. The weights were not changed by this step; "
        f"the last checkpoint is {last.folder.name if last else 'none'}. The images of the step are listed in "
        f"{report}. Lower --learning_rate (now {settings.learning_rate}), or train in float32 or bf16.",
    )


class _Interrupts:
    """Turns the first SIGINT or SIGTERM into a request to stop at the next step; the second one acts at once."""

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: types.FrameType | None) -> None:
        self._received = number
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]

    def agreed(self, accelerator: Accelerator) -> int:
        """Return the signal received by any process, or 0: all processes stop after the same step."""
        if accelerator.num_processes == 1:
            return self._received
        flags: Tensor = accelerator.gather(torch.tensor([self._received], device=accelerator.device))
        return int(flags.max())
