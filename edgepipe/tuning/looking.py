"""Inputs that choices are made on: runs of some samples, evenly over the first split that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.probes import single_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.pipeline import Setting

    Feeds = Mapping[str, np.ndarray]


def runs_of(artifact: Artifact, setting: Setting, count: int) -> Iterator[Feeds]:
    """The inputs of every run that `count` samples make, one at a time; none without data."""
    split = setting.splits.to_look_at
    samples = setting.splits(split) if split else []
    return single_runs(artifact, samples[:: max(1, len(samples) // count)][:count])
