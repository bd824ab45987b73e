"""Which checkpoint of a run to keep, and from which one on it forgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.metrics.distances import Estimate
from pipelines.metrics.estimates import standard_error


@dataclass(frozen=True)
class Judged:
    """What was measured of one checkpoint; None is what could not be measured.

    skill: 0 as the base model, 1 as real images. forgetting: any measure that grows with it. copying: copy AUC.
    """

    step: int
    skill: Estimate | None
    forgetting: Estimate | None
    copying: Estimate | None


@dataclass(frozen=True)
class Limits:
    """What a checkpoint may forget and copy at most; None is no limit.

    A checkpoint fails where the whole 95 % interval lies above the limit. copying: the copy AUC; at 0.75, three of four
    generated images are nearer to the training images than a held-out image is.
    """

    forgetting: float | None = None
    copying: float | None = 0.75


@dataclass(frozen=True)
class Choice:
    """The checkpoint that was chosen, and why.

    step: None where every checkpoint fails a limit. best_step: of the greatest skill within the limits. dropped: why
    the others were left out, by step.
    """

    step: int | None
    reason: str
    best_step: int | None = None
    dropped: dict[int, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "step": self.step,
            "reason": self.reason,
            "best_step": self.best_step,
            "dropped": {str(step): why for step, why in self.dropped.items()},
        }


def choose(checkpoints: Sequence[Judged], limits: Limits) -> Choice:
    """Return the earliest checkpoint within one standard error of the best skill, of those within the limits.

    The rule of one standard error: L. Breiman et al., "Classification and regression trees", 1984, section 3.4.3.
    Where no skill could be measured, the last one within the limits. To choose and to report on the same images is
    optimistic: keep a part of the held-out images for the report.
    """
    ordered = sorted(checkpoints, key=lambda each: each.step)
    if not ordered:
        return Choice(None, "there is no checkpoint to choose from")
    dropped = {each.step: why for each in ordered if (why := _failure(each, limits))}
    kept = [each for each in ordered if each.step not in dropped]
    if not kept:
        return Choice(None, "every checkpoint fails a limit: train more gently, or allow more", dropped=dropped)
    left_out = f"; {len(dropped)} of {len(ordered)} fail a limit" if dropped else ""
    skills = [(each.step, each.skill) for each in kept if each.skill is not None]
    if not skills:
        last = kept[-1].step
        return Choice(last, f"the last one within the limits: no skill could be measured{left_out}", None, dropped)
    best_step, best = max(skills, key=lambda pair: pair[1].value)
    margin = standard_error(best)
    step, found = next(pair for pair in skills if pair[1].value >= best.value - margin)
    if step == best_step:
        reason = f"the best skill, {best.value:.2f}, and no earlier one is within its standard error of {margin:.2f}"
    else:
        reason = (
            f"the earliest one within one standard error ({margin:.2f}) of the best skill: {found.value:.2f} at step "
            f"{step}, {best.value:.2f} at step {best_step}"
        )
    return Choice(step, reason + left_out, best_step, dropped)


def onset(series: Sequence[tuple[int, Estimate]], limit: float) -> int | None:
    """Return the step of the first of two consecutive checkpoints whose lower 95 % bounds exceed the limit, or None.

    series: step and forgetting of every checkpoint. limit: the 95 % quantile of base against base
    (`forgetting.PriorDistance.limit`). One checkpoint alone may be chance, and the last one alone never is an onset.
    """
    ordered = sorted(series, key=lambda pair: pair[0])
    above = [estimate.low > limit for _, estimate in ordered]
    for place in range(len(ordered) - 1):
        if above[place] and above[place + 1]:
            return ordered[place][0]
    return None


def _failure(checkpoint: Judged, limits: Limits) -> str:
    """Return which limits a checkpoint fails, "" for none."""
    failures = []
    for name, estimate, limit in (
        ("forgetting", checkpoint.forgetting, limits.forgetting),
        ("copying", checkpoint.copying, limits.copying),
    ):
        if estimate is not None and limit is not None and estimate.low > limit:
            failures.append(
                f"{name} {estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}] is above the limit {limit:.3g}"
            )
    return " and ".join(failures)
