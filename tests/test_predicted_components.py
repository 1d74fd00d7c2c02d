"""Counts of a program's components added up as one inference: every run of every component, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.cost.counting import Counts, NodeCounts
from edgepipe.predicted_components import _ends, _median, _shape, _whole

if TYPE_CHECKING:
    from edgepipe.probes import Feeds


def feeds(width: int) -> Feeds:
    return {"x": np.zeros((1, 3, 48, width), np.float32)}


def counts(fma: int, rest: int = 1) -> Counts:
    return Counts(
        (NodeCounts("conv", "Conv", (), (), {"fma_q": fma}), NodeCounts("relu", "Relu", (), (), {"fma_q": 2 * fma})), {"fma_q": rest}, ()
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_whole_is_the_sum_over_all_runs_where_work_grows_with_the_input(widths: list[int], steps: int) -> None:
    calls = {"detector": [feeds(5)] * steps, "recogniser": [feeds(width) for width in widths]}
    known = {("detector", _shape(feeds(5))): counts(7)}
    known |= {("recogniser", _shape(feeds(width))): counts(10 * width) for width in (min(widths), max(widths))}

    whole = _whole(calls, known)

    assert whole.total["fma_q"] == steps * (3 * 7 + 1) + sum(3 * 10 * width + 1 for width in widths)
    assert [node.name for node in whole.nodes] == ["detector: conv", "detector: relu", "recogniser: conv", "recogniser: relu"]


@pytest.mark.parametrize(("widths", "ends"), [([4, 4, 4], [4]), ([6, 2, 4], [2, 6]), ([3], [3])])
def test_only_the_smallest_and_the_largest_are_counted(widths: list[int], ends: list[int]) -> None:
    assert [one["x"].shape[3] for one in _ends([feeds(width) for width in widths])] == ends


def test_sample_of_median_work_is_taken() -> None:
    runs = [{"recogniser": [feeds(width)] * times} for width, times in ((9, 9), (1, 1), (5, 2))]

    assert _median(runs) is runs[2]
