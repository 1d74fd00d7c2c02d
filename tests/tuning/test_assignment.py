"""Which scheme each layer gets: the size budget holds where it can, nothing is slower than float32 without need."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.tuning.assignment import NEAR, Option, assign, assign_shared, best_of


@st.composite
def layer(draw: st.DrawFn) -> list[Option]:
    """Float32 first; the others are smaller, faster or slower."""
    size = draw(st.integers(4, 400))
    first = Option("float32", draw(st.floats(0, 10)), 4 * size)
    others = [
        Option(f"scheme {i}", draw(st.floats(0, 20)), draw(st.integers(0, 4 * size)), draw(st.floats(0, 1)))
        for i in range(draw(st.integers(0, 4)))
    ]
    return [first, *others]


layers = st.dictionaries(st.sampled_from("abcdef"), layer(), min_size=1)
budgets = st.integers(0, 6000)


def size_of(chosen: dict[str, Option]) -> int:
    return sum(option.bytes for option in chosen.values())


@given(layers, budgets)
def test_size_budget_holds_where_any_choice_holds_it(given_layers: dict[str, list[Option]], budget: int) -> None:
    chosen = assign(given_layers, budget)

    smallest = sum(min(option.bytes for option in options) for options in given_layers.values())
    assert size_of(chosen) <= max(budget, smallest)
    assert all(chosen[name] in options for name, options in given_layers.items())
    if smallest > budget:
        assert size_of(chosen) == smallest


@given(layers)
def test_nothing_is_slower_than_float32_where_size_does_not_bind(given_layers: dict[str, list[Option]]) -> None:
    chosen = assign(given_layers, 10**9)

    assert all(chosen[name].ms <= options[0].ms for name, options in given_layers.items())


@given(layers, budgets)
def test_a_layer_is_slower_than_float32_only_to_be_smaller(given_layers: dict[str, list[Option]], budget: int) -> None:
    chosen = assign(given_layers, budget)

    assert all(now.ms <= given_layers[name][0].ms or now.bytes < given_layers[name][0].bytes for name, now in chosen.items())


@given(layers, budgets, st.data())
def test_fixed_layers_keep_their_scheme(given_layers: dict[str, list[Option]], budget: int, data: st.DataObject) -> None:
    fixed = {
        name: data.draw(st.sampled_from([option.scheme for option in options]))
        for name, options in given_layers.items()
        if data.draw(st.booleans())
    }

    chosen = assign(given_layers, budget, fixed)

    assert all(chosen[name].scheme == scheme for name, scheme in fixed.items())
    free = [name for name in given_layers if name not in fixed]
    least = sum(chosen[name].bytes for name in fixed) + sum(min(o.bytes for o in given_layers[name]) for name in free)
    assert size_of(chosen) <= max(budget, least)


@given(layers, budgets)
def test_the_same_question_has_the_same_answer(given_layers: dict[str, list[Option]], budget: int) -> None:
    backwards = dict(reversed(given_layers.items()))

    assert assign(given_layers, budget) == assign(backwards, budget)


@st.composite
def measured(draw: st.DrawFn) -> list[Option]:
    """As layers are: 8 bits are faster or slower, so are 4, and all sizes follow from the number of weights."""
    size, ms = draw(st.integers(64, 512)), draw(st.floats(0.5, 4))
    return [
        Option("float32", ms, 4 * size),
        Option("int8", ms * draw(st.sampled_from([0.4, 0.7, 1.3])), size),
        Option("stored in 8 bits", ms, size),
        Option("stored in 4 bits", ms, size // 2),
        Option("int4", ms * draw(st.sampled_from([0.5, 0.9, 1.5])), size // 2),
    ]


def time(chosen: Iterable[Option]) -> float:
    return sum(option.ms for option in chosen)


@given(st.lists(measured(), min_size=1, max_size=4), st.floats(0.12, 1.0))
@settings(max_examples=80)
def test_greedy_choice_is_within_one_layer_of_the_best(given_layers: list[list[Option]], share: float) -> None:
    named = {str(i): options for i, options in enumerate(given_layers)}
    budget = share * sum(options[0].bytes for options in given_layers)

    chosen = tuple(assign(named, budget).values())

    allowed = [choice for choice in itertools.product(*given_layers) if sum(option.bytes for option in choice) <= budget]
    if allowed:
        best = min(time(choice) for choice in allowed)
        widest = max(max(option.ms for option in options) - min(option.ms for option in options) for options in given_layers)
        assert time(chosen) <= best * (1 + NEAR) + widest


def test_many_small_steps_do_not_end_slower_than_float32() -> None:
    """Each loses less than the one before and is within a tie of it; the last is slower than float32."""
    steps = [Option(f"step {i}", 0.9 * 1.04**i, 100, 0.5 - 0.1 * i) for i in range(5)]

    chosen = assign({"layer": [Option("float32", 1.0, 400), *steps]}, 100)

    assert chosen["layer"].ms <= 1.0


def test_float32_stays_unless_another_wins_by_more_than_timing_is_uncertain_by() -> None:
    base = Option("float32", 1.0, 400)

    assert best_of([base, Option("near", 0.97, 100)]) is base
    assert best_of([base, Option("wins", 0.8, 100)]).scheme == "wins"
    assert best_of([base, Option("wins", 0.8, 100, 0.2), Option("as fast", 0.9, 100, 0.1)]).scheme == "as fast"


def test_layers_that_lose_least_are_made_small_first() -> None:
    def options(loss: float) -> list[Option]:
        return [Option("float32", 1.0, 400), Option("8", 1.0, 100, loss / 100), Option("4", 1.0, 50, loss)]

    chosen = assign({"robust": options(0.01), "fragile": options(0.5)}, 150)

    assert {name: option.scheme for name, option in chosen.items()} == {"robust": "4", "fragile": "8"}


def test_room_that_is_left_goes_to_what_loses_most() -> None:
    def options(loss: float) -> list[Option]:
        return [Option("float32", 1.0, 400), Option("8", 1.0, 100, loss / 100), Option("4", 1.0, 50, loss)]

    chosen = assign({"robust": options(0.01), "fragile": options(0.5)}, 450)

    assert chosen["fragile"].loss < 0.01


@given(layers, st.data(), budgets)
def test_layers_that_share_a_weight_get_one_scheme(given_layers: dict[str, list[Option]], data: st.DataObject, budget: int) -> None:
    weights = {name: data.draw(st.sampled_from("vw")) for name in given_layers}
    shared = {
        name: [Option(option.scheme, option.ms, option.bytes, option.loss) for option in given_layers[min(o for o in weights if weights[o] == weights[name])]]
        for name in given_layers
    }  # fmt: skip

    chosen = assign_shared(shared, weights, budget)

    assert list(chosen) == list(shared)
    assert len({(weights[name], option.scheme) for name, option in chosen.items()}) == len(set(weights.values()))
    least = sum(min(option.bytes for option in options) for options in shared.values())
    assert size_of(chosen) <= max(budget, least)


def test_of_schemes_that_are_fixed_for_one_weight_the_one_that_loses_least_holds() -> None:
    options = [Option("float32", 1.0, 400), Option("8", 0.5, 100, 0.1), Option("4", 0.4, 50, 0.5)]

    chosen = assign_shared({"a": options, "b": options}, {"a": "w", "b": "w"}, 0, {"a": "4", "b": "8"})

    assert {option.scheme for option in chosen.values()} == {"8"}


def test_without_shared_weights_it_is_the_same_choice() -> None:
    options = [Option("float32", 1.0, 400), Option("8", 0.5, 100, 0.1), Option("4", 0.4, 50, 0.5)]
    given_layers = {"a": options, "b": options[:2], "c": options[::2]}

    assert assign_shared(given_layers, {name: name for name in given_layers}, 700) == assign(given_layers, 700)
