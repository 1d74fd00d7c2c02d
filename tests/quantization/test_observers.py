"""Statistics of a tensor: what they conserve, and that neither order nor division of the data changes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgepipe.quantization.observers import BINNED_VALUES, HALF, Observer, Wanted, evenly
from edgepipe.quantization.saved_observers import load, save

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TENSORS = arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=FLOATS)
ROWS = arrays(np.float32, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(-1000, 1000, width=32))


def seen(tensors: list[np.ndarray], **wanted: object) -> Observer:
    observer = Observer("x", Wanted(**wanted))
    for tensor in tensors:
        observer.update(tensor)
    return observer


def same(one: Observer, other: Observer) -> None:
    assert one.to_json() == pytest.approx(other.to_json())
    assert (one.exponent, one.zeros, one.rows) == (other.exponent, other.zeros, other.rows)
    np.testing.assert_array_equal(one.counts, other.counts)
    for a, b in ((one.channels, other.channels), (one.moments, other.moments)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            # What cancels out in a sum keeps the rounding of its largest terms.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4 + 2e-7 * float(np.abs(b).max()))


@given(st.lists(TENSORS, max_size=6))
def test_every_value_is_counted_once_within_the_extremes(tensors: list[np.ndarray]) -> None:
    observer = seen(tensors)

    values = np.concatenate([tensor.ravel() for tensor in tensors]) if tensors else np.zeros(0)
    assert observer.count == observer.counts.sum() == len(values)
    assert observer.zeros == (values == 0).sum()
    assert observer.counts[:HALF].sum() == (values < 0).sum()
    if len(values):
        assert (observer.low, observer.high) == (values.min(), values.max())
        assert observer.edges[0] <= observer.low
        assert observer.high <= observer.edges[-1]


@given(st.lists(TENSORS, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(tensors: list[np.ndarray], random: object) -> None:
    shuffled = list(tensors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    same(seen(tensors), seen(shuffled))


@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 6))
def test_merged_observers_know_what_one_would_have_seen(tensors: list[np.ndarray], cut: int) -> None:
    first = seen(tensors[:cut], channel_axis=-1, second_moments=True)

    first.merge(seen(tensors[cut:], channel_axis=-1, second_moments=True))

    same(first, seen(tensors, channel_axis=-1, second_moments=True))


@given(arrays(np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32)))
def test_bins_hold_what_lies_between_their_edges(values: np.ndarray) -> None:
    observer = seen([values])

    edges = observer.edges
    for place in np.flatnonzero(observer.counts):
        low, high = edges[place], edges[place + 1]
        inside = (values >= low) & (values < high) if place >= HALF else (values > low) & (values <= high) & (values < 0)
        assert inside.sum() == observer.counts[place]


def test_the_side_that_reaches_furthest_fills_at_least_half_of_its_bins() -> None:
    for largest in (1.0, 1.01, 1.99, 3e38, 1e-20):
        observer = seen([np.array([largest, 0.0], np.float32)])

        assert np.flatnonzero(observer.counts)[-1] >= HALF + HALF // 2


@given(st.lists(ROWS, min_size=1, max_size=6))
def test_channels_and_moments_are_those_of_all_rows(tensors: list[np.ndarray]) -> None:
    observer = seen(tensors, channel_axis=-1, second_moments=True)

    rows = np.concatenate(tensors).astype(np.float64)
    assert observer.channel_max is not None
    np.testing.assert_allclose(observer.channel_max, np.abs(rows).max(0))
    np.testing.assert_allclose(observer.channel_mean, rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(observer.channel_mean_magnitude, np.abs(rows).mean(0))
    np.testing.assert_allclose(observer.moments, rows.T @ rows, rtol=1e-5, atol=1.0)
    np.testing.assert_allclose(observer.hessian, 2 * rows.T @ rows / len(rows), rtol=1e-5, atol=1.0)


def test_moments_over_many_rows_are_summed_in_blocks() -> None:
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal((1, length, 8)).astype(np.float32) for length in (3000, 1, 700, 400)]

    observer = seen(tensors, channel_axis=-1, second_moments=True)

    rows = np.concatenate([tensor[0] for tensor in tensors]).astype(np.float64)
    np.testing.assert_allclose(observer.moments, rows.T @ rows, rtol=1e-4, atol=1e-2)


def test_channels_of_images_lie_on_the_second_axis() -> None:
    images = np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)

    observer = seen([images, -images], channel_axis=1)

    np.testing.assert_array_equal(observer.channel_max, [7, 15, 23])
    np.testing.assert_array_equal(observer.channel_mean, [0, 0, 0])
    assert observer.rows == 16


def test_an_axis_whose_length_changes_is_no_channel_axis() -> None:
    observer = seen([np.ones((1, 3), np.float32), np.ones((1, 5), np.float32), np.ones((1, 3), np.float32)], channel_axis=-1)

    assert observer.channels is None
    assert observer.count == 11


def test_a_row_larger_than_the_others_shows() -> None:
    tensor = np.ones((1, 9, 4), np.float32)
    tensor[0, 3] = 50

    observer = seen([tensor, np.ones((1, 9, 4), np.float32)], channel_axis=-1)

    assert observer.row_spread_max == 50
    assert observer.row_spread == pytest.approx(25.5)


def test_infinite_values_are_counted_and_kept_out_of_everything_else() -> None:
    observer = seen(
        [np.array([[1, np.inf], [np.nan, -2]], np.float32), np.full((1, 2), np.nan, np.float32), np.ones((1, 2), np.float32)],
        channel_axis=-1,
    )

    assert (observer.nonfinite, observer.nonfinite_samples, observer.samples) == (4, 2, 3)
    assert (observer.low, observer.high) == (-2, 1)
    assert observer.counts.sum() == 4
    np.testing.assert_array_equal(observer.channel_max, [1, 2])


def test_a_tensor_that_is_never_seen_is_not_reached() -> None:
    assert not seen([]).reached
    assert not seen([np.zeros((1, 0), np.float32)]).reached


@given(st.integers(1, 5_000_000))
def test_large_tensors_are_sampled_evenly_and_small_ones_wholly(size: int) -> None:
    taken = evenly(np.broadcast_to(np.float32(1), size))

    assert len(taken) <= BINNED_VALUES + 1
    assert len(taken) == size if size <= BINNED_VALUES else len(taken) > BINNED_VALUES // 16


def test_of_large_tensors_the_extremes_are_exact() -> None:
    values = np.zeros(3 * BINNED_VALUES + 1, np.float32)
    values[7], values[11] = 1000, -3

    observer = seen([values])

    assert (observer.low, observer.high) == (-3, 1000)
    assert observer.edges[-1] > 1000


@given(st.lists(ROWS, max_size=4))
def test_saved_observers_come_back_whole(tmp_path_factory: pytest.TempPathFactory, tensors: list[np.ndarray]) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "observers.npz"
    before = {"x": seen(tensors, channel_axis=-1, second_moments=True), "never": Observer("never")}

    save(before, path)
    after = load(path)

    assert list(after) == list(before)
    for name, one in before.items():
        same(one, after[name])
        assert one.wanted == after[name].wanted
