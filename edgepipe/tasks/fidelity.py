"""Fidelity: agreement with the uncompressed model on unlabelled inputs, for users without labels.

`argmax`: share of positions whose top class is the same. `closeness`: 2·Σab / (Σa² + Σb²) over all samples, of the output
that is worst off; 1 only where both are the same, since unlike cosine similarity it sees a change of scale, and pooled
over samples it says something about a single number too (Dice, 1945, for real-valued vectors). `auto` takes argmax where
the model names its output as logits or probabilities over two or more classes, else closeness. Of a program that reads text:
character accuracy, with what the uncompressed models read as the truth.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.edit_distance import is_reading, mistakes
from edgepipe.tasks import TaskSpec
from edgepipe.tasks.classification import mean_points
from edgepipe.tasks.ocr import character_accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.config import Task
    from edgepipe.tasks import Outputs

CLASS_OUTPUTS = ("logits", "prob", "softmax", "scores")
NOTHING = 1e-12  # sums of squares under this are noise around zero


def make(config: Task) -> TaskSpec:
    return TaskSpec(config.name, "agreement", ("text",), partial(score, config.compare), agreement_points)


def score(compare: str, outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    """[share of positions with the same top class], or [edit distance, characters] of what is read, or [Σab, Σa², Σb²] for
    each output."""
    if is_reading(reference[0]):
        return mistakes(outputs[0]["text"], reference[0]["text"])
    name = next(iter(reference[0]))
    if compare == "argmax" or (compare == "auto" and _classes(name, reference[0][name])):
        return [float(np.mean([_same_top(ours[name], theirs[name]) for ours, theirs in zip(outputs, reference, strict=True)]))]
    sums: list[float] = []
    for output in reference[0]:
        pairs = [(ours[output], theirs[output]) for ours, theirs in zip(outputs, reference, strict=True)]
        sums += np.sum([_products(a, b) for a, b in pairs], axis=0).tolist()
    return sums


def agreement_points(counts: np.ndarray) -> float:
    if counts.shape[1] == 1:
        return mean_points(counts)
    if counts.shape[1] == 2:
        return character_accuracy(counts)
    ab, aa, bb = counts.sum(axis=0).reshape(-1, 3).T
    closeness = np.where(aa + bb > NOTHING, 2 * ab / np.maximum(aa + bb, NOTHING), 1.0)
    return 100.0 * max(0.0, float(closeness.min()))


def _classes(name: str, output: np.ndarray) -> bool:
    return any(word in name.lower() for word in CLASS_OUTPUTS) and output.ndim >= 2 and output.shape[-1] >= 2


def _same_top(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours.argmax(-1) == theirs.argmax(-1)).mean()) if ours.shape == theirs.shape else 0.0


def _products(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return 0.0, 1.0, 1.0
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return float(a @ b), float(a @ a), float(b @ b)
