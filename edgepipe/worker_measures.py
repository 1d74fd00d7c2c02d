"""What a worker measures in a model before a pass changes it."""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING, Any

from edgepipe.worker_context import WorkerContext

if TYPE_CHECKING:
    from edgepipe.worker_context import Job

TIMED_SAMPLES, TIMED_BATCHES = 256, 4


def unit_changes(job: Job, answers: IO[bytes]) -> list[dict[str, Any]]:
    """Of each layer: `heads` and `ffn`, what the loss would move by without each, its `head_size` and the `hidden` width."""
    from edgepipe.importance.taylor import loss_changes
    from edgepipe.loader import load_torch
    from edgepipe.passes import get_pass
    from edgepipe.structure import encoder_layers, hidden_width

    module = load_torch(job.artifact)
    changes = loss_changes(module, job.artifact, WorkerContext(job, get_pass(job.name), answers))
    shapes = [{"head_size": layer.head_size, "hidden": hidden_width(module)} for layer in encoder_layers(module)]
    return [change | shape for change, shape in zip(changes, shapes, strict=True)]


def seconds_forward(job: Job) -> float:
    """Of one batch of the training data, without gradients."""
    import torch

    from edgepipe.data import Splits
    from edgepipe.loader import load_torch
    from edgepipe.training.batches import Batches
    from edgepipe.training.outputs import called

    module = load_torch(job.artifact)
    samples = Splits(job.data, job.columns)("train")
    batches = Batches(job.artifact, samples[:: max(1, len(samples) // TIMED_SAMPLES)], job.options.get("batch_size", 32))
    inputs = [batch.inputs for batch, _ in zip(batches.epoch(0), range(TIMED_BATCHES + 1), strict=False)]
    with torch.no_grad():
        called(module, inputs[0])  # the first run makes what later ones find
        started = time.perf_counter()
        for one in inputs[1:] or inputs:
            called(module, one)
    return (time.perf_counter() - started) / max(1, len(inputs) - 1)
