"""Edit distance against its definition, and how readings are compared."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.edit_distance import code_points, edit_distance, mistakes, words

texts = st.text(st.sampled_from("ab c\n"), max_size=12)


def by_definition(one: str, other: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return distance(len(one), len(other))


def between(one: str, other: str) -> int:
    return edit_distance(code_points(one), code_points(other))


@given(texts, texts)
def test_distance_is_the_fewest_edits(one: str, other: str) -> None:
    assert between(one, other) == by_definition(one, other) == between(other, one)


@given(texts, texts, texts)
def test_no_detour_is_shorter(one: str, other: str, third: str) -> None:
    assert between(one, third) <= between(one, other) + between(other, third)
    assert (between(one, other) == 0) == (one == other)


@given(st.text(st.sampled_from("ab \t\n\r"), max_size=30))
def test_words_have_one_space_between_them(text: str) -> None:
    assert "".join(map(chr, words(code_points(text)))) == " ".join(text.split())


def test_where_lines_break_is_no_mistake() -> None:
    assert mistakes(code_points("one two\nthree\n"), code_points("one\ntwo  three")) == (0.0, 13.0)


def test_nothing_read_misses_every_character() -> None:
    assert mistakes(np.array([], np.int32), code_points("four")) == (4.0, 4.0)
