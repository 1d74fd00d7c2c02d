"""How long training will take here, before it starts: two runs of the uncompressed model on one batch are timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.pipeline import job_of
from edgepipe.worker import TimeForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.config import Step
    from edgepipe.passes import PassSpec
    from edgepipe.pipeline import Setting

STUDENT = 3.0  # forward and backward of a model, over its forward alone
SMALLEST_SHARE = 0.2  # of the uncompressed model's time: what a student takes at least


def minutes_of_training(steps: Sequence[tuple[Step, PassSpec, Any]], start: Artifact, setting: Setting) -> float:
    """At most about so many minutes for the steps that train, when nothing stops them early. `start` is the model as it came."""
    total = 0.0
    for step, spec, options in steps:
        if "train" not in spec.data or not hasattr(options, "epochs"):
            continue
        rows = len(setting.splits("train"))
        batches = options.epochs * -(-min(rows, options.max_samples or rows) // options.batch_size)
        with setting.store.workdir() as workdir:
            seconds = setting.worker.ask(TimeForward(job_of(step, options, start, setting, workdir)), step.name).value
        total += batches * seconds * (1 + STUDENT * _share(steps)) / 60
    return total


def _share(steps: Sequence[tuple[Step, PassSpec, Any]]) -> float:
    """Of the model's time that is left when the first step trains, as far as the recipe says."""
    share = 1.0
    for step, _, options in steps:
        if step.name == "prune-layers":
            ratio = getattr(options, "ratio", None)
            share *= 1 - (0.5 if ratio is None else ratio)
        elif step.name == "prune-channels":
            share *= (1 - (getattr(options, "ratio", None) or 0.0)) ** 2
    return max(share, SMALLEST_SHARE)
