"""Fidelity: agreement with the uncompressed model on unlabelled inputs, for users without labels.

`argmax`: share of positions whose top class is the same. `cosine`: mean cosine similarity of the outputs. `auto`
takes argmax where the model names its output as logits or probabilities over two or more classes, else cosine.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.tasks import TaskSpec
from edgepipe.tasks.classification import mean_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.config import Task
    from edgepipe.tasks import Outputs

CLASS_OUTPUTS = ("logits", "prob", "softmax", "scores")


def make(config: Task) -> TaskSpec:
    return TaskSpec(config.name, "agreement", ("text",), partial(score, config.compare), mean_points, labelled=False)


def score(compare: str, outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    """[agreement of the sample's first output with the reference, 0 to 1]."""
    values = []
    for ours, theirs in zip(outputs, reference, strict=True):
        name = next(iter(theirs))
        values.append(agreement(compare, name, ours[name], theirs[name]))
    return [float(np.mean(values))]


def agreement(compare: str, name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return 0.0
    classes = any(word in name.lower() for word in CLASS_OUTPUTS) and theirs.ndim >= 2 and theirs.shape[-1] >= 2
    if compare == "argmax" or (compare == "auto" and classes):
        return float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return max(0.0, float(a @ b) / scale) if scale else float(np.array_equal(a, b))
