"""Options that cannot stand together, and which of them gives way: what a user types wins over what a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Where a value comes from, the weakest first; whatever a user names is typed: each file after --config, in their order,
# and then the command line.
DEFAULT, RECIPE, TYPED = 0, 1, 2


@dataclass(frozen=True)
class Contradiction:
    """Options that cannot stand together.

    text: one sentence for who gave all of them, naming the flag to change. names: the options. gives_way: those of them
    that can give way to the others, with the value that they then have.
    """

    text: str
    names: tuple[str, ...]
    gives_way: Mapping[str, Any] = field(default_factory=dict)

    def weakest(self, ranks: Mapping[str, int]) -> str | None:
        """Return the option that gives way; None where all are as strong, and somebody has to decide.

        ranks: where the value of each option comes from; those that it lacks are at their defaults. A value of the
        recipe gives way to defaults too: it is for a part that is not in use.
        """
        rank = {name: ranks.get(name, DEFAULT) for name in self.names}
        strongest = max(rank.values())
        if strongest >= TYPED:
            weaker = [name for name in self.gives_way if rank[name] < strongest]
        else:
            of_recipe = [name for name in self.names if rank[name] == RECIPE]
            weaker = [name for name in self.gives_way if of_recipe == [name]]
        return min(weaker, key=lambda name: rank[name], default=None)


class ContradictoryError(ValueError):
    """Settings of which some cannot stand together."""

    def __init__(self, found: list[Contradiction]) -> None:
        super().__init__("\n".join(each.text for each in found))
        self.found = found


class Origin:
    """Where a run's settings come from: how strong each value is, and what is to be told of them.

    ranks: by option; those that it lacks are at their defaults. plan: lines for the plan of the run. warnings: lines
    that are printed besides. It says nothing of what a run does, so any two are equal.
    """

    def __init__(
        self, ranks: Mapping[str, int] | None = None, plan: tuple[str, ...] = (), warnings: tuple[str, ...] = ()
    ) -> None:
        self.ranks, self.plan, self.warnings = ranks, plan, warnings

    def telling(self, line: str) -> Origin:
        """Return the same with one more line for the plan."""
        return Origin(self.ranks, (*self.plan, line), self.warnings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    __hash__ = None  # type: ignore[assignment]
