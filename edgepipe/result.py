"""One figure with its verdict, and what many of them add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepipe.errors import AXIS_EXIT_CODES, UNPROVEN_EXIT_CODE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Result:
    """One figure of one axis; `verdict` is None where no budget stands against it."""

    profile: str
    axis: str
    metric: str
    unit: str
    value: float | None
    provenance: str
    baseline: float | None = None
    budget: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    verdict: str | None = None
    reason: str = ""
    better: str = "lower"  # which way is better, and so on which side of the budget the value must lie
    component: str = "model"
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__slots__}
        return {**data, "interval": list(self.interval) if self.interval else None, "conditions": dict(self.conditions)}


def overall(results: Sequence[Result]) -> str:
    verdicts = {result.verdict for result in results}
    return "broken" if "broken" in verdicts else "unproven" if "unproven" in verdicts else "held"


def exit_code(results: Sequence[Result], *, strict: bool) -> int:
    """The lowest code of the axes that broke; 16 for unproven ones under `strict`; else 0."""
    broken = [AXIS_EXIT_CODES[result.axis] for result in results if result.verdict == "broken"]
    if broken:
        return min(broken)
    return UNPROVEN_EXIT_CODE if strict and overall(results) == "unproven" else 0
