"""Texts of one split that are nearly those of another, and passages that stand in both: what the overlap rule of a build refuses."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgepipe.artifact import digest
from edgepipe.errors import ResourceError, UsageError
from edgepipe.near_duplicates.clusters import clusters_of
from edgepipe.near_duplicates.index import index_of
from edgepipe.near_duplicates.pairs import similar_pairs
from edgepipe.near_duplicates.passages import passage_text, shared_passages
from edgepipe.near_duplicates.signatures import versions
from edgepipe.near_duplicates.windows import WINDOW, sides_of
from edgepipe.store import Store

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgepipe.near_duplicates.windows import Text

SHOWN = 100  # characters of a text in a message


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts of one split. Samples are compared with samples; both sides of pairs with texts that have no pair."""

    split: str
    texts: Sequence[Text]
    of: Literal["samples", "sides", "texts"] = "samples"


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two splits share, and how a message says it."""

    one: str
    other: str
    what: str
    setting: Literal["near_duplicates", "shared_passage"]


class _Apart:
    """Rows are compared when their groups may not share anything."""

    def __init__(self, groups: np.ndarray, forbidden: np.ndarray) -> None:
        self._groups, self._forbidden = groups, forbidden

    def group(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._groups[rows])

    def wanted(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(self._forbidden[self._groups[a], self._groups[b]])


def first_overlap(documents: Sequence[Documents], allowed: Collection[frozenset[str]], threshold: float, words: int) -> Overlap | None:
    """A text that is at least this similar to one of another split, else a passage of so many words in both; None where there is
    neither, which is kept, so that the same texts are compared once. 0 stands for "do not look"."""
    forbidden = np.array([[_may_not_share(one, other, allowed) for other in documents] for one in documents])
    if not forbidden.any() or not any(one.texts for one in documents):
        return None
    compared = [Documents(one.split, list(dict.fromkeys(one.texts)), one.of) for one in documents]
    key = _key(
        "overlap",
        [text for one in compared for text in one.texts],
        threshold,
        words,
        [len(one.texts) for one in compared],
        forbidden.tolist(),
    )
    if Store.default().get_result(key) is not None:
        return None
    found = _first_overlap(compared, forbidden, threshold, words)
    if found is None:
        _keep(key, {"overlap": None})
    return found


def _may_not_share(one: Documents, other: Documents, allowed: Collection[frozenset[str]]) -> bool:
    comparable = {one.of, other.of} in ({"samples"}, {"sides", "texts"})
    return one.split != other.split and comparable and frozenset((one.split, other.split)) not in allowed


def _first_overlap(documents: Sequence[Documents], forbidden: np.ndarray, threshold: float, words: int) -> Overlap | None:
    texts = [text for one in documents for text in one.texts]
    groups = np.repeat(np.arange(len(documents)), [len(one.texts) for one in documents])
    among = _Apart(groups, forbidden)
    order = list(dict.fromkeys(one.split for one in documents))

    def named(a: int, b: int) -> tuple[tuple[int, str], tuple[int, str]]:
        """(row, split) of both, in the order of the splits."""
        one, other = sorted((order.index(documents[groups[row]].split), row) for row in (a, b))
        return (one[1], order[one[0]]), (other[1], order[other[0]])

    for pairs in similar_pairs(index_of(texts, threshold, groups=groups), among) if threshold else ():
        a, b, value = min(zip(*(column.tolist() for column in pairs), strict=True))
        (row, one), (other_row, other) = named(a, b)
        what = f"have texts that are nearly the same (similarity {value:.2f}): {_short(texts[row])} and {_short(texts[other_row])}"
        return Overlap(one, other, what, "near_duplicates")
    for passage in shared_passages(texts, words, among) if words else ():
        (_, one), (_, other) = named(passage.a, passage.b)
        what = f"share a passage of {passage.words} words: {_short(passage_text(str(texts[passage.a]), passage))}"
        return Overlap(one, other, what, "shared_passage")
    return None


def groups_of(texts: Sequence[Text], threshold: float, words: int) -> list[list[int]]:
    """Rows that belong together because they are nearly the same or share a passage; kept, so that they are found once."""
    key = _key("groups", texts, threshold, words)
    kept = Store.default().get_result(key)
    if kept is None:
        kept = {"groups": [group.tolist() for group in clusters_of(texts, threshold, words).members()]}
        _keep(key, kept)
    return list(kept["groups"])


def _key(what: str, texts: Sequence[Text], *settings: Any) -> str:
    whole = hashlib.sha256()
    for text in texts:
        whole.update(("\x1e".join(sides_of(text)) + "\x1d").encode("utf-8", "surrogatepass"))
    return digest([what, whole.hexdigest(), WINDOW, versions(), list(settings)])


def _keep(key: str, result: dict[str, Any]) -> None:
    with suppress(UsageError, ResourceError):  # a cache that cannot be written costs time only
        Store.default().put_result(key, result)


def _short(text: Text) -> str:
    whole = " / ".join(sides_of(text))
    return repr(whole if len(whole) <= SHOWN else f"{whole[: SHOWN - 30]} … {whole[-27:]}")  # texts that are alike often begin alike
