"""95 % intervals by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13), with a fixed seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepipe.measure import Timing
    from edgepipe.tasks import TaskSpec

RESAMPLES = 1000


def bootstrap(task: TaskSpec, base: np.ndarray, ours: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of the candidate's metric and of the paired drop (Efron's percentile bootstrap, fixed seed)."""
    rng = np.random.default_rng(0)
    values, drops = [], []
    for _ in range(RESAMPLES):
        picked = rng.integers(0, len(base), len(base))
        before, after = task.metric(base[picked]), task.metric(ours[picked])
        values.append(after)
        drops.append(before - after)
    return _bounds(values), _bounds(drops)


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
