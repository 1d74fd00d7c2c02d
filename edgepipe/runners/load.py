"""What else a machine did while times were taken on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from edgepipe.runners import Runner


def watch_of(runner: Runner) -> Any:
    """What tells how the machine fared meanwhile: the device itself where it is not this one."""
    return getattr(runner, "watch", CpuWatch)()


class CpuWatch:
    """How much of the machine others used meanwhile: a busy machine makes times unproven."""

    @staticmethod
    def board() -> dict[str, Any]:
        return {}

    def __init__(self) -> None:
        self._start, self._clock = self._busy(), time.perf_counter()
        self._own = time.process_time()

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()
        return float(
            sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        )

    def others_share(self, agents_cpu_s: float) -> float:
        """Share of all cores that processes other than ours used, 0 to 1."""
        used = self._busy() - self._start - agents_cpu_s - (time.process_time() - self._own)
        return max(0.0, used / ((time.perf_counter() - self._clock) * (psutil.cpu_count() or 1)))
