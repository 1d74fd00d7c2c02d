"""What text and image classification share: one label per sample, accuracy in points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError, nearest
from edgepipe.tasks import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from edgepipe.tasks import Outputs


def classification(name: str, columns: tuple[str, ...]) -> TaskSpec:
    return TaskSpec(name, "accuracy", columns, score, mean_points, predicted=predicted, check_labels=check_labels)


def first_output(outputs: Outputs) -> np.ndarray:
    return next(iter(outputs[0].values()))


def predicted(outputs: Outputs, labels: Sequence[str]) -> str:
    return labels[int(first_output(outputs)[0].argmax())]


def score(outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    return [float(predicted(outputs, labels) == label_name(sample["label"], labels))]


def mean_points(counts: np.ndarray) -> float:
    return 100.0 * float(counts[:, 0].mean())


def label_name(label: object, labels: Sequence[str]) -> str:
    """A label as the model names it: the name itself, or a class number."""
    text = str(label)
    if text not in labels and text.isdecimal() and int(text) < len(labels):
        return labels[int(text)]
    return text


def check_labels(samples: Sequence[Mapping[str, Any]], labels: Sequence[str], where: str) -> None:
    """Refuse labels the model does not know, and data of one class only."""
    found = set()
    for sample in samples:
        if "label" not in sample:
            raise DataError(
                "a sample has no label",
                where=where,
                fix='images need a folder per label, a .npz an array "label"; or use the task fidelity',
            )
        name = label_name(sample["label"], labels)
        if name not in labels:
            raise DataError(
                f'unknown label "{sample["label"]}"',
                where=where,
                fix=f"{nearest(name, labels)} Map it with [data.label_map] or name the model's labels in [task] labels",
            )
        found.add(name)
    if len(found) == 1:
        raise DataError(
            f'every sample has the label "{found.pop()}"',
            where=where,
            fix="data of one class says nothing about accuracy; add samples of the others",
        )
