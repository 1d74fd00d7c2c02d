"""Which units stay when the least important are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.importance import choose_kept

SCORES = st.lists(
    st.lists(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=40).map(np.array),
    min_size=1,
    max_size=5,
)
RATIOS = st.floats(0.01, 0.99)


@given(SCORES, RATIOS, st.booleans(), st.integers(1, 9))
def test_every_layer_keeps_a_sorted_choice_of_its_own_units(scores: list[np.ndarray], ratio: float, per_layer: bool, multiple: int) -> None:
    kept = choose_kept(scores, ratio, per_layer=per_layer, multiple_of=multiple)

    assert len(kept) == len(scores)
    for layer, units in zip(scores, kept, strict=True):
        assert units == sorted(set(units))
        assert all(0 <= unit < len(layer) for unit in units)
        assert len(units) == len(layer) or len(units) % multiple == 0
        assert len(units) >= min(multiple, len(layer))


@given(SCORES, RATIOS, st.booleans(), st.integers(1, 9))
def test_no_unit_that_is_cut_matters_more_than_one_that_stays(
    scores: list[np.ndarray], ratio: float, per_layer: bool, multiple: int
) -> None:
    for layer, units in zip(scores, choose_kept(scores, ratio, per_layer=per_layer, multiple_of=multiple), strict=True):
        cut = np.delete(layer, units)
        assert not len(cut) or cut.max() <= layer[units].min()


@given(SCORES, RATIOS)
def test_globally_the_share_that_is_cut_is_the_one_asked_for(scores: list[np.ndarray], ratio: float) -> None:
    total = sum(len(layer) for layer in scores)

    cut = total - sum(len(units) for units in choose_kept(scores, ratio, per_layer=False))

    # a layer that would be empty keeps one unit
    assert round(ratio * total) - len(scores) <= cut <= round(ratio * total)


@given(SCORES, RATIOS)
def test_within_layers_each_loses_its_share(scores: list[np.ndarray], ratio: float) -> None:
    for layer, units in zip(scores, choose_kept(scores, ratio, per_layer=True), strict=True):
        assert len(units) == max(1, len(layer) - round(ratio * len(layer)))


@given(SCORES, RATIOS, st.booleans())
def test_choosing_again_gives_the_same(scores: list[np.ndarray], ratio: float, per_layer: bool) -> None:
    assert choose_kept(scores, ratio, per_layer=per_layer) == choose_kept(scores, ratio, per_layer=per_layer)


def test_a_layer_that_matters_less_loses_more() -> None:
    scores = [np.array([0.1, 0.2, 0.3, 0.4]), np.array([5.0, 6.0, 7.0, 8.0])]

    assert choose_kept(scores, 0.25, per_layer=False) == [[2, 3], [0, 1, 2, 3]]
    assert choose_kept(scores, 0.25, per_layer=True) == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("per_layer", [False, True])
def test_units_that_never_fire_are_not_all_cut(per_layer: bool) -> None:
    kept = choose_kept([np.zeros(16), np.zeros(16)], 0.25, per_layer=per_layer)

    assert sum(len(units) for units in kept) == 24
