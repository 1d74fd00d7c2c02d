"""Widths by importance per microsecond: never empty, on multiples, cheapest first, and no more is cut than asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.tuning.widths import Kept, LayerUnits, kept_widths


def layer(seed: int, heads: int = 4, width: int = 64, scale: float = 1.0) -> LayerUnits:
    rng = np.random.default_rng(seed)
    return LayerUnits(scale * rng.random(heads), scale * rng.random(width), 40.0, 1.0)


def time_of(layers: list[LayerUnits], kept: list[Kept]) -> float:
    return sum(k.heads * one.head_us + k.neurons * one.neuron_us for one, k in zip(layers, kept, strict=True))


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 12), st.integers(1, 200)), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(1, 32),
)
def test_no_layer_is_left_empty_and_no_more_goes_than_asked(shapes: list[tuple[int, int, int]], share: float, multiple: int) -> None:
    layers = [layer(*shape) for shape in shapes]
    kept = kept_widths(layers, share, multiple)
    whole = sum(one.us for one in layers)
    largest = max(40.0, multiple * 1.0)

    for one, left in zip(layers, kept, strict=True):
        assert 1 <= left.heads <= len(one.heads)
        assert 1 <= left.neurons <= len(one.neurons)
        assert left.neurons == len(one.neurons) or left.neurons % multiple == 0
    assert time_of(layers, kept) >= share * whole - largest


def test_everything_stays_at_a_share_of_one() -> None:
    layers = [layer(0), layer(1)]

    assert kept_widths(layers, 1.0, 16) == [Kept(4, 64), Kept(4, 64)]


def test_the_layer_that_matters_less_is_cut_more() -> None:
    layers = [layer(0, scale=1.0), layer(0, scale=0.1)]

    first, second = kept_widths(layers, 0.3, 16)

    assert second.neurons < first.neurons and second.heads <= first.heads


def test_a_target_whose_heads_cost_more_loses_heads_sooner() -> None:
    def dear(head_us: float) -> Kept:
        one = layer(3)
        return kept_widths([LayerUnits(one.heads, one.neurons, head_us, 1.0)], 0.6, 16)[0]

    assert dear(400.0).neurons > dear(4.0).neurons
