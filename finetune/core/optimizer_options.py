"""What the options of a run mean to each optimizer: which of them it has no use for, and which it must not be given."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from finetune.core.contradictions import Contradiction

OptimizerName = Literal["adamw", "adamw_8bit", "prodigy", "adafactor", "schedule_free"]
# Prodigy's authors leave it at 1; diffusers' scripts warn from 0.1 downwards; with AdamW's 1e-4 nothing is learnt
LOWEST_PRODIGY_RATE = 0.1
_ADAM_DEFAULTS = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


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
    other_rates: Mapping[str, float],
    scale_lr: bool,
    lr_scheduler: str,
    adam_beta1: float,
    changed: AbstractSet[str],
) -> list[Contradiction]:
    """Return the options that cannot stand together with an optimizer.

    other_rates: learning rates of parts, by option. changed: the names of the options that are not at their defaults.
    """
    options = OPTIONS[name]
    found: list[Contradiction] = []

    def against(option: str, text: str, fitting: object) -> None:
        ways = {option: fitting, "optimizer": "adamw"}
        found.append(Contradiction(f"--{option}: {text}", (option, "optimizer"), ways))

    for unused in sorted(options.unused & changed):
        text = f"does nothing under --optimizer {name}. Leave it out, or write --optimizer adamw."
        against(unused, text, _ADAM_DEFAULTS[unused])
    if options.finds_rate and learning_rate < LOWEST_PRODIGY_RATE:
        text = (
            f"found {learning_rate:g}, but --optimizer {name} finds the rate itself and multiplies it "
            f"by this: expected 1, and {LOWEST_PRODIGY_RATE:g} at least. Write --learning_rate 1."
        )
        against("learning_rate", text, 1.0)
    for rate, value in other_rates.items():
        if options.finds_rate and value != learning_rate:
            text = f"found {value:g}, but --optimizer {name} finds one rate for all that is trained. Leave it out."
            against(rate, text, None)
    if options.finds_rate and scale_lr:
        text = f"--optimizer {name} finds a rate that fits the images per step. Leave one of them out."
        against("scale_lr", text, False)
    if options.has_schedule and lr_scheduler != "constant":
        text = (
            f"found {lr_scheduler}, but --optimizer {name} averages the weights in place of a falling "
            "rate, and warms up by itself. Write --lr_scheduler constant; --lr_warmup_steps may stay."
        )
        against("lr_scheduler", text, "constant")
    if options.has_schedule and adam_beta1 == 0:
        text = f"found 0, but --optimizer {name} divides by it. Expected more than 0, as 0.9."
        against("adam_beta1", text, _ADAM_DEFAULTS["adam_beta1"])
    return found
