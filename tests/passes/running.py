"""Runs one pass on one artifact as a build does: through the worker's job, checks included."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.config import Data, Task
from edgepipe.intake import find_source, make_artifact
from edgepipe.loader import load_torch
from edgepipe.probes import generated
from edgepipe.tasks import load_task
from edgepipe.worker import Done, Job, open_model, run_job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact

    Feeds = Mapping[str, np.ndarray]


def artifact_of(model: Path, task: str = "text-classification", *, adapters: Sequence[Path] = (), factory: str | None = None, labels: Sequence[str] = (), data: Data | None = None) -> Artifact:
    """What enters a build when a user names this model and task."""
    source = find_source(str(model))
    return make_artifact(source, [str(adapter) for adapter in adapters], load_task(Task(name=task)), tuple(labels) or source.labels, data or Data(), factory)


def job_for(name: str, artifact: Artifact, workdir: Path, *, data: Data | None = None, costs: Mapping[str, float] | None = None, plugins: Sequence[Path] = (), **options: Any) -> Job:
    """One pass to run in a folder of its own below `workdir`."""
    folder = workdir / f"{name}-{len(list(workdir.iterdir()))}"
    folder.mkdir()
    columns = load_task(Task(name=artifact.program["task"])).columns
    return Job(name, options, artifact, folder, data or Data(), columns, {}, dict(costs or {}), 1, tuple(str(plugin) for plugin in plugins))


def run_pass(name: str, artifact: Artifact, workdir: Path, **settings: Any) -> Artifact:
    return run_done(name, artifact, workdir, **settings).value


def run_done(name: str, artifact: Artifact, workdir: Path, **settings: Any) -> Done:
    """The pass's artifact and what its checks found."""
    return run_job(job_for(name, artifact, workdir, **settings), io.BytesIO())


def outputs(artifact: Artifact, feeds: Feeds, *, optimise: bool = True) -> np.ndarray:
    """The model's first output, run as the bundle will run it."""
    return next(iter(open_model(artifact, optimise, (), 1)(feeds).values()))


def torch_outputs(module: Any, feeds: Feeds) -> np.ndarray:
    """The first output of a torch module for the same feeds."""
    import torch

    with torch.no_grad():
        output = module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    first = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return first.numpy()


def text_feeds(artifact: Artifact, batch: int, length: int, *, padded: bool = False, seed: int = 0) -> Feeds:
    """Random tokens; with `padded`, every row but the first is cut to half its length by the mask."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for entry in artifact.model.signature["inputs"]:
        high = artifact.program["preprocess"]["vocab_size"] if entry["name"] == "input_ids" else 1
        feeds[entry["name"]] = rng.integers(0, high, (batch, length)).astype(np.int64)
    feeds["attention_mask"] = np.ones((batch, length), np.int64)
    if padded:
        feeds["attention_mask"][1:, (length + 1) // 2 :] = 0
    return feeds


__all__ = ["artifact_of", "generated", "job_for", "load_torch", "outputs", "run_done", "run_pass", "text_feeds", "torch_outputs"]
