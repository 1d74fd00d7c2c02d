"""Which rows a table loses when one of each cluster is kept, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.near_duplicates.similarity import similarities
from edgepipe.near_duplicates.windows import sides_of, window_sets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepipe.near_duplicates.clusters import Clusters, Link
    from edgepipe.near_duplicates.windows import Text

BATCH = 20_000  # texts


def dropped_rows(texts: Sequence[Text], clusters: Clusters) -> Iterator[dict[str, Any]]:
    """For each row that goes: the row that stays for it, their exact similarity, and the pair that joined them where a chain did.

    Rows are counted from 1.
    """
    gone = np.flatnonzero(clusters.first != np.arange(len(texts)))
    joined_by: dict[int, Link] = {}
    for link in clusters.links:
        for row in (link.a, link.b):
            joined_by.setdefault(row, link)
    for start in range(0, len(gone), BATCH):
        rows = gone[start : start + BATCH]
        stays = clusters.first[rows]
        pairs = window_sets([texts[row] for row in (*rows, *stays)])
        count = len(rows)
        values = similarities(pairs, np.arange(count), pairs, np.arange(count, 2 * count))
        for row, kept, value in zip(rows.tolist(), stays.tolist(), values.tolist(), strict=True):
            yield {
                "row": row + 1,
                "kept": kept + 1,
                "similarity": value,
                "pair": _pair(joined_by[row]) if row in joined_by else None,
                "text": " / ".join(sides_of(texts[row])),
                "kept_text": " / ".join(sides_of(texts[kept])),
            }


def _pair(link: Link) -> dict[str, Any]:
    return {"rows": [link.a + 1, link.b + 1], "similarity": link.similarity, "passage_words": link.passage_words}
