"""The optimizers of a run, and the weights that each would have the model used with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, assert_never

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import AdamW, Optimizer

from data.environment import install_extra
from data.errors import SettingsError
from finetune.core.optimizer_options import OptimizerName

# which package an optimizer comes from, and the extra of this project that brings it
_PACKAGES: dict[OptimizerName, tuple[str, str]] = {
    "adamw_8bit": ("bitsandbytes", "gpu"),
    "prodigy": ("prodigyopt", "optimizers"),
    "schedule_free": ("schedulefree", "optimizers"),
}
# what schedule-free AdamW keeps of the steps of a group
_COUNTERS = ("k", "weight_sum", "lr_max", "scheduled_lr")


def require(name: OptimizerName) -> None:
    """Raise SettingsError, with what to do, where this machine lacks what an optimizer needs."""
    problems = []
    if name in _PACKAGES:
        package, extra = _PACKAGES[name]
        try:
            import_module(package)
        except ImportError as error:
            problems.append(
                f"{name} needs the package {package} ({error}). Write --optimizer adamw, or install it: "
                f"{install_extra(extra)}"
            )
    if problems:
        raise SettingsError("--optimizer", *problems)


def build_optimizer(
    name: OptimizerName,
    groups: Sequence[Mapping[str, Any]],
    *,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    max_steps: int,
    warmup_steps: int,
) -> Optimizer:
    """Return an optimizer of groups of parameters, each {"params": [...], "lr": ...}, ready for its first step.

    betas, eps: Adam's; Adafactor (Shazeer and Stern 2018) has its own in their place. weight_decay: decoupled, times
    the rate. lr: what a scheduler may change between steps; for Prodigy (Mishchenko and Defazio 2023) a factor on the
    rate that it finds. warmup_steps: of the run's max_steps; schedule-free AdamW (Defazio et al. 2024) raises its rate
    over them itself, for the others that is the scheduler's task.

    A parameter without a gradient (None) stays bit-equal; what schedule-free AdamW counts (warm-up, weights of its
    average) begins for each group with its first gradient. A rate of zero is not enough for that: Prodigy and
    schedule-free AdamW go on with what they have averaged.

    Raises SettingsError for rates that differ between groups under Prodigy, and for a warm-up as long as the run.
    """
    if warmup_steps >= max_steps:
        raise SettingsError(
            "--lr_warmup_steps",
            f"found {warmup_steps}, expected fewer than the {max_steps} steps of the run. Lower it, or train longer.",
        )
    own: list[dict[str, Any]] = [dict(group) for group in groups]  # an optimizer adds its options to what it is given
    match name:
        case "adamw":
            return AdamW(own, fused=True, betas=betas, weight_decay=weight_decay, eps=eps)
        case "adamw_8bit":
            from bitsandbytes.optim import AdamW8bit

            return _checked(AdamW8bit(own, betas=betas, weight_decay=weight_decay, eps=eps))
        case "prodigy":
            return _prodigy(own, betas, weight_decay, eps)
        case "adafactor":
            from transformers.optimization import Adafactor

            # the rate is the scheduler's, not a function of the step or of the weights' size. lr: of no group, but the
            # polynomial schedule of diffusers measures its end by this default; 1e-3 is AdamW's
            adafactor = Adafactor(own, lr=1e-3, weight_decay=weight_decay, relative_step=False, scale_parameter=False)
            return _checked(adafactor)
        case "schedule_free":
            from schedulefree import AdamWScheduleFree

            assert betas[0] > 0, "the averaged weights are found by dividing by it"
            free = AdamWScheduleFree(own, betas=betas, weight_decay=weight_decay, eps=eps, warmup_steps=warmup_steps)
            free.train()
            return _counting_own_steps(_checked(free))
    assert_never(name)


def learning_rate(group: Mapping[str, Any]) -> float:
    """Return the rate at which a group of an optimizer made its last step, what it found or scheduled itself too."""
    if "scheduled_lr" in group:  # schedule-free, in its warm-up and after
        return float(group["scheduled_lr"])
    return float(group["lr"]) * float(group.get("d", 1.0))  # d: Prodigy's estimate


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Put the weights that are to be used (previewed, validated, exported) in place of those that are being trained.

    They differ under schedule-free AdamW alone, which trains at one point and answers with an average. Afterwards every
    weight is what it was, bit for bit, also after an error. Within another evaluation_weights nothing is done.
    """
    assert not isinstance(optimizer, AcceleratedOptimizer), "the optimizer itself is wanted, not accelerate's cover"
    free = _schedule_free(optimizer)
    if free is None or not all(group["train_mode"] for group in free.param_groups):
        yield
        return
    # its own way back, free.train(), interpolates with rounded weights and misses the last bits
    trained = [(p, p.detach().clone()) for group in free.param_groups for p in group["params"]]
    free.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)
        for group in free.param_groups:
            group["train_mode"] = True


def _prodigy(groups: list[dict[str, Any]], betas: tuple[float, float], weight_decay: float, eps: float) -> Optimizer:
    from prodigyopt import Prodigy

    rates = sorted({group["lr"] for group in groups})
    if len(rates) > 1:
        raise SettingsError(
            "--optimizer",
            f"prodigy finds one learning rate for all that is trained, found factors {', '.join(map(str, rates))}. "
            "Give the parts one learning rate, or write --optimizer adamw.",
        )
    # as a default of all groups a weight decay makes it print a line
    for group in groups:
        group["weight_decay"] = weight_decay
    options = {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
    return _checked(Prodigy(groups, betas=betas, eps=eps, **options))


def _counting_own_steps(free: Optimizer) -> Optimizer:
    """Have the counters of schedule-free AdamW stand still for a group in which nothing has a gradient.

    It counts every call of step(), and would give the first weights of a part that is trained late the small share in
    the average, and the small correction of Adam's second moment, that belong to a late step.
    """
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def note(*_: object) -> None:
        idle = [group for group in free.param_groups if all(p.grad is None for p in group["params"])]
        held[:] = [(group, {name: group[name] for name in _COUNTERS}) for group in idle]

    def put_back(*_: object) -> None:
        for group, counters in held:
            group.update(counters)

    free.register_step_pre_hook(note)
    free.register_step_post_hook(put_back)
    return free


def averages_itself(optimizer: Optimizer) -> bool:
    """Return whether the weights that are to be used differ from those that are being trained."""
    return _schedule_free(optimizer) is not None


def _schedule_free(optimizer: Optimizer) -> Any:
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        return None
    return optimizer if isinstance(optimizer, AdamWScheduleFree) else None


def _checked(optimizer: object) -> Optimizer:
    """Return what a library without types says is an optimizer."""
    assert isinstance(optimizer, Optimizer)
    return optimizer
