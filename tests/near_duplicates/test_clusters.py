"""Clusters and passages: what is alike is together, and only that."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import ResourceError
from edgepipe.near_duplicates import pairs
from edgepipe.near_duplicates.clusters import clusters_of
from edgepipe.near_duplicates.dropped import Sources, dropped_rows
from edgepipe.near_duplicates.passages import passage_text, shared_passages
from tests.models import sentences
from tests.near_duplicates.test_index import WORDS, edited, made_texts
from tests.near_duplicates.test_windows import exact

SMALL = st.lists(st.lists(st.sampled_from("abcdef"), max_size=7).map(" ".join), min_size=1, max_size=15)


class All:
    """Every row is compared with every other."""

    def group(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def wanted(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a != b


@given(SMALL)
def test_links_are_exact_and_join_their_rows(texts: list[str]) -> None:
    found = clusters_of(texts, 0.5, 0)

    for link in found.links:
        assert link.similarity == pytest.approx(exact(texts[link.a], texts[link.b], 2))
        assert link.similarity >= 0.5
        assert found.first[link.a] == found.first[link.b]
    assert all(found.first[first] == first <= row for row, first in enumerate(found.first))


@given(SMALL)
def test_order_of_texts_does_not_matter(texts: list[str]) -> None:
    forward, backward = clusters_of(texts, 0.5, 0).first, clusters_of(texts[::-1], 0.5, 0).first[::-1]

    assert [[a == b for b in forward] for a in forward] == [[a == b for b in backward] for a in backward]


@given(SMALL)
def test_keeping_the_first_of_each_twice_changes_nothing(texts: list[str]) -> None:
    kept = [text for text, first, row in zip(texts, clusters_of(texts, 0.5, 0).first, range(len(texts)), strict=True) if first == row]

    assert clusters_of(kept, 0.5, 0).first.tolist() == list(range(len(kept)))


def test_edited_copies_are_with_their_originals() -> None:
    rng, texts = random.Random(0), made_texts(500)
    copies = [edited(text, rng) for text in texts]

    first = clusters_of([*texts, *copies], 0.8, 0).first

    alike = [exact(text, copy, 2) >= 0.8 for text, copy in zip(texts, copies, strict=True)]
    together = (first[:500] == first[500:]).tolist()
    assert sum(a and b for a, b in zip(alike, together, strict=True)) >= 0.98 * sum(alike)
    assert not any(b and not a for a, b in zip(alike, together, strict=True))


def test_chain_is_one_cluster_and_the_report_says_so() -> None:
    words = WORDS[:40]
    texts = [" ".join(words), " ".join(["x", *words[1:]]), " ".join(["x", *words[1:-4], "y", "z", "y", "w"])]

    found = clusters_of(texts, 0.8, 0)
    last = list(dropped_rows(Sources({"texts.csv": texts}), found))[-1]

    assert found.first.tolist() == [0, 0, 0]
    assert (last["row"], last["kept"]["row"], [place["row"] for place in last["joined_by"]["rows"]]) == (3, 1, [2, 3])
    assert last["similarity"] == pytest.approx(exact(texts[0], texts[2], 2))
    assert last["similarity"] < 0.8 <= last["joined_by"]["similarity"]


def test_short_sentences_of_few_words_are_not_alike() -> None:
    texts = [text for text, _ in sentences(2000)]

    assert len(clusters_of(texts, 0.8, 50).members()) <= 2


def test_many_equal_texts_are_found_at_once() -> None:
    texts = ["the same notice at the end of every message"] * 5000 + ["another text that is like no other"]

    found = clusters_of(texts, 0.8, 50)

    assert [len(group) for group in found.members()] == [5000]
    assert found.repeats.sum() == 4999


def test_texts_that_are_all_a_little_alike_are_refused_and_not_compared_for_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MOST", 1000)
    head = " ".join(WORDS[:14])

    with pytest.raises(ResourceError, match="too much alike"):
        clusters_of([f"{head} {number} {number + 1} {number + 2} {number + 3}" for number in range(3000)], 0.8, 0)


@given(
    st.lists(st.sampled_from(WORDS), max_size=40), st.lists(st.sampled_from(WORDS), max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=40), st.lists(st.sampled_from(WORDS), min_size=16, max_size=60), st.integers(8, 16),
)  # fmt: skip
def test_shared_passage_is_always_found(before: list[str], after: list[str], other: list[str], passage: list[str], words: int) -> None:
    texts = [" ".join([*before, *passage, *after]), " ".join(["own", *other, *passage]), "nothing"]

    found = list(shared_passages(texts, words, All()))

    assert found
    for one in found:
        shown = passage_text(texts[one.a], one)
        assert len(shown.split()) == one.words >= words
        assert shown in texts[one.b]


def test_passage_one_word_too_short_is_none() -> None:
    passage = WORDS[:49]
    texts = [" ".join(["x", *passage, "y"]), " ".join([*WORDS[100:180], *passage, *WORDS[200:280]])]

    assert not list(shared_passages(texts, 50, All()))
    assert list(shared_passages(texts, 49, All()))


def test_document_that_holds_anothers_passage_is_in_its_cluster() -> None:
    texts = [" ".join(WORDS[:300]), " ".join([*WORDS[350:], *WORDS[100:160]]), "something else"]

    found = clusters_of(texts, 0.8, 50)

    assert found.first.tolist() == [0, 0, 2]
    assert [(link.similarity, link.passage_words) for link in found.links] == [(None, 60)]
    assert clusters_of(texts, 0.8, 0).first.tolist() == [0, 1, 2]
