"""Claims as a file has them: what a user expects an evaluation to show.

    claims:
      - {text: LoRA learns more than Textual Inversion, measure: skill, greater: lora, than: textual_inversion}
      - {text: Textual Inversion leaves other prompts alone, measure: drift, same: [textual_inversion, 0], within: 0.01}
      - {text: LoRA learns as well as full fine-tuning, measure: skill, same: [lora, full_unet], within: 0.1}

A side is a run, or a number. Numbers are in the units of the measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import nearest

_KEYS = ("text", "measure", "data", "greater", "than", "same", "within")

Side = str | float


@dataclass(frozen=True)
class AskedClaim:
    """A claim as it stands in a file: that `first` is greater than `second`, or the same within a margin.

    data: of which images, "" where there is only one set. within: None for greater.
    """

    text: str
    measure: str
    first: Side
    second: Side
    within: float | None = None
    data: str = ""

    @property
    def runs(self) -> tuple[str, ...]:
        """The sides that are runs."""
        return tuple(side for side in (self.first, self.second) if isinstance(side, str))


def read_claims(found: Any, measures: Sequence[str], problems: list[str]) -> tuple[AskedClaim, ...]:
    """Return the claims of a file; what is wrong with them goes to the problems.

    found: the value of its key `claims`. measures: what a claim can be about.
    """
    if not isinstance(found, list):
        problems.append(f"claims: found {type(found).__name__}, expected a list of claims.")
        return ()
    claims = [_claim(entry, f"claims[{number}]", measures, problems) for number, entry in enumerate(found)]
    return tuple(claim for claim in claims if claim is not None)


def _claim(entry: Any, where: str, measures: Sequence[str], problems: list[str]) -> AskedClaim | None:
    if not isinstance(entry, dict):
        problems.append(f"{where}: found {entry!r}, expected {{text: …, measure: …, greater: …, than: …}}.")
        return None
    before = len(problems)
    problems += [f"{where}.{key}: unknown key.{nearest(str(key), _KEYS)}" for key in entry if key not in _KEYS]
    text, measure, data = (_text(entry, key, where, problems) for key in ("text", "measure", "data"))
    if measure and measure not in measures:
        problems.append(f"{where}.measure: found {measure!r}.{nearest(measure, measures)}")
    pair, within = _sides(entry, where, problems)
    if len(problems) > before or pair is None:
        return None
    return AskedClaim(text, measure, *pair, within=within, data=data)


def _text(entry: Mapping[str, Any], key: str, where: str, problems: list[str]) -> str:
    value = entry.get(key, "" if key == "data" else None)
    if isinstance(value, str) and (value or key == "data"):
        return value
    problems.append(f"{where}.{key}: found {value!r}, expected a text.")
    return ""


def _sides(entry: Mapping[str, Any], where: str, problems: list[str]) -> tuple[tuple[Side, Side] | None, float | None]:
    is_same, is_greater = {"same", "within"} & entry.keys(), {"greater", "than"} & entry.keys()
    if bool(is_same) == bool(is_greater):
        problems.append(f"{where}: expected greater and than, or same and within.")
        return None, None
    if is_greater:
        return _checked([entry.get("greater"), entry.get("than")], where, problems), None
    within, pair = entry.get("within"), entry.get("same")
    if isinstance(within, bool) or not isinstance(within, int | float) or not within > 0:
        problems.append(f"{where}.within: found {within!r}, expected a number above 0.")
        return None, None
    if not isinstance(pair, list) or len(pair) != 2:
        problems.append(f"{where}.same: found {pair!r}, expected two sides, as [lora, full_unet].")
        return None, None
    return _checked(pair, where, problems), float(within)


def _checked(pair: Sequence[Any], where: str, problems: list[str]) -> tuple[Side, Side] | None:
    """Return two sides, of which one or both are runs."""
    good = [isinstance(side, str | int | float) and not isinstance(side, bool) for side in pair]
    if not all(good) or not any(isinstance(side, str) for side in pair):
        problems.append(f"{where}: compares {pair[0]!r} and {pair[1]!r}, expected a run with a run or a number.")
        return None
    first, second = (side if isinstance(side, str) else float(side) for side in pair)
    return first, second
