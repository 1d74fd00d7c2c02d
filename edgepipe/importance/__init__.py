"""What matters in a model, by one file a method, and which units stay when the least important are cut."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


def unit_importance(method: str, module: Any, artifact: Artifact, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Per layer {"heads": [heads], "ffn": [width]}, by taylor, magnitude or activation. Raises `DataError` where the method needs calibration data and there is none."""
    found: list[dict[str, np.ndarray]] = import_module(f"edgepipe.importance.{method}").importance(module, artifact, ctx)
    return found


def choose_kept(scores: list[np.ndarray], ratio: float, *, per_layer: bool, multiple_of: int = 1) -> list[list[int]]:
    """Which units of each layer stay when `ratio` of all are cut, least important first.

    Every layer keeps at least `multiple_of` units, and counts land on multiples of it.
    """
    import numpy as np

    if per_layer:
        counts = [len(s) - round(ratio * len(s)) for s in scores]
    else:
        owner = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
        everything = np.concatenate(scores)
        # By rank, not by a threshold: many units tie where they never fire, and a threshold would cut them all.
        cut = np.argsort(everything, kind="stable")[: round(ratio * len(everything))]
        lost = np.bincount(owner[cut], minlength=len(scores))
        counts = [len(s) - int(n) for s, n in zip(scores, lost, strict=True)]
    widths = [
        min(len(layer), max(multiple_of, round(count / multiple_of) * multiple_of)) for layer, count in zip(scores, counts, strict=True)
    ]
    return [most_important(layer, width) for layer, width in zip(scores, widths, strict=True)]


def most_important(scores: np.ndarray, count: int) -> list[int]:
    """The places of the `count` highest scores, in order; of equal ones the first."""
    return sorted(int(i) for i in (-scores).argsort(kind="stable")[:count])


def choose_counts(scores: list[np.ndarray], counts: Sequence[int], what: str, where: str) -> list[list[int]]:
    """As `choose_kept`, with the number that stays in each layer given. Raises `UsageError` for numbers no layer can keep."""
    if len(counts) != len(scores):
        raise UsageError(
            f"{len(counts)} numbers for {len(scores)} layers", where=where, fix="give one number for each layer, the first first"
        )
    for index, (layer, count) in enumerate(zip(scores, counts, strict=True)):
        if not 1 <= count <= len(layer):
            raise UsageError(
                f"layer {index} cannot keep {count} of its {len(layer)} {what}", where=where, fix=f"give 1 to {len(layer)} for that layer"
            )
    return [most_important(layer, count) for layer, count in zip(scores, counts, strict=True)]
