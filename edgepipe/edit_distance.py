"""Edit distance: the fewest insertions, deletions and substitutions that make one text of another (Levenshtein, 1966)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

BLANK = (9, 10, 11, 12, 13, 32)  # code points that end a word


def edit_distance(one: np.ndarray, other: np.ndarray) -> int:
    """Between two arrays of code points, [n] and [m]. A row of the table at a time (Wagner and Fischer, 1974)."""
    steps = np.arange(len(other) + 1)
    row = steps.copy()
    for index, symbol in enumerate(one, start=1):
        best = np.concatenate([[index], np.minimum(row[1:] + 1, row[:-1] + (other != symbol))])
        row = np.minimum.accumulate(best - steps) + steps  # the insertions
    return int(row[-1])


def is_reading(outputs: Mapping[str, Any]) -> bool:
    """Whether these are the outputs of a program that reads: `text` as code points, lines ended by 10."""
    return "text" in outputs and "boxes" in outputs and outputs["text"].ndim == 1


def words(points: np.ndarray) -> np.ndarray:
    """The code points with one space between words, wherever lines end: where a line is broken is no matter of reading."""
    blank = np.isin(points, BLANK)
    kept = ~blank | np.concatenate([[False], ~blank[:-1]])[: len(points)]
    single = np.where(blank, 32, points)[kept]
    result: np.ndarray = single[:-1] if len(single) and single[-1] == 32 else single
    return result


def code_points(text: str) -> np.ndarray:
    return np.array([ord(character) for character in text], dtype=np.int32)


def mistakes(read: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """(edit distance, characters of the true text) of two arrays of code points, white space made equal."""
    got, wanted = words(read), words(true)
    return float(edit_distance(got, wanted)), float(len(wanted))
