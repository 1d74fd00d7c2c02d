"""The registry of tasks: what accuracy means. A new task is a new file here and a line in `BUILT_IN`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from edgepipe.config import Task

    Outputs = list[dict[str, np.ndarray]]  # one dict per run of the model that the sample needed


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task.

    `columns` are what a row of data must have; `score(outputs, reference, sample,
    driver_labels)` gives the counts of one sample, an array [k]; `metric(counts [n, k])` makes points of them, from
    0 to 100. `reference` is the uncompressed model's outputs for the same sample.
    """

    name: str
    metric_name: str
    columns: tuple[str, ...]
    score: Callable[[Outputs, Outputs, Mapping[str, Any], Sequence[str]], Sequence[float]]
    metric: Callable[[np.ndarray], float]
    predicted: Callable[[Outputs, Sequence[str]], Any] | None = None  # the label, to show what changed
    check_labels: Callable[[Sequence[Mapping[str, Any]], Sequence[str], str], None] | None = None


BUILT_IN = {
    "text-classification": "edgepipe.tasks.text_classification",
    "token-classification": "edgepipe.tasks.token_classification",
    "sentence-similarity": "edgepipe.tasks.sentence_similarity",
    "image-classification": "edgepipe.tasks.image_classification",
    "ocr": "edgepipe.tasks.ocr",
    "voice-activity": "edgepipe.tasks.voice_activity",
    "fidelity": "edgepipe.tasks.fidelity",
}


def task_names() -> list[str]:
    from importlib.metadata import entry_points

    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="edgepipe.tasks"))})


def load_task(config: Task) -> TaskSpec:
    """The task by name; `UsageError` naming the nearest one."""
    if config.name in BUILT_IN:
        spec: TaskSpec = import_module(BUILT_IN[config.name]).make(config)
        return spec
    from importlib.metadata import entry_points

    for point in entry_points(group="edgepipe.tasks"):
        if point.name == config.name:
            installed: TaskSpec = point.load()(config)
            return installed
    raise UsageError(f'unknown task "{config.name}"', where="--task", fix=nearest(config.name, task_names()))
