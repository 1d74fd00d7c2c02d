"""Runs one pass on one artifact as a build does: through the worker's job, checks included."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.config import Data, Task
from edgepipe.intake import find_source, make_artifact
from edgepipe.profile import host_profile
from edgepipe.tasks import load_task
from edgepipe.worker import Done, run_job
from edgepipe.worker_context import Job, open_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepipe.artifact import Artifact

    Feeds = Mapping[str, np.ndarray]


def artifact_of(
    model: Path,
    task: str = "text-classification",
    *,
    adapters: Sequence[Path] = (),
    factory: str | None = None,
    labels: Sequence[str] = (),
    data: Data | None = None,
) -> Artifact:
    """What enters a build when a user names this model and task."""
    source = find_source(str(model))
    names = [str(adapter) for adapter in adapters]
    return make_artifact(source, names, load_task(Task(name=task)), tuple(labels) or source.labels, data or Data(), factory)


def job_for(
    name: str,
    artifact: Artifact,
    workdir: Path,
    *,
    data: Data | None = None,
    costs: Mapping[str, float] | None = None,
    plugins: Sequence[Path] = (),
    **options: Any,
) -> Job:
    """One pass to run in a folder of its own below `workdir`."""
    folder = workdir / f"{name}-{len(list(workdir.iterdir()))}"
    folder.mkdir()
    columns = load_task(Task(name=artifact.program["task"])).columns
    facts = {fact: host_profile().facts().get(fact) for fact in ("cpu.arch", "cpu.isa")}
    return Job(
        name, options, artifact, folder, data or Data(), columns, facts, dict(costs or {}), 1, tuple(str(plugin) for plugin in plugins)
    )


def run_done(name: str, artifact: Artifact, workdir: Path, **settings: Any) -> Done:
    """The pass's artifact and what its checks found."""
    return run_job(job_for(name, artifact, workdir, **settings), io.BytesIO())


def run_pass(name: str, artifact: Artifact, workdir: Path, **settings: Any) -> Artifact:
    result: Artifact = run_done(name, artifact, workdir, **settings).value
    return result


def outputs(artifact: Artifact, feeds: Feeds, *, optimise: bool = True) -> np.ndarray:
    """The model's first output, opened as the bundle's driver opens it."""
    return next(iter(open_model(artifact, optimise, (), 1)(feeds).values()))


def torch_outputs(module: Any, feeds: Feeds) -> np.ndarray:
    """The first output of a torch module for the same feeds."""
    import torch

    with torch.no_grad():
        output = module.eval()(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    first: torch.Tensor = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return first.numpy()


def text_feeds(artifact: Artifact, batch: int = 3, length: int = 12, *, padded: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; `padded`: the mask hides the second half of every row but the first."""
    rng = np.random.default_rng(seed)
    feeds = {entry["name"]: np.zeros((batch, length), np.int64) for entry in artifact.model.signature["inputs"]}
    feeds["input_ids"] = rng.integers(5, artifact.program["preprocess"]["vocab_size"], (batch, length))
    feeds["attention_mask"] = np.ones((batch, length), np.int64)
    if padded:
        feeds["attention_mask"][1:, (length + 1) // 2 :] = 0
    return feeds


def image_feeds(batch: int = 2, size: int = 32, *, seed: int = 0) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(seed).standard_normal((batch, 3, size, size)).astype(np.float32)}


def operators(artifact: Artifact) -> list[str]:
    """Operator types of an ONNX artifact's graph, node by node."""
    import onnx

    return [node.op_type for node in onnx.load(str(artifact.model.main_file)).graph.node]


def initializers(artifact: Artifact) -> dict[str, np.ndarray]:
    import onnx

    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(artifact.model.main_file)).graph.initializer}
