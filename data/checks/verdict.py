"""One sentence: would training go on with this data?"""

from __future__ import annotations

from collections.abc import Sequence

from data.checks.report import Fault, counted


def verdict(faults: Sequence[Fault], *, needs_prompt: bool = False) -> str:
    """Return the sentence at the top of a check. needs_prompt: whether images have no caption of their own."""
    if faults:
        places = list(dict.fromkeys(fault.where for fault in faults))
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        return f"Training would refuse this data: {counted(len(faults), 'fault')}, in {shown}."
    if needs_prompt:
        return "Training would go on with this data under --instance_prompt: images have no caption."
    return "Training would go on with this data."
