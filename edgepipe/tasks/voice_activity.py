"""Voice activity: F1 of speech over all steps, at the threshold 0.5.

A step counts as speech where its middle lies in an interval that the label names. F1 and not accuracy, since recordings are
mostly speech or mostly silence: a detector that always says the same would look good (frame-level F1 is what AVA-Speech
and the field's toolkits report beside the detection error rate; Chaudhuri et al., arXiv 1808.00606).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import DataError, UsageError
from edgepipe.tasks import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.config import Task
    from edgepipe.tasks import Outputs

THRESHOLD = 0.5
INTERVAL = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")
SILENCE = "none"  # the label of a recording without speech


def make(config: Task) -> TaskSpec:
    return TaskSpec(config.name, "speech F1", ("label",), score, f1_points, check_labels=check_intervals)


def intervals(label: str) -> list[tuple[float, float]]:
    """`"0.50-1.92 2.4-3.1"` → [(0.5, 1.92), (2.4, 3.1)] in seconds. Raises ValueError."""
    words = label.split()
    if words == [SILENCE]:
        return []
    found = [INTERVAL.fullmatch(word) for word in words]
    if not found:
        raise ValueError("it is empty")
    result = []
    for word, match in zip(words, found, strict=True):
        if match is None or float(match[1]) >= float(match[2]):
            raise ValueError(f'"{word}" is no interval')
        result.append((float(match[1]), float(match[2])))
    return result


def speech_steps(spans: Sequence[tuple[float, float]], steps: int, seconds: float) -> np.ndarray:
    """[steps] bool: those whose middle lies in a span."""
    middles = (np.arange(steps) + 0.5) * seconds
    found: np.ndarray = np.any([(middles >= start) & (middles < end) for start, end in spans] or [np.zeros(steps, bool)], axis=0)
    return found


def score(outputs: Outputs, reference: Outputs, sample: Mapping[str, Any], labels: Sequence[str]) -> Sequence[float]:
    """[steps rightly called speech, called speech, that are speech] of one recording."""
    values = np.asarray(next(iter(outputs[0].values())))
    if values.size != len(values) or "audio" not in sample:
        raise UsageError(
            f"the model gives {list(values.shape)} for a recording, and the task voice-activity needs one probability a step",
            where="[task]",
            fix="use a model that is driven by audio ([stream] chunk), or the task fidelity",
        )
    spans = intervals(str(sample["label"]))
    called = values.ravel() >= THRESHOLD
    speech = speech_steps(spans, len(called), sample["step_seconds"])
    return [float((called & speech).sum()), float(called.sum()), float(speech.sum())]


def f1_points(counts: np.ndarray) -> float:
    hits, called, speech = counts.sum(axis=0)
    return 100.0 * float(2 * hits / (called + speech)) if called + speech else 100.0


def check_intervals(samples: Sequence[Mapping[str, Any]], labels: Sequence[str], where: str) -> None:
    for sample in samples:
        try:
            intervals(str(sample.get("label", "")))
        except ValueError as error:
            raise DataError(
                f"the label {str(sample.get('label', ''))!r} does not say where speech is: {error}",
                where=f"{where}: {sample.get('audio')}",
                fix=f'write seconds as "0.50-1.92 2.4-3.1", or "{SILENCE}"',
            ) from None
