"""Which texts belong together, by pairs that are alike (union-find; Tarjan, 1975): a cluster is everything that a chain of pairs joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.near_duplicates.index import index_of
from edgepipe.near_duplicates.pairs import similar_pairs
from edgepipe.near_duplicates.passages import shared_passages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.near_duplicates.windows import Text
    from edgepipe.progress import Progress


@dataclass(frozen=True, slots=True)
class Link:
    """Why row `b` is in the cluster of row `a`: their exact similarity, or how many words of a passage they share."""

    a: int
    b: int
    similarity: float | None = None
    passage_words: int | None = None


@dataclass(frozen=True, slots=True)
class Clusters:
    """`first` [texts]: the first text of each one's cluster. `repeats` [texts]: whether it has all windows of an earlier one."""

    first: np.ndarray
    repeats: np.ndarray
    links: tuple[Link, ...]

    def members(self) -> list[np.ndarray]:
        """The rows of each cluster of two or more, in order."""
        order = np.argsort(self.first, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.first[order])) + 1)
        return [group for group in groups if len(group) > 1]


class Joined:
    """Sets of rows that grow together; the name of a set is its first row."""

    def __init__(self, first: np.ndarray) -> None:
        self._above = first.astype(np.int64)

    def group(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._above[rows]
        while not np.array_equal(found, above := self._above[found]):
            found = above
        return found

    def wanted(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(self.group(a) != self.group(b))

    def join(self, a: int, b: int) -> bool:
        """Whether they were apart."""
        one, other = self._root(a), self._root(b)
        self._above[max(one, other)] = min(one, other)
        return one != other

    def _root(self, row: int) -> int:
        while (above := int(self._above[row])) != row:
            self._above[row] = self._above[above]  # halves the way for the next
            row = above
        return row


def clusters_of(texts: Sequence[Text], threshold: float, words: int, progress: Progress | None = None) -> Clusters:
    """Texts of at least this similarity together, and those that share a passage of that many words. 0 stands for "do not look"."""
    index = index_of(texts, threshold or 1.0, progress)
    joined, links = Joined(index.same), list[Link]()
    for pairs in similar_pairs(index, joined):
        for a, b, value in zip(*(column.tolist() for column in pairs), strict=True):
            if joined.join(a, b):
                links.append(Link(min(a, b), max(a, b), similarity=value))
    for passage in shared_passages(texts, words, joined) if words else ():
        if joined.join(passage.a, passage.b):
            links.append(Link(min(passage.a, passage.b), max(passage.a, passage.b), passage_words=passage.words))
    return Clusters(joined.group(np.arange(len(texts))), index.same != np.arange(len(texts)), tuple(links))
