"""Sentence similarity: Spearman's rank correlation of cosine similarity with human scores, times 100."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import DataError
from edgepipe.tasks import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.config import Task
    from edgepipe.tasks import Outputs


def make(config: Task) -> TaskSpec:
    return TaskSpec(config.name, "Spearman", ("text", "text_pair", "label"), score, spearman_points, check_labels=check_scores)


def score(outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    """[cosine of the two embeddings, the human score]."""
    first, second = (np.asarray(next(iter(run.values()))[0], dtype=np.float64).ravel() for run in outputs)
    return [float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12)), float(sample["label"])]


def spearman_points(counts: np.ndarray) -> float:
    ranks = np.stack([_average_ranks(counts[:, 0]), _average_ranks(counts[:, 1])])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    scale = float(np.sqrt((centred**2).sum(axis=1).prod()))
    return 100.0 * float(centred[0] @ centred[1]) / scale if scale else 0.0


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks: np.ndarray = (ends - (counts - 1) / 2.0)[inverse]
    return ranks


def check_scores(samples: Sequence[Mapping[str, Any]], labels: Sequence[str], where: str) -> None:
    seen = set()
    for sample in samples:
        try:
            value = float(sample["label"])
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            raise DataError(f'the score "{sample["label"]}" is no number', where=where, fix="similarity scores are numbers")
        seen.add(value)
    if len(seen) == 1:
        raise DataError("every pair has the same score", where=where, fix="rank correlation needs scores that differ")
