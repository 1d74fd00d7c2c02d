"""Points on the dev data, of the float32 model and of one candidate after the other. The test data is never read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.artifact import digest
from edgepipe.measure import BLOCK, opened, scores
from edgepipe.pipeline import library_version
from edgepipe.profile import needs_exact_sums
from edgepipe.runners.local import LocalRunner

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.pipeline import Setting
    from edgepipe.tasks import TaskSpec

SAMPLES = 600  # evenly over the dev data


@dataclass(frozen=True, slots=True)
class Points:
    baseline: float
    candidate: float

    @property
    def drop(self) -> float:
        return self.baseline - self.candidate


def dev_points(candidate: Artifact, baseline: Artifact, setting: Setting, task: TaskSpec) -> Points:
    """Both models' points over the same dev samples on this machine, kept by content. Both artifacts lie in the store."""
    samples = setting.splits("dev")
    step = max(1, len(samples) // SAMPLES)
    exact = needs_exact_sums(setting.profile)
    samples = samples[::step][:SAMPLES]
    key = digest(
        {
            "dev": [candidate.digest, baseline.digest, setting.splits.digest("dev"), task.name, SAMPLES, exact],
            "versions": [library_version(name) for name in ("edgepipe", "onnxruntime", "numpy")],
        }
    )
    if kept := setting.store.get_result(key):
        return Points(kept["baseline"], kept["candidate"])
    runner, labels = LocalRunner(exact=exact), candidate.program.get("labels", ())
    theirs, ours = [], []
    with (
        opened(runner, runner.push(baseline), threads=setting.threads) as old,
        opened(runner, runner.push(candidate), threads=setting.threads) as new,
    ):
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            setting.progress.update("tune", "accuracy on the dev data", start, len(samples))
            for sample, before, after in zip(block, old.predict(block), new.predict(block), strict=True):
                one, other = scores(sample, before, after, task, labels)
                theirs.append(one)
                ours.append(other)
    points = Points(task.metric(np.array(theirs)), task.metric(np.array(ours)))
    setting.store.put_result(key, {"baseline": points.baseline, "candidate": points.candidate})
    return points
