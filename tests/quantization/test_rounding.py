"""Rounding weights: what every method promises, on weights of all kinds."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgepipe.errors import DataError, EdgepipeError, ModelError, UsageError
from edgepipe.quantization.rounding import METHODS, Grid, Quantized, output_error, quantize
from edgepipe.quantization.rounding.fitting import row_importance
from edgepipe.quantization.rounding.gptq import inverse_factor
from edgepipe.quantization.rounding.grid import grouped

QUICK = {"adaround": {"steps": 20}}
GRIDS = st.builds(Grid, bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans(), group_size=st.sampled_from([-1, 0, 1, 3, 16]))
NUMBERS = st.floats(-4, 4, width=32)
WEIGHTS = arrays.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 6)), elements=NUMBERS)


def hessian_of(k: int, seed: int = 0) -> np.ndarray:
    """2 XᵀX / samples of inputs that are related and of unlike sizes, as real ones are."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((4 * k, max(1, k // 3))) @ rng.standard_normal((max(1, k // 3), k)) + 0.3 * rng.standard_normal((4 * k, k))
    inputs *= np.exp(rng.standard_normal(k))
    return 2 * inputs.T @ inputs / len(inputs)


def weight_of(k: int, n: int, seed: int = 0) -> np.ndarray:
    """Weights with heavier tails than normal ones."""
    return (0.05 * np.random.default_rng(seed).standard_t(5, (k, n))).astype(np.float32)


def rounded(method: str, weight: np.ndarray, grid: Grid, hessian: np.ndarray | None = None) -> Quantized:
    return quantize(method, weight, grid, hessian, **QUICK.get(method, {}))


def check_form(result: Quantized, weight: np.ndarray, grid: Grid) -> None:
    k, n = weight.shape
    shape = (1, 1) if grid.group_size == -1 else (grid.groups(k), n)
    assert result.codes.shape == (k, n) and result.scales.shape == shape
    assert result.codes.dtype == (np.int8 if grid.symmetric else np.uint8) and result.scales.dtype == np.float32
    assert result.codes.min() >= grid.lowest and result.codes.max() <= grid.highest
    assert np.isfinite(result.scales).all() and (result.scales != 0).all()
    if grid.symmetric:
        assert result.zero_points is None
    else:
        assert result.zero_points.shape == shape and result.zero_points.dtype == np.uint8
        assert result.zero_points.max() <= grid.highest
    assert result.dequantized().dtype == np.float32 and np.isfinite(result.dequantized()).all()


@given(weight=WEIGHTS, grid=GRIDS)
def test_nearest_moves_no_weight_by_more_than_half_a_step(weight: np.ndarray, grid: Grid) -> None:
    result = quantize("nearest", weight, grid)
    check_form(result, weight, grid)
    steps = np.broadcast_to(result.scales, (len(result.scales), weight.shape[1]))[np.arange(len(weight)) // result.group_size]
    assert (np.abs(result.dequantized() - weight) <= steps * 0.5001 + 1e-37).all()


@given(weight=WEIGHTS, grid=GRIDS)
def test_rounding_what_is_rounded_changes_nothing(weight: np.ndarray, grid: Grid) -> None:
    once = quantize("nearest", weight, grid).dequantized()
    twice = quantize("nearest", once, grid).dequantized()
    if not grid.symmetric:  # a range that ends on halves of a step (−4 … 4 in 3 bits) moves once more, and then no more
        once, twice = twice, quantize("nearest", twice, grid).dequantized()
    assert np.allclose(once, twice, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("method", METHODS)
@given(weight=WEIGHTS, grid=GRIDS)
def test_every_method_gives_codes_of_the_grid(method: str, weight: np.ndarray, grid: Grid) -> None:
    check_form(rounded(method, weight, grid, hessian_of(len(weight))), weight, grid)


@pytest.mark.parametrize("method", ["mse", "gptq", "adaround"])
@given(weight=WEIGHTS, grid=GRIDS, seed=st.integers(0, 3))
def test_no_method_is_worse_than_nearest_by_its_own_measure(method: str, weight: np.ndarray, grid: Grid, seed: int) -> None:
    hessian = hessian_of(len(weight), seed)
    measure = np.diag(np.diagonal(hessian) + 1e-3 * np.diagonal(hessian).mean()) if method == "mse" else hessian
    ours, theirs = rounded(method, weight, grid, hessian), quantize("nearest", weight, grid)
    assert output_error(weight, ours, measure) <= output_error(weight, theirs, measure) * 1.001 + 1e-9


@given(weight=WEIGHTS, grid=GRIDS)
def test_data_free_methods_are_no_worse_than_nearest_by_their_own_measure(weight: np.ndarray, grid: Grid) -> None:
    theirs = np.abs(quantize("nearest", weight, grid).dequantized() - weight).astype(np.float64)
    errors = {
        method: np.abs(quantize(method, weight, grid).dequantized() - weight).astype(np.float64) for method in ("mse", "hqq", "k-quant")
    }
    assert (errors["mse"] ** 2).sum() <= (theirs**2).sum() * 1.001 + 1e-12
    assert (errors["hqq"] ** 0.7).sum() <= (theirs**0.7).sum() * 1.01 + 1e-3
    groups = grouped(weight, grid)
    weights = np.sqrt(groups**2 + (groups**2).mean(1, keepdims=True))
    weighted = [(weights * grouped(error, grid) ** 2).sum() for error in (errors["k-quant"].astype(np.float32), theirs.astype(np.float32))]
    assert weighted[0] <= weighted[1] * 1.001 + 1e-9


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_methods_that_know_the_inputs_beat_those_that_do_not(bits: int, symmetric: bool) -> None:
    weight, hessian, grid = weight_of(96, 40), hessian_of(96), Grid(bits, symmetric, 32)
    errors = {method: output_error(weight, quantize(method, weight, grid, hessian), hessian) for method in METHODS}
    assert errors["gptq"] < 0.6 * errors["mse"] and errors["adaround"] < 0.8 * errors["mse"]
    assert errors["mse"] < errors["nearest"] and errors["k-quant"] < errors["nearest"] and errors["hqq"] < errors["nearest"]


def test_gptq_helps_in_either_order() -> None:
    weight, hessian, grid = weight_of(100, 20), hessian_of(100), Grid(4, True, 32)
    nearest = output_error(weight, quantize("nearest", weight, grid), hessian)
    for act_order in (True, False):
        assert output_error(weight, quantize("gptq", weight, grid, hessian, act_order=act_order), hessian) < 0.5 * nearest


@pytest.mark.parametrize("k", [1, 30, 171])
def test_gptq_factor_is_that_of_the_inverse(k: int) -> None:
    hessian = hessian_of(k)
    factor = inverse_factor(hessian, 0.01).astype(np.float64)
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(k)
    assert np.allclose(factor.T @ factor @ damped, np.eye(k), atol=1e-3)
    assert np.allclose(factor, np.triu(factor))


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_weights_are_rounded_too(method: str) -> None:
    zeros, constant, tiny, one_row = np.zeros((8, 3)), np.full((8, 3), -0.3), np.full((8, 3), 1e-44), np.array([[0.5, -0.25, 0.0]])
    for grid in (Grid(4, True, 4), Grid(4, False, 4), Grid(8, True, 0), Grid(2, False, 3), Grid(4, True, -1)):
        check_form(rounded(method, one_row.astype(np.float32), grid, np.eye(1)), one_row, grid)
        for weight in (zeros, constant, tiny):
            weight = weight.astype(np.float32)
            result = rounded(method, weight, grid, hessian_of(len(weight)))
            check_form(result, weight, grid)
            assert np.allclose(result.dequantized(), weight, rtol=1e-5, atol=1e-40)
        assert (rounded(method, zeros.astype(np.float32), grid, np.zeros((8, 8))).scales == 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_calibration_never_saw_are_rounded_near(method: str) -> None:
    weight, hessian = weight_of(32, 8), hessian_of(32)
    hessian[5, :] = hessian[:, 5] = 0
    for seen in (hessian, np.zeros_like(hessian)):
        result = rounded(method, weight, Grid(8, True, 0), seen)
        assert np.abs(result.dequantized() - weight)[5].max() < 0.1 * np.abs(weight).max()


@pytest.mark.parametrize("method", METHODS)
def test_weights_without_rows_or_columns_stay_so(method: str) -> None:
    for shape in ((0, 3), (4, 0)):
        assert quantize(method, np.zeros(shape, np.float32), Grid(4, False, 2), np.eye(shape[0])).dequantized().shape == shape


@pytest.mark.parametrize("method", METHODS)
def test_columns_in_slabs_are_as_at_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = weight_of(40, 11), hessian_of(40)
    for grid in (Grid(4, True, 16), Grid(4, False, 0)):
        whole = rounded(method, weight, grid, hessian)
        monkeypatch.setattr("edgepipe.quantization.rounding.slabs.WEIGHTS", 120)
        parts = rounded(method, weight, grid, hessian)
        monkeypatch.undo()
        assert (whole.codes != parts.codes).mean() < 0.02
        assert output_error(weight, parts, hessian) == pytest.approx(output_error(weight, whole, hessian), rel=0.02)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_large_tensor_with_one_scale_is_rounded_as_at_once(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, grid = weight_of(37, 11), Grid(8, symmetric, -1)
    whole = rounded("nearest", weight, grid)
    monkeypatch.setattr("edgepipe.quantization.rounding.slabs.WEIGHTS", 40)

    parts = rounded("nearest", weight, grid)

    assert np.array_equal(parts.codes, whole.codes) and np.array_equal(parts.scales, whole.scales)
    assert symmetric or np.array_equal(parts.zero_points, whole.zero_points)


def test_reduced_range_keeps_two_products_within_sixteen_bits() -> None:
    for symmetric in (True, False):
        codes = quantize("nearest", weight_of(64, 8), Grid(8, symmetric, 0, reduced=True)).codes.astype(int)
        centred = np.abs(codes) if symmetric else codes
        assert centred.max() <= (64 if symmetric else 127)
    assert 2 * 255 * 64 < 1 << 15


def test_a_group_of_few_bits_uses_the_code_below_all_others() -> None:
    weight = np.array([[0.8], [-0.1], [0.05], [0.3]], np.float32)
    result = quantize("mse", weight, Grid(2, True, 0))
    assert result.codes.min() == -2 and result.scales[0, 0] < 0


def test_memory_beside_a_large_weight_stays_small() -> None:
    weight = weight_of(1024, 16384)
    for method, grid in (*((method, Grid(4, False, 32)) for method in ("nearest", "mse", "k-quant")), ("nearest", Grid(8, False, -1))):
        tracemalloc.start()
        result = quantize(method, weight, grid)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result.codes.nbytes + result.scales.nbytes * 2 + 170e6, method


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(bad: float) -> None:
    weight = weight_of(8, 4)
    weight[3, 2] = bad
    with pytest.raises(ModelError, match=r"encoder\.weight"):
        quantize("nearest", weight, Grid(4, True, 0), name="encoder.weight")


def test_wrong_requests_say_what_to_do() -> None:
    weight = weight_of(8, 4)
    with pytest.raises(UsageError, match="gptq"):
        quantize("gtpq", weight, Grid(4, True, 0))
    with pytest.raises(UsageError, match="calibration"):
        quantize("gptq", weight, Grid(4, True, 0))
    for method in ("gptq", "adaround"):
        with pytest.raises(DataError, match="calibration"):
            quantize(method, weight, Grid(4, True, 0), np.full((8, 8), np.nan))
    with pytest.raises(ModelError, match="shape"):
        quantize("nearest", weight.ravel(), Grid(4, True, 0))
    with pytest.raises(ModelError, match="second moments"):
        quantize("mse", weight, Grid(4, True, 0), np.eye(7))
    for wrong in ({"bits": 5}, {"group_size": -2}):
        with pytest.raises(EdgepipeError, match="take"):
            Grid(**{"bits": 4, "symmetric": True, "group_size": 0, **wrong})


def test_importance_has_a_place_for_every_row() -> None:
    for grid in (Grid(4, True, 16), Grid(4, True, 0), Grid(4, True, -1)):
        importance = row_importance(hessian_of(40), (40, 5), grid)
        assert importance is not None and importance.shape[:2] == grouped(np.zeros((40, 5), np.float32), grid).shape[:2]
