"""Every pair of texts that are alike: neighbours in a band of the index, judged by their exact similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgepipe.errors import ResourceError
from edgepipe.near_duplicates.similarity import similarities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepipe.near_duplicates.index import Index

MOST = 100_000_000  # pairs that are judged: a few minutes


class Comparison(Protocol):
    """Which rows are worth comparing; asked again after each pair that was found."""

    def wanted(self, a: np.ndarray, b: np.ndarray) -> np.ndarray: ...

    def group(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the same group are not compared with each other."""
        ...


def similar_pairs(index: Index, among: Comparison) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(a, b, similarity) of distinct texts at least as similar as the index's threshold, some of them again and again."""
    counts, judged = np.diff(index.sets.offsets), 0
    for keys, band_rows in zip(index.keys, index.rows, strict=True):
        rows = np.asarray(band_rows)
        for first, second in neighbours(np.asarray(keys), lambda rows=rows: among.group(rows)):  # type: ignore[misc]
            a, b = rows[first], rows[second]
            near = np.minimum(counts[a], counts[b]) >= index.threshold * np.maximum(counts[a], counts[b])  # else they cannot be
            near[near] = among.wanted(a[near], b[near])
            a, b = a[near], b[near]
            judged = enough(judged + len(a))
            if len(a):
                values = similarities(index.sets, a, index.sets, b)
                alike = values >= index.threshold
                if alike.any():
                    yield a[alike], b[alike], values[alike]


def neighbours(keys: np.ndarray, group: Callable[[], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(place, place) of all pairs with equal keys, of keys in order: those next to each other first, then those two apart, …

    `group` gives every place's group as it stands; a run of equal keys that has become one group is left.
    """
    changes = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) if len(keys) else np.zeros(0, np.int64)
    last = np.repeat(changes, np.diff(changes, prepend=-1))  # of each place's run
    starts, apart = np.flatnonzero(last > np.arange(len(keys))), 1
    while len(starts):
        if apart & (apart - 1) == 0:
            groups = group()
            unlike = np.concatenate([[0], np.cumsum(groups[1:] != groups[:-1])])
            starts = starts[unlike[last[starts]] > unlike[starts]]
        starts = starts[starts + apart <= last[starts]]
        if len(starts):
            yield starts, starts + apart
        apart += 1


def enough(judged: int) -> int:
    """The count, unless so many texts are a little alike that comparing them would not end."""
    if judged > MOST:
        raise ResourceError(
            f"the texts are too much alike: more than {MOST:,} pairs would have to be compared",
            where="near-duplicates",
            fix="compare with a higher threshold ([data] near_duplicates, --threshold), or take out what all texts have in common",
        )
    return judged
