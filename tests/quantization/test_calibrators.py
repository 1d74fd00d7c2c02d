"""Ranges from what was seen: they hold zero, stay within the extremes, and lose what their method says they lose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepipe.errors import DataError, UsageError
from edgepipe.quantization.calibrators import METHODS, activation_range
from edgepipe.quantization.observers import Observer

VALUES = arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
BITS = st.sampled_from([4, 8])


def observed(*tensors: np.ndarray, name: str = "x") -> Observer:
    observer = Observer(name)
    for tensor in tensors:
        observer.update(np.asarray(tensor, np.float32))
    return observer


def squared_error(values: np.ndarray, low: float, high: float, bits: int, *, symmetric: bool = False) -> float:
    """Of the values after rounding to 2^bits levels between low and high."""
    most = 2 ** (bits - 1) - 1
    if symmetric:
        step = max(-low, high) / most
        return float(((values - np.clip(np.rint(values / step), -most, most) * step) ** 2).sum())
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(values / step) + zero, 0, 2**bits - 1)
    return float(((values - (codes - zero) * step) ** 2).sum())


@pytest.mark.parametrize("method", METHODS)
@given(values=VALUES, bits=BITS, symmetric=st.booleans())
def test_a_range_holds_zero_and_stays_within_what_was_seen(method: str, values: np.ndarray, bits: int, symmetric: bool) -> None:
    low, high = activation_range(observed(values), method, bits=bits, symmetric=symmetric)

    assert low <= 0 <= high
    assert low < high
    assert low >= min(values.min(), 0)
    assert high <= max(values.max(), 0) or np.abs(values).max() < 1e-30
    assert np.isfinite(1 / np.float32((high - low) / 255))


@given(VALUES)
def test_min_max_is_what_was_seen(values: np.ndarray) -> None:
    if np.abs(values).max() > 1e-30:
        assert activation_range(observed(values)) == (min(values.min(), 0), max(values.max(), 0))


@given(VALUES, st.lists(st.floats(1, 100), min_size=2, max_size=5))
def test_a_higher_percentile_never_gives_a_narrower_range(values: np.ndarray, percentiles: list[float]) -> None:
    ranges = [activation_range(observed(values), "percentile", percentile=p) for p in sorted(percentiles)]

    for (low, high), (wider_low, wider_high) in itertools.pairwise(ranges):
        assert wider_low <= low
        assert high <= wider_high


def test_a_percentile_leaves_its_share_outside() -> None:
    values = np.random.default_rng(0).standard_normal(100_000)

    low, high = activation_range(observed(values), "percentile", percentile=99.0)

    assert np.mean((values < low) | (values > high)) == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "rectified", "outlier", "shifted", "negative"])
def test_the_mse_range_loses_no_more_than_any_other(kind: str, bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.standard_normal(20_000),
        "heavy-tailed": rng.standard_t(3, 20_000),
        "rectified": np.maximum(rng.standard_normal(20_000), 0),
        "outlier": np.append(rng.standard_normal(20_000), 60),
        "shifted": rng.standard_normal(20_000) + 5,
        "negative": -rng.random(20_000),
    }[kind].astype(np.float32)
    observer = observed(values)

    found = squared_error(values, *activation_range(observer, "mse", bits=bits, symmetric=symmetric), bits, symmetric=symmetric)

    low, high = activation_range(observer)
    others = [squared_error(values, share * low, share * high, bits, symmetric=symmetric) for share in np.linspace(0.02, 1, 99)]
    assert found <= 1.03 * min(others)


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_one_far_value_among_many_is_cut_off(method: str) -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    values[0] = 25.0

    low, high = activation_range(observed(values), method, bits=4 if method == "mse" else 8)

    assert low > -6
    assert 2 < high < 15


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_evenly_spread_values_are_not_cut_off(method: str) -> None:
    values = np.linspace(-1, 1, 100_000)

    low, high = activation_range(observed(values), method)

    assert (low, high) == pytest.approx((-1, 1), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [3.0, -0.25, 1e-20, 3e38])
def test_a_constant_activation_gives_a_range_that_holds_it(method: str, value: float) -> None:
    low, high = activation_range(observed(np.full(50, value)), method)

    assert min(low, high - low) <= value
    assert (low, high) == pytest.approx((min(value, 0), max(value, 0)), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_an_activation_of_zeros_gives_a_range_with_a_usable_scale(method: str, value: float) -> None:
    assert activation_range(observed(np.full(50, value)), method) == (0.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_infinite_activations_are_named_with_their_samples(method: str) -> None:
    observer = observed([1.0, np.inf], [1.0, 2.0], [np.nan, np.nan], name="/layer.1/output")

    with pytest.raises(DataError) as caught:
        activation_range(observer, method, node="/layer.2/MatMul")

    assert "/layer.1/output" in str(caught.value)
    assert "/layer.2/MatMul" in str(caught.value)
    assert "3 activations" in caught.value.what
    assert "2 of 3" in caught.value.what


def test_a_tensor_that_no_sample_reaches_is_named() -> None:
    with pytest.raises(DataError, match="no calibration sample") as caught:
        activation_range(observed(name="branch"))

    assert caught.value.where == 'tensor "branch"'


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="entropy"):
        activation_range(observed([1.0]), "entropie")


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5, float("nan")])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        activation_range(observed([1.0]), "percentile", percentile=percentile)
