"""How long training may go on, and when it is time for a checkpoint."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgepipe.training.loop import Schedule

CHECKPOINT_S = 60.0  # between checkpoints, besides those at every judgement


class Clock:
    """How long is left: of the schedule, or of a limit where that is sooner."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self._schedule, self._steps = schedule, steps
        self._start = self._saved = time.monotonic()
        self._begun = 0

    def begin(self, step: int) -> None:
        self._begun = step

    def over(self) -> Literal["minutes", "deadline"] | None:
        if self._schedule.minutes is not None and self._passed() >= self._schedule.minutes:
            return "minutes"
        return "deadline" if self._schedule.deadline is not None and time.time() >= self._schedule.deadline else None

    def due(self) -> bool:
        """Whether the last checkpoint is a while ago."""
        due = time.monotonic() - self._saved > CHECKPOINT_S
        if due:
            self._saved = time.monotonic()
        return due

    def left(self, step: int) -> str:
        """In whole minutes, so that a plain log does not repeat it at every step."""
        left = self._passed() / max(1, step - self._begun) * (self._steps - step)
        if self._schedule.minutes is not None:
            left = min(left, self._schedule.minutes - self._passed())
        if self._schedule.deadline is not None:
            left = min(left, (self._schedule.deadline - time.time()) / 60)
        return f", about {math.ceil(left)} min left" if left > 0 else ""

    def _passed(self) -> float:
        return (time.monotonic() - self._start) / 60
