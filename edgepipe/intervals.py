"""95 % intervals by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13), with a fixed seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepipe.measure import Timing
    from edgepipe.tasks import TaskSpec
    from edgepipe.transfer import Transfer

RESAMPLES = 1000


def bootstrap(
    task: TaskSpec, base: np.ndarray, ours: np.ndarray, transfer: Transfer | None = None
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """The metric of baseline and candidate, and 95 % intervals of the candidate's metric and of the paired drop.

    With a `transfer` the counts are the host's, corrected by what the target gave for the samples it ran.
    """
    parts = [transfer.fill(base, transfer.baseline), transfer.fill(ours, transfer.candidate)] if transfer else None

    def metrics(rows: Any, picked: Any) -> tuple[float, float]:
        if parts is None:
            return task.metric(base[rows]), task.metric(ours[rows])
        return tuple(  # type: ignore[return-value]
            task.metric(mixed[rows]) + (share * (task.metric(there[picked]) - task.metric(here[picked])) if len(there) else 0.0)
            for mixed, there, here, share in parts
        )

    rng = np.random.default_rng(0)
    values, drops = [], []
    ran = len(parts[0][1]) if parts else 0
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(base), len(base))
        before, after = metrics(rows, rows if ran == len(base) else rng.integers(0, ran, ran))
        values.append(after)
        drops.append(before - after)
    return metrics(slice(None), slice(None)), _bounds(values), _bounds(drops)


def ratio_interval(timing: Timing, level: float = 95.0) -> tuple[float, float]:
    """Interval of the ratio of medians, samples resampled in pairs."""
    base, ours = np.array(timing.baseline_ms), np.array(timing.candidate_ms)
    return _bounds([np.median(ours[picked]) / np.median(base[picked]) for picked in _resamples(len(base))], level)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    array = np.array(values)
    return _bounds([np.median(array[picked]) for picked in _resamples(len(array))])


def _resamples(n: int) -> Iterator[np.ndarray]:
    """Indices of one resample after the other, so that memory does not grow with their number."""
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES // 2):
        yield rng.integers(0, n, n)


def _bounds(values: Any, level: float = 95.0) -> tuple[float, float]:
    low, high = np.percentile(values, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)
