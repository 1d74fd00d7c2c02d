"""Which rows a table loses when one of each cluster is kept, and why."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.near_duplicates.similarity import similarities
from edgepipe.near_duplicates.windows import sides_of, window_sets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgepipe.near_duplicates.clusters import Clusters, Link
    from edgepipe.near_duplicates.windows import Text

BATCH = 20_000  # texts


class Sources:
    """Texts of several files one after the other; the last file is the one that loses rows."""

    def __init__(self, files: Mapping[str, Sequence[Text]]) -> None:
        self.texts = list(chain.from_iterable(files.values()))
        self._names, self._last = list(files), len(self.texts) - len(list(files.values())[-1])
        self._starts = np.cumsum([0, *map(len, files.values())])

    def kept(self, clusters: Clusters) -> list[int]:
        """The rows of the last file that stay: the first of their clusters."""
        first = clusters.first[self._last :]
        return np.flatnonzero(first == np.arange(self._last, len(self.texts))).tolist()

    def gone(self, clusters: Clusters) -> np.ndarray:
        """The rows of the last file that do not, counted over all files."""
        first = clusters.first[self._last :]
        return np.flatnonzero(first != np.arange(self._last, len(self.texts))) + self._last

    def place(self, row: int) -> dict[str, Any]:
        """The file, and the row in it from 1."""
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        return {"file": self._names[at], "row": row - int(self._starts[at]) + 1}


def dropped_rows(sources: Sources, clusters: Clusters) -> Iterator[dict[str, Any]]:
    """For each row that goes: the row that stays for it, their exact similarity, and the pair that joined them, where a chain did."""
    gone, texts = sources.gone(clusters), sources.texts
    joined_by: dict[int, Link] = {}
    for link in clusters.links:
        for row in (link.a, link.b):
            joined_by.setdefault(row, link)
    for start in range(0, len(gone), BATCH):
        rows = gone[start : start + BATCH]
        stays = clusters.first[rows]
        pairs, count = window_sets([texts[row] for row in (*rows, *stays)]), len(rows)
        values = similarities(pairs, np.arange(count), pairs, np.arange(count, 2 * count))
        for row, kept, value in zip(rows.tolist(), stays.tolist(), values.tolist(), strict=True):
            yield {
                **sources.place(row),
                "kept": sources.place(kept),
                "similarity": value,
                "joined_by": _pair(joined_by[row], sources) if row in joined_by else None,
                "text": " / ".join(sides_of(texts[row])),
                "kept_text": " / ".join(sides_of(texts[kept])),
            }


def _pair(link: Link, sources: Sources) -> dict[str, Any]:
    places = [sources.place(row) for row in (link.a, link.b)]
    return {"rows": places, "similarity": link.similarity, "passage_words": link.passage_words}
