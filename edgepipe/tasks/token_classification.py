"""Token classification: a tag per word. Micro-averaged F1 over entities when tags are BIO, else word accuracy.

Entities are spans of one type (CoNLL-2003 evaluation, Tjong Kim Sang and De Meulder, 2003); the driver's outputs
hold one row per word piece, and a word has the tag of its first piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import DataError, nearest
from edgepipe.tasks import TaskSpec
from edgepipe.tasks.classification import first_output, label_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from edgepipe.config import Task
    from edgepipe.tasks import Outputs


def make(config: Task) -> TaskSpec:
    return TaskSpec(config.name, "F1", ("tokens", "label"), score, f1_points, check_labels=check_labels)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(start, end, type) of every span; an I- tag that continues nothing starts a span, as in CoNLL's script."""
    spans, start, kind = set(), 0, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix in ("B", "O") or name != kind):
            spans.add((start, index, kind))
            kind = ""
        if not kind and prefix in ("B", "I"):
            start, kind = index, name
    return spans


def score(outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    """[true positives, predicted, wanted] over entities; over words where the tags are not BIO."""
    best = first_output(outputs)[0].argmax(-1)
    firsts = sample["word_starts"]
    wanted = [label_name(tag, labels) for tag in sample["label"]][: len(firsts)]
    got = [labels[int(best[index])] for index in firsts]
    if not any(name.startswith(("B-", "I-")) for name in labels):
        return [float(sum(a == b for a, b in zip(got, wanted, strict=True))), float(len(got)), float(len(wanted))]
    predicted, true = entities(got), entities(wanted)
    return [float(len(predicted & true)), float(len(predicted)), float(len(true))]


def f1_points(counts: np.ndarray) -> float:
    hits, predicted, wanted = counts.sum(axis=0)
    return 100.0 * float(2 * hits / (predicted + wanted)) if predicted + wanted else 100.0


def check_labels(samples: Sequence[Mapping[str, Any]], labels: Sequence[str], where: str) -> None:
    for sample in samples:
        if len(sample["tokens"]) != len(sample["label"]):
            raise DataError(
                f"{len(sample['tokens'])} tokens but {len(sample['label'])} tags: {' '.join(sample['tokens'])[:60]!r}",
                where=where,
                fix="give one tag a token",
            )
        for tag in sample["label"]:
            if label_name(tag, labels) not in labels:
                raise DataError(f'unknown tag "{tag}"', where=where, fix=nearest(str(tag), labels))
