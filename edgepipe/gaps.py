"""How far outputs of the same inputs are apart, summed up over many: for parity and for batch and padding invariance."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.edit_distance import edit_distance, is_reading, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

EQUAL = 1e-6  # outputs that differ by less are the same; around zero their direction is rounding
FARTHEST = float(np.finfo(np.float32).max)  # JSON has no infinity


def row_gaps(together: Mapping[str, np.ndarray], alone: Sequence[Mapping[str, np.ndarray]]) -> Iterator[Gap]:
    for index, run in enumerate(alone):
        rows = {name: together[name][index : index + 1][tuple(slice(0, n) for n in value.shape)] for name, value in run.items()}
        yield gap_of(run, rows)


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two runs of one input are apart: sums for a cosine over many, the largest difference, the top class."""

    products: dict[str, tuple[float, float, float]]  # output → Σxy, Σx², Σy²
    max_abs: float
    same_top: bool


def gap_of(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Gap:
    """Outputs that are no numbers, or of unlike shapes, are as far apart as can be. Readings differ by their characters: the
    products count those alike, of one text and of the other; the largest difference is the share that is not."""
    if is_reading(a):
        one, other = words(a["text"]), words(b["text"])
        longer, wrong = max(len(one), len(other)), edit_distance(one, other)
        sums = (float(longer - wrong), float(len(one)), float(len(other)))
        return Gap({"text": sums}, wrong / max(1, longer), wrong == 0)
    products, largest = {}, 0.0
    for name in a:
        x, y = a[name].astype(np.float64).ravel(), b[name].astype(np.float64).ravel()
        alike = a[name].shape == b[name].shape
        if alike:  # a masked score is the same infinity in both
            x, y = (value[~(np.isinf(x) & (x == y))] for value in (x, y))
        if not alike or not (np.isfinite(x).all() and np.isfinite(y).all()):
            return Gap(dict.fromkeys(a, (0.0, 1.0, 1.0)), FARTHEST, False)
        products[name] = (float(x @ y), float(x @ x), float(y @ y))
        largest = max(largest, float(np.abs(x - y).max()) if x.size else 0.0)
    first = next(iter(a))
    return Gap(products, largest, bool((a[first].argmax(-1) == b[first].argmax(-1)).all()) if a[first].ndim else True)


def summary(gaps: Sequence[Gap]) -> dict[str, float]:
    """Over all inputs: the cosine of the output that is worst off, with all its values as one vector (a single number
    for each input would have cosine 1 by itself), the largest difference, the share of same top classes."""
    if not gaps:
        return {}
    largest = max(gap.max_abs for gap in gaps)
    cosines = []
    for name in gaps[0].products:
        xy, xx, yy = np.sum([gap.products[name] for gap in gaps], axis=0)
        cosines.append(xy / (xx * yy) ** 0.5 if xx * yy > 0 else 1.0)
    return {
        "n": len(gaps),
        "cosine": 1.0 if largest < EQUAL else 0.0 if largest >= FARTHEST else float(min(cosines)),
        "max_abs": largest,
        "label_agreement": statistics.fmean(gap.same_top for gap in gaps),
    }
