"""GPTQ: weights are rounded one input after the other, the rest moves to make up for each error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323,
algorithm 1, with its act-order. ONNX Runtime's array function gives rounded weights without their codes and scales, and
fits the scales of a block's later groups to weights that have not moved yet, so it is not called here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import DataError
from edgepipe.quantization.rounding.fitting import row_importance
from edgepipe.quantization.rounding.grid import Quantized, grouped
from edgepipe.quantization.rounding.mse import least_squared_error
from edgepipe.quantization.rounding.nearest import nearest
from edgepipe.quantization.rounding.objective import better_columns, input_importance
from edgepipe.quantization.rounding.slabs import by_columns

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.fitting import Fit
    from edgepipe.quantization.rounding.grid import Grid

BLOCK = 64  # rows whose errors reach the rest in one multiplication


def gptq(
    weight: np.ndarray,
    grid: Grid,
    hessian: np.ndarray,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    fit: Fit = least_squared_error,
    compared: bool = True,
) -> Quantized:
    """No column has a larger output error than rounding to nearest gives it, as long as the two are `compared`.

    With `act_order` the inputs that matter most go first, on scales fitted beforehand; without, each group's scales are
    fitted to its weights as they are when its turn comes. `damping` is added to the Hessian's diagonal, in its mean.
    """
    k = len(weight)
    order = np.argsort(-np.diagonal(hessian), kind="stable") if act_order else np.arange(k)
    factor = inverse_factor(hessian[np.ix_(order, order)] if act_order else hessian, damping)

    def rounded(slab: np.ndarray) -> Quantized:
        result = _walk(slab, grid, hessian, factor, order, fit, ahead=act_order or grid.group_size <= 0)
        return better_columns(slab, result, nearest(slab, grid), hessian, grid) if compared else result

    return by_columns(rounded, weight, grid)


def _walk(slab: np.ndarray, grid: Grid, hessian: np.ndarray, factor: np.ndarray, order: np.ndarray, fit: Fit, *, ahead: bool) -> Quantized:
    """Algorithm 1 over rows in `order`, with every scale fitted `ahead`, or each group's when its turn comes."""
    k = len(slab)
    size = grid.size_of_group(k)
    codes = np.empty(slab.shape, np.int8 if grid.symmetric else np.uint8)
    scales, zero_points = fit(grouped(slab, grid), grid, row_importance(hessian, slab.shape, grid))
    importance = input_importance(hessian)
    moved = slab[order]
    block = BLOCK if ahead else max(size, BLOCK // size * size)
    for start in range(0, k, block):
        rows, here = moved[start : start + block], factor[start : start + block, start : start + block]
        errors = np.empty_like(rows)
        for i in range(len(rows)):
            row = int(order[start + i])
            group = row // size
            if not ahead and row % size == 0:
                matters = None if importance is None else importance[None, row : row + size, None]
                new_scales, new_points = fit(rows[None, i : i + size], grid, matters)
                scales[group] = new_scales[0]
                if zero_points is not None and new_points is not None:
                    zero_points[group] = new_points[0]
            scale, point = scales[group], np.float32(0) if zero_points is None else zero_points[group].astype(np.float32)
            code = np.clip(np.rint(rows[i] / scale) + point, grid.lowest, grid.highest)
            codes[row] = code
            errors[i] = (rows[i] - (code - point) * scale) / here[i, i]
            rows[i + 1 :] -= here[i, i + 1 :, None] * errors[i]
        moved[start + block :] -= factor[start : start + block, start + block :].T @ errors
    return Quantized(codes, scales, zero_points, size)


def inverse_factor(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Upper triangular U with Uᵀ U = H⁻¹, [k, k] float32, for a damped H.

    Inputs that calibration never saw get the mean curvature: nothing moves on their account. With rows and columns of H in
    reverse, its Cholesky factor is the inverse of U: H itself need not be inverted.
    """
    if not np.isfinite(hessian).all():
        raise DataError("the inputs' second moments hold values that are no numbers", fix="check the calibration samples")
    reverse = np.array(hessian[::-1, ::-1], np.float64)
    diagonal = np.diagonal(reverse).copy()
    mean = float(diagonal.mean()) if diagonal.any() else 1.0
    unseen = diagonal <= 0
    reverse[unseen, :] = 0
    reverse[:, unseen] = 0
    added = np.where(unseen, mean, damping * mean)
    identity = np.arange(len(reverse))
    for _ in range(8):
        reverse[identity, identity] = np.maximum(diagonal, 0) + added
        try:
            lower = np.linalg.cholesky(reverse)
        except np.linalg.LinAlgError:  # more inputs than samples, and rounding
            added = added * 10
            continue
        return np.ascontiguousarray(_triangular_inverse(lower)[::-1, ::-1].astype(np.float32))
    raise DataError("the inputs' second moments are no covariance", fix="check the calibration samples")


def _triangular_inverse(lower: np.ndarray) -> np.ndarray:
    """Of a lower triangular matrix, by halves: an eighth of the work of numpy's inverse, which knows of no zeros."""
    n = len(lower)
    if n <= 64:
        return np.linalg.inv(lower)
    half = n // 2
    result = np.zeros_like(lower)
    first, last = _triangular_inverse(lower[:half, :half]), _triangular_inverse(lower[half:, half:])
    result[:half, :half], result[half:, half:] = first, last
    result[half:, :half] = -last @ (lower[half:, :half] @ first)
    return result
