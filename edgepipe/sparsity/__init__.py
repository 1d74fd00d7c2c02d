"""Zeros in the weights of linear layers: which, and by one file a method what becomes of the rest. Weights are [out, in]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which share of weights is zero; with `group`, that share of every `group` weights in a row (2 : 4 is 0.5 of 4)."""

    ratio: float
    group: int = 0

    @classmethod
    def of(cls, text: str) -> Pattern:
        """ "2:4": two of every four weights along the input stay."""
        kept, _, group = text.partition(":")
        return cls(1 - int(kept) / int(group), int(group))

    @property
    def cut(self) -> int:
        """Zeros in each group."""
        return round(self.ratio * self.group)


def lowest(scores: np.ndarray, pattern: Pattern, *, per_row: bool = False) -> np.ndarray:
    """True where a weight goes: the lowest scores of each group, of each row, or of the whole matrix."""
    rows, columns = scores.shape
    if pattern.group:
        ranked = scores.reshape(rows, columns // pattern.group, pattern.group)
        return _first(ranked, pattern.cut).reshape(rows, columns)
    if per_row:
        return _first(scores, round(pattern.ratio * columns))
    return _first(scores.reshape(1, -1), round(pattern.ratio * scores.size)).reshape(rows, columns)


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """True at the `count` lowest of the last axis: exactly as many, of equal ones the first."""
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(scores, axis=-1, kind="stable")[..., :count], True, axis=-1)
    return mask
