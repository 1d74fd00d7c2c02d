"""What a user wants to know of data before building with it: size, repeats, lengths, labels, and what files share."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.errors import DataError
from edgepipe.near_duplicates.windows import sides_of, words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from edgepipe.near_duplicates.clusters import Clusters
    from edgepipe.near_duplicates.windows import Text

SHOWN = 5  # pairs that stand as examples


def statistics(
    tables: Mapping[str, tuple[Sequence[Text], Sequence[str | None]]], clusters: Clusters, count_tokens: Callable[[Text], int] | None
) -> dict[str, Any]:
    """`tables`: name → (texts, labels); `clusters`: of all their texts, one table after the other."""
    names = list(tables)
    table_of = np.repeat(np.arange(len(names)), [len(tables[name][0]) for name in names])
    files = {name: _of_one(*tables[name], clusters, np.flatnonzero(table_of == at), count_tokens) for at, name in enumerate(names)}
    shared = [_between(clusters, table_of, one, other, names) for one, other in combinations(range(len(names)), 2)]
    texts = [text for name in names for text in tables[name][0]]
    examples = [
        {
            "similarity": link.similarity,
            "passage_words": link.passage_words,
            "texts": [{"file": names[table_of[row]], "text": " / ".join(sides_of(texts[row]))} for row in (link.a, link.b)],
        }
        for link in sorted(clusters.links, key=lambda link: bool(table_of[link.a] == table_of[link.b]))[:SHOWN]
    ]
    return {"files": files, "shared": shared, "examples": examples}


def _of_one(
    texts: Sequence[Text], labels: Sequence[str | None], clusters: Clusters, rows: np.ndarray, count_tokens: Callable[[Text], int] | None
) -> dict[str, Any]:
    lengths = [sum(len(words_of(side)) for side in sides_of(text)) for text in texts]
    normalised = Counter(tuple(tuple(words_of(side)) for side in sides_of(text)) for text in texts if any(map(str.strip, sides_of(text))))
    repeats = sum(normalised.values()) - len(normalised)
    heads = np.unique(clusters.first[rows], return_counts=True)[1]
    counted = Counter(label for label in labels if label is not None)
    return {
        "rows": len(texts),
        "empty": sum(not any(map(str.strip, sides_of(text))) for text in texts),
        "exact_repeats": repeats,
        "near_duplicates": int((heads - 1).sum()) - repeats,
        "words": _spread(lengths),
        **({"tokens": _spread([count_tokens(text) for text in texts])} if count_tokens else {}),
        "labels": dict(counted.most_common()) if len(counted) <= max(20, len(texts) // 10) else None,
        "distinct_labels": len(counted),
        "unlabelled": sum(label is None for label in labels),
        "balance": _balance(counted.values()),
    }


def _between(clusters: Clusters, table_of: np.ndarray, one: int, other: int, names: Sequence[str]) -> dict[str, Any]:
    """How many rows of each have something alike in the other."""
    first, second = clusters.first[table_of == one], clusters.first[table_of == other]
    both = np.intersect1d(first, second)
    return {"files": [names[one], names[other]], "rows": [int(np.isin(first, both).sum()), int(np.isin(second, both).sum())]}


def _spread(values: Sequence[int]) -> dict[str, float]:
    low, median, high, most = np.percentile(values, [0, 50, 95, 100])
    return {"least": int(low), "median": float(median), "p95": float(high), "most": int(most), "total": int(sum(values))}


def _balance(counts: Iterable[int]) -> float | None:
    """Entropy of the labels over its largest value: 1 where all are as frequent; None for fewer than two."""
    shares = np.array(list(counts), float)
    if len(shares) < 2:
        return None
    shares /= shares.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(shares)))


def token_counter(path: Path) -> Callable[[Text], int]:
    """How many tokens a text, or a pair, is for this tokenizer, with those that it adds."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError("there is no tokenizer.json", where=str(path), fix="name one, or a model folder that has one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"not a readable tokenizer: {error}", where=str(file), fix="save it again with the model") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(*sides_of(text)).ids)
