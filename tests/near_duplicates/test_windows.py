"""Windows: what of a text is compared, the same for every spelling of the same words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.near_duplicates.similarity import similarities
from edgepipe.near_duplicates.windows import joined, window_sets, words_of

TEXT = st.text(st.sampled_from("aAbc éß!? 東京ไทย\n\ud800"), max_size=40)


def exact(one: str, other: str, size: int) -> float:
    """Jaccard similarity by Python's own sets of words."""

    def windows(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} or ({tuple(words)} if words else set())

    a, b = windows(one), windows(other)
    return len(a & b) / len(a | b) if a | b else 0.0


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), st.integers(1, 4))
def test_similarity_is_that_of_the_sets_of_words(pairs: list[tuple[str, str]], size: int) -> None:
    ones, others = window_sets([a for a, _ in pairs], size), window_sets([b for _, b in pairs], size)
    rows = np.arange(len(pairs))

    there = similarities(ones, rows, others, rows)

    assert there.tolist() == pytest.approx([exact(a, b, size) for a, b in pairs])
    assert similarities(others, rows, ones, rows).tolist() == there.tolist()


def test_case_and_punctuation_do_not_matter_and_order_does() -> None:
    sets = window_sets(["A good film!", "a  GOOD, film", "film good a", ""])

    values = similarities(sets, np.zeros(4, np.int64), sets, np.arange(4))

    assert values.tolist() == [1, 1, 0, 0]


def test_text_shorter_than_a_window_is_compared_as_a_whole() -> None:
    sets = window_sets(["film 1", "film 2", "film", "film"], 3)

    assert similarities(sets, np.array([0, 2]), sets, np.array([1, 3])).tolist() == [0, 1]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert words_of("東京は good") == ["東", "京", "は", "good"]


def test_pair_is_as_similar_as_the_less_similar_of_its_sides() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve"
    sets = window_sets([(long, "is it so"), (long, "no not at all"), ("is it so", long), (long, "is it so")])

    values = similarities(sets, np.zeros(3, np.int64), sets, np.array([1, 2, 3]))

    assert values.tolist() == [0, 0, 1]


def test_batches_joined_are_one() -> None:
    texts = ["a b c", "", "d", "a b c d e"]

    whole, parts = window_sets(texts), joined([window_sets(texts[:1]), window_sets(texts[1:])])

    assert (whole.offsets.tolist(), whole.hashes.tolist()) == (parts.offsets.tolist(), parts.hashes.tolist())
