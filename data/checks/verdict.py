"""One sentence: would training go on with this data?"""

from __future__ import annotations

from collections.abc import Sequence

from data.checks.report import counted
from data.faults import Fault


def verdict(faults: Sequence[Fault], *, needs_prompt: bool = False, num_skipped: int = 0) -> str:
    """Return the sentence at the top of a check.

    needs_prompt: whether no image has a caption of its own. num_skipped: what --skip_bad leaves out.
    """
    if faults:
        places = list(dict.fromkeys(fault.where for fault in faults))
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        return f"Training would refuse this data: {counted(len(faults), 'fault')}, in {shown}."
    without = f", without {num_skipped:,} that cannot be used" if num_skipped else ""
    if needs_prompt:
        return f"Training would go on with this data{without} under --instance_prompt: images have no caption."
    return f"Training would go on with this data{without}."
