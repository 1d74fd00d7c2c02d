"""What is put back: regions that lost, and the choice of nodes that no other choice beats."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.quantization.put_back import Border, Choice, best_subset, losing, total_ms
from edgepipe.quantization.regions import Region

NAMES = "abcdef"
prices = st.integers(0, 20).map(float)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Choice], list[Border]]:
    count = draw(st.integers(1, len(NAMES)))
    names = NAMES[:count]
    choices = {name: Choice(draw(prices), draw(st.one_of(prices, st.just(math.inf)))) for name in names}
    borders = []
    for place in range(count + 1):  # what comes in, and what every node gives to later ones
        producer = None if place == 0 else names[place - 1]
        readers = draw(st.sets(st.sampled_from([None, *names[place:]]), max_size=3)) if place < count else {None}
        borders.append(Border(producer, tuple(sorted(readers, key=str)), draw(prices), draw(prices)))
    return choices, borders


@given(graphs())
def test_no_other_choice_is_cheaper(graph: tuple[dict[str, Choice], list[Border]]) -> None:
    choices, borders = graph

    found = best_subset(choices, borders)

    every = [set(subset) for size in range(len(choices) + 1) for subset in itertools.combinations(choices, size)]
    least = min(total_ms(subset, choices, borders) for subset in every)
    assert total_ms(found, choices, borders) == pytest.approx(least)
    fewest = min(len(subset) for subset in every if total_ms(subset, choices, borders) == pytest.approx(least))
    assert len(found) == fewest


def test_island_too_small_to_pay_its_borders_stays_on_floats() -> None:
    chain = {name: Choice(2.0, 1.0) for name in "abc"}
    borders = [Border(None, ("a",), 2.0, 2.0), Border("a", ("b",), 2.0, 2.0), Border("b", ("c",), 2.0, 2.0), Border("c", (None,), 2.0, 2.0)]

    assert best_subset(chain, borders) == frozenset()
    assert best_subset({name: Choice(4.0, 1.0) for name in "abc"}, borders) == frozenset("abc")


def test_long_chain_is_decided() -> None:
    names = [str(i) for i in range(3000)]
    borders = [Border(a, (b,), 0.5, 0.5) for a, b in itertools.pairwise(names)]

    assert len(best_subset({name: Choice(2.0, 1.0) for name in names}, borders)) == 3000


def test_no_nodes_no_choice() -> None:
    assert best_subset({}, []) == frozenset()


@pytest.mark.parametrize(("after", "expected"), [(9.0, []), (9.8, ["n", "m"]), (12.0, ["n", "m"])])
def test_region_that_does_not_win_by_the_margin_is_put_back(after: float, expected: list[str]) -> None:
    regions = {"n": Region((0, 1), (0,), (), (), ("n", "m"))}

    assert losing(regions, {"n/float32": 10.0, "n/quantized": after}) == expected


def test_region_without_costs_is_left() -> None:
    assert losing({"n": Region((0,), (0,), (), (), ("n",))}, {}) == []
