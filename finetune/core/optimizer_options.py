"""What the options of a run mean to each optimizer: which of them it has no use for, and which it must not be given."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["adamw", "adamw_8bit", "prodigy", "adafactor", "schedule_free"]
# Prodigy's authors leave it at 1; diffusers' scripts warn from 0.1 downwards; with AdamW's 1e-4 nothing is learnt
LOWEST_PRODIGY_RATE = 0.1


@dataclass(frozen=True)
class OptimizerOptions:
    """How an optimizer departs from AdamW.

    unused: which of Adam's options do nothing. finds_rate: it estimates the learning rate itself, one for all parts,
    and --learning_rate is a factor on it. has_schedule: it averages the weights instead of lowering the rate, and warms
    up by itself, so that the only scheduler it may have is constant.
    """

    unused: frozenset[str] = frozenset()
    finds_rate: bool = False
    has_schedule: bool = False


OPTIONS: dict[OptimizerName, OptimizerOptions] = {
    "adamw": OptimizerOptions(),
    "adamw_8bit": OptimizerOptions(),
    "prodigy": OptimizerOptions(finds_rate=True),
    "adafactor": OptimizerOptions(unused=frozenset({"adam_beta1", "adam_beta2", "adam_epsilon"})),
    "schedule_free": OptimizerOptions(has_schedule=True),
}


def contradictions(
    name: OptimizerName,
    *,
    learning_rate: float,
    scale_lr: bool,
    lr_scheduler: str,
    adam_beta1: float,
    changed: AbstractSet[str],
) -> list[str]:
    """Return one sentence for each option that cannot stand together with an optimizer, naming the flag to change.

    changed: the names of the options that are not at their defaults.
    """
    options = OPTIONS[name]
    problems = [
        f"--{unused}: does nothing under --optimizer {name}. Leave it out, or write --optimizer adamw."
        for unused in sorted(options.unused & changed)
    ]
    if options.finds_rate and learning_rate < LOWEST_PRODIGY_RATE:
        problems.append(
            f"--learning_rate: found {learning_rate:g}, but --optimizer {name} finds the rate itself and multiplies it "
            f"by this: expected 1, and {LOWEST_PRODIGY_RATE:g} at least. Write --learning_rate 1."
        )
    if options.finds_rate and scale_lr:
        problems.append(
            f"--scale_lr: --optimizer {name} finds a rate that fits the images per step. Leave one of them out."
        )
    if options.has_schedule and lr_scheduler != "constant":
        problems.append(
            f"--lr_scheduler: found {lr_scheduler}, but --optimizer {name} averages the weights in place of a falling "
            "rate, and warms up by itself. Write --lr_scheduler constant; --lr_warmup_steps may stay."
        )
    if options.has_schedule and adam_beta1 == 0:
        problems.append(f"--adam_beta1: found 0, but --optimizer {name} divides by it. Expected more than 0, as 0.9.")
    return problems
