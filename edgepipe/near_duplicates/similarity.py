"""Exact Jaccard similarity of many pairs of window sets at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgepipe.near_duplicates.windows import WindowSets

CHUNK = 1 << 21  # windows looked at together: 100 MB


def similarities(one: WindowSets, a: np.ndarray, other: WindowSets, b: np.ndarray) -> np.ndarray:
    """For each pair (text a[i] of one, text b[i] of the other): shared windows over all windows; the lower of two sides'.

    Two texts without windows have nothing in common.
    """
    total = np.cumsum(one.offsets[a + 1] - one.offsets[a] + other.offsets[b + 1] - other.offsets[b])
    bounds = [0, *(np.flatnonzero(np.diff(total // CHUNK)) + 1).tolist(), len(a)]
    parts = [_similarities(one, a[start:end], other, b[start:end]) for start, end in pairwise(bounds)]
    return np.concatenate(parts)


def _similarities(one: WindowSets, a: np.ndarray, other: WindowSets, b: np.ndarray) -> np.ndarray:
    pair, windows = _windows_of(one, a)
    shared = _is_in(windows, other, b[pair])
    other_pair, other_windows = _windows_of(other, b)
    result = np.ones(len(a))
    for side in (0, 1):
        ours = (windows & np.uint64(1)) == side
        theirs = (other_windows & np.uint64(1)) == side
        both = np.bincount(pair[shared & ours], minlength=len(a))
        all_of = np.bincount(pair[ours], minlength=len(a)) + np.bincount(other_pair[theirs], minlength=len(a)) - both
        result = np.where(all_of > 0, np.minimum(result, both / np.maximum(all_of, 1)), result)
    nothing = (one.offsets[a] == one.offsets[a + 1]) & (other.offsets[b] == other.offsets[b + 1])
    return np.where(nothing, 0.0, result)


def _windows_of(sets: WindowSets, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which of `rows`, window) of all windows of these rows."""
    starts, counts = sets.offsets[rows], sets.offsets[rows + 1] - sets.offsets[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    return owner, sets.hashes[np.arange(len(owner)) + (starts - (np.cumsum(counts) - counts))[owner]]


def _is_in(windows: np.ndarray, sets: WindowSets, rows: np.ndarray) -> np.ndarray:
    """Whether each window is one of its row's: a binary search in all rows at once."""
    low, end = sets.offsets[rows], sets.offsets[rows + 1]
    high = end
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        searching = low < high
        middle = (low + high) >> 1
        less = sets.hashes[np.where(searching, middle, 0)] < windows
        low = np.where(searching & less, middle + 1, low)
        high = np.where(searching & ~less, middle, high)
    inside: np.ndarray = low < end
    inside[inside] = sets.hashes[low[inside]] == windows[inside]
    return inside
