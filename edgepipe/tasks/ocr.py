"""Reading text: character accuracy, 100 · (1 − Σ edit distance / Σ characters), the complement of the character error rate.

White space is made equal first: where the reader breaks lines is no mistake. Lines are compared in reading order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.edit_distance import code_points, is_reading, mistakes
from edgepipe.errors import DataError, UsageError
from edgepipe.tasks import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from edgepipe.config import Task
    from edgepipe.tasks import Outputs


def make(config: Task) -> TaskSpec:
    return TaskSpec(config.name, "character accuracy", ("label",), score, character_accuracy, check_labels=check_texts)


def score(outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    """[edit distance, characters] of one image."""
    if not is_reading(outputs[0]):
        raise UsageError(
            "the model gives no text, and the task ocr judges what is read",
            where="[task]",
            fix='name the models in [components] with program = "ocr"; or use the task fidelity',
        )
    return mistakes(outputs[0]["text"], code_points(str(sample["label"])))


def character_accuracy(counts: np.ndarray) -> float:
    """In points; a reader that invents more than there is has none."""
    wrong, characters = counts.sum(axis=0)
    return max(0.0, 100.0 * float(1 - wrong / characters)) if characters else 0.0


def check_texts(samples: Sequence[Mapping[str, Any]], labels: Sequence[str], where: str) -> None:
    for sample in samples:
        if not str(sample.get("label", "")).strip():
            raise DataError(
                "a sample has no text to compare with",
                where=f"{where}: {sample.get('image')}",
                fix='write the text it shows in the column "label"',
            )
