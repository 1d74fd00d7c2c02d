"""Passages that texts share word for word, found by winnowing and then compared.

Schleimer, Wilkerson, Aiken, "Winnowing: local algorithms for document fingerprinting" (2003): of the hashes of all runs of k
words, the least in every window of w is kept. A passage of w + k - 1 words holds one whole window, so it has the same
fingerprint in both texts; k is half the length asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.near_duplicates.pairs import enough, neighbours
from edgepipe.near_duplicates.windows import hashes_at, word_hashes, words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepipe.near_duplicates.pairs import Comparison
    from edgepipe.near_duplicates.windows import Text

PASSAGE = 50  # words: the length at which Lee et al., "Deduplicating training data makes language models better" (2022), cut
BATCH = 20_000  # texts
CHUNK = 1 << 21  # words


@dataclass(frozen=True, slots=True)
class Passage:
    """`words` words from word `start` of text `a` that stand in text `b` too."""

    a: int
    b: int
    start: int
    words: int


@dataclass(frozen=True, slots=True)
class _Words:
    """Texts that are long enough: `hashes[offsets[i] : offsets[i + 1]]` are the words of row `rows[i]`."""

    rows: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray


def shared_passages(texts: Sequence[Text], words: int, among: Comparison) -> Iterator[Passage]:
    """Texts with at least `words` consecutive words in common; two may come once for each fingerprint of their passage.

    Pairs are left out: data of pairs often has one text in many of them.
    """
    long = _long_texts(texts, words)
    prints, places = _fingerprints(long, words)
    owners = np.searchsorted(long.offsets, places, side="right") - 1
    rows = long.rows[owners]
    judged = 0
    for first, second in neighbours(prints, lambda: among.group(rows)):
        worth = np.flatnonzero((rows[first] != rows[second]) & among.wanted(rows[first], rows[second]))
        judged = enough(judged + len(worth))
        for one, other in zip(first[worth], second[worth], strict=True):
            if among.wanted(rows[[one]], rows[[other]])[0]:  # one just found may have settled it
                before, length = _common(long, owners[one], places[one], owners[other], places[other])
                start = int(places[one] - long.offsets[owners[one]]) - before
                if length >= words:
                    yield Passage(int(rows[one]), int(rows[other]), start, length)


def _long_texts(texts: Sequence[Text], words: int) -> _Words:
    rows, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    lengths = [np.zeros(1, np.int64)]
    for start in range(0, len(texts), BATCH):
        batch = [
            (row, text) for row, text in enumerate(texts[start : start + BATCH], start) if isinstance(text, str) and len(text) >= words
        ]
        offsets, found = word_hashes([text for _, text in batch])
        counts = np.diff(offsets)
        long = counts >= words
        rows.append(np.array([row for row, _ in batch], np.int64)[long])
        lengths.append(counts[long])
        hashes.append(found[np.repeat(long, counts)])
    return _Words(np.concatenate(rows), np.cumsum(np.concatenate(lengths)), np.concatenate(hashes))


def _fingerprints(long: _Words, words: int) -> tuple[np.ndarray, np.ndarray]:
    """(fingerprint, place of its first word) in the order of fingerprints, then of places."""
    size = (words + 1) // 2
    window = words - size + 1
    found = [_winnowed(long, first, last, size, window) for first, last in _stretches(long.offsets)]
    places = np.concatenate(found) if found else np.zeros(0, np.int64)
    prints = hashes_at(long.hashes, places, size)
    order = np.lexsort((places, prints))
    return prints[order], places[order]


def _stretches(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Texts in turn, as many as hold about `CHUNK` words."""
    bounds = [0, *(np.flatnonzero(np.diff(offsets // CHUNK)) + 1).tolist(), len(offsets) - 1]
    return ((first, last) for first, last in pairwise(bounds) if first < last)


def _winnowed(long: _Words, first: int, last: int, size: int, window: int) -> np.ndarray:
    """The places that are kept in texts `first` up to `last`."""
    begin, end = int(long.offsets[first]), int(long.offsets[last])
    hashes = hashes_at(long.hashes, np.arange(begin, end - size + 1), size)
    if len(hashes) < window:
        return np.zeros(0, np.int64)
    starts = np.arange(len(hashes) - window + 1)
    least = starts + np.lib.stride_tricks.sliding_window_view(hashes, window).argmin(axis=1)
    ends = np.repeat(long.offsets[first + 1 : last + 1], np.diff(long.offsets[first : last + 1]))[: len(starts)]
    inside = begin + starts + window + size - 1 <= ends  # windows that lie in one text
    return np.unique(least[inside]) + begin


def _common(long: _Words, one: int, at: int, other: int, there: int) -> tuple[int, int]:
    """(words before `at` that are the same too, length of the whole run) of two texts that have a word in common."""
    back = min(at - long.offsets[one], there - long.offsets[other])
    ahead = min(long.offsets[one + 1] - at, long.offsets[other + 1] - there)
    h = long.hashes
    before = _run(h[at - back : at][::-1], h[there - back : there][::-1])
    return before, before + _run(h[at : at + ahead], h[there : there + ahead])


def _run(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading values are equal."""
    unlike = np.flatnonzero(a != b)
    return int(unlike[0]) if len(unlike) else len(a)


def passage_text(text: str, passage: Passage) -> str:
    """The passage's words, normalised, out of text `a`."""
    return " ".join(words_of(text)[passage.start : passage.start + passage.words])
