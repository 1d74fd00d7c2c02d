"""Selection of samples: as many as asked for, no one twice, the same each time, and by what the method promises."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgepipe.errors import DataError, UsageError
from edgepipe.quantization.selection import METHODS, sample_label, sample_length, select

SAMPLES = st.lists(
    st.fixed_dictionaries({"text": st.text("ab ", max_size=12), "label": st.sampled_from(["a", "b", "c"])}), min_size=1, max_size=40
)
COUNTS = st.integers(1, 50)
POINTS = hnp.arrays(np.float64, st.tuples(st.integers(2, 9), st.just(2)), elements=st.integers(-5, 5).map(float))


@given(SAMPLES, COUNTS, st.sampled_from(METHODS), st.integers(0, 5))
def test_as_many_as_there_are_no_one_twice_and_the_same_again(samples: list[dict[str, Any]], count: int, method: Any, seed: int) -> None:
    score = np.array([float(sample_length(sample)) for sample in samples]) if method == "importance" else None

    chosen = select(samples, count, method, seed, score=score)

    assert len(chosen) == len(set(chosen)) == min(count, len(samples))
    assert set(chosen) <= set(range(len(samples)))
    assert chosen == select(samples, count, method, seed, score=score)
    assert method == "importance" or chosen == sorted(chosen)


@given(SAMPLES, COUNTS)
def test_every_label_is_there_in_its_share(samples: list[dict[str, Any]], count: int) -> None:
    there = Counter(sample["label"] for sample in samples)
    chosen = Counter(samples[index]["label"] for index in select(samples, count, "stratified", 0))

    if count < len(there):  # too few for all: the most frequent ones
        assert set(chosen.values()) == {1}
        assert min(there[label] for label in chosen) >= max(n for label, n in there.items() if label not in chosen)
        return
    assert set(chosen) == set(there)
    for label, n in there.items():
        share = n * min(count, len(samples)) / len(samples)
        assert chosen[label] <= max(1, np.ceil(share))
        assert chosen[label] >= min(np.floor(share), n) - len(there)  # what the rare ones took


def test_shares_are_exact_where_they_can_be() -> None:
    samples = [{"label": "ab"[index % 10 == 0]} for index in range(100)]

    chosen = select(samples, 20, "stratified", 3)

    assert Counter(samples[index]["label"] for index in chosen) == {"a": 18, "b": 2}


@given(st.lists(st.integers(0, 30), min_size=2, max_size=40), st.integers(2, 40))
def test_lengths_are_spread_from_the_shortest_to_the_longest(lengths: list[int], count: int) -> None:
    chosen = [
        lengths[index] for index in select([{"length": n} for n in lengths], count, "length", 0, length_of=lambda sample: sample["length"])
    ]

    assert min(chosen) == min(lengths)
    assert max(chosen) == max(lengths)


def test_lengths_stand_at_even_quantiles() -> None:
    samples = [{"text": "word " * length} for length in range(101)]

    assert select(samples, 5, "length", 0) == [0, 25, 50, 75, 100]


def test_highest_scores_come_first() -> None:
    assert select([{}] * 4, 2, "importance", 0, score=np.array([0.1, 3.0, -1.0, 2.0])) == [1, 3]


@given(POINTS, st.integers(1, 4))
def test_chosen_centres_cover_within_twice_the_best_radius(points: np.ndarray, count: int) -> None:
    count = min(count, len(points))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)

    chosen = select([{}] * len(points), count, "importance", 0, score=points)

    best = min(apart[:, list(some)].min(axis=1).max() for some in combinations(range(len(points)), count))
    assert apart[:, chosen].min(axis=1).max() <= 2 * best + 1e-9


@pytest.mark.parametrize(
    ("method", "samples", "score", "message"),
    [
        ("stratified", [{"text": "a"}] * 3, None, "no label"),
        ("importance", [{}] * 3, None, "needs a score"),
        ("importance", [{}] * 3, np.zeros(2), "needs a score"),
        ("importance", [{}] * 3, np.array([0.0, np.nan, 1.0]), "sample 2 is no finite number"),
    ],
)
def test_what_a_method_lacks_is_named(method: Any, samples: list[dict[str, Any]], score: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        select(samples, 2, method, 0, score=score)


@pytest.mark.parametrize(("method", "count", "message"), [("lenght", 1, 'no selection "lenght"'), ("random", 0, "0 samples")])
def test_nonsense_is_refused(method: Any, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select([{}] * 3, count, method, 0)


def test_labels_and_lengths_of_every_kind_of_sample() -> None:
    assert sample_label({"label": ["O", "B", "O"]}) == frozenset({"O", "B"})
    assert [
        sample_length(sample) for sample in ({"text": "a b", "text_pair": "c"}, {"tokens": ["a"]}, {"tensors": {"x": np.zeros((2, 3))}})
    ] == [
        3,
        1,
        6,
    ]
