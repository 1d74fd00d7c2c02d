"""Raw figures of a build that went well, for tests that judge them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepipe.errors import AXIS_EXIT_CODES
from edgepipe.measure import Measurement, Timing


def counts(right: int, n: int = 2000) -> list[list[float]]:
    """Scores of `n` samples, of which the first `right` are right."""
    return [[float(index < right)] for index in range(n)]


def timing(
    baseline_ms: float,
    candidate_ms: float,
    *,
    noise: float = 0.02,
    batch: int = 1,
    length: str = "task",
    n: int = 100,
    end_to_end: bool = False,
) -> Timing:
    """Times that scatter around the two medians by a share of `noise`."""
    rng = np.random.default_rng(0)
    base, ours = (ms * (1 + noise * rng.standard_normal(n)) for ms in (baseline_ms, candidate_ms))
    return Timing(batch, length, base.tolist(), ours.tolist(), end_to_end)


def measurement(**changes: Any) -> Measurement:
    """Everything well within the default budget, unless changed."""
    close = {"n": 200, "cosine": 0.99999, "max_abs": 1e-4, "label_agreement": 1.0}
    settings: dict[str, Any] = {
        "runner": "local", "threads": 2, "baseline_counts": counts(1800), "candidate_counts": counts(1795),
        "timings": [timing(10, 5), timing(12, 7, end_to_end=True), timing(20, 10, length="128")],
        "parity": close, "batch": close, "padding": close, "memory": {"candidate": 100_000_000, "baseline": 200_000_000}, "other_load": 0.0,
        "proofs": {axis: {"provenance": "measured"} for axis in AXIS_EXIT_CODES},
    }  # fmt: skip
    return Measurement(**{**settings, **changes})
