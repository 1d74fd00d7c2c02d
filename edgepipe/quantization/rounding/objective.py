"""What rounding a weight does to its layer's output: tr(Δᵀ H Δ) for an error Δ of the weight.

With H = 2 XᵀX / samples over the layer's inputs X this is twice the mean squared error of its outputs x @ w, summed over
them; Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568, equation 13.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.slabs import column_slabs

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.grid import Grid, Quantized


def output_error(weight: np.ndarray, quantized: Quantized, hessian: np.ndarray | None = None) -> float:
    """tr(Δᵀ H Δ); without a Hessian the sum of squares of Δ, as if all inputs were alike and unrelated."""
    total = 0.0
    for columns in column_slabs(weight.shape):
        total += float(column_errors(weight[:, columns] - quantized.columns(columns).dequantized(), hessian).sum())
    return total


def column_errors(delta: np.ndarray, hessian: np.ndarray | None) -> np.ndarray:
    """δᵀ H δ of every column of [k, n], float64: columns of a weight do not touch each other's outputs."""
    if hessian is None:
        return np.asarray(np.einsum("kn,kn->n", delta, delta, dtype=np.float64))
    return np.asarray(np.einsum("kn,kn->n", delta, hessian.astype(np.float32, copy=False) @ delta, dtype=np.float64))


def better_columns(weight: np.ndarray, first: Quantized, second: Quantized, hessian: np.ndarray | None, grid: Grid) -> Quantized:
    """Each column from whichever of two has the smaller error; the whole from one where the tensor has one scale."""
    errors = [column_errors(weight - one.dequantized(), hessian) for one in (first, second)]
    if grid.group_size == -1:
        return first if errors[0].sum() <= errors[1].sum() else second
    picked = errors[0] <= errors[1]
    zero_points = None
    if first.zero_points is not None and second.zero_points is not None:
        zero_points = np.where(picked, first.zero_points, second.zero_points)
    codes, scales = np.where(picked, first.codes, second.codes), np.where(picked, first.scales, second.scales)
    return replace(first, codes=codes, scales=scales, zero_points=zero_points)


def input_importance(hessian: np.ndarray | None) -> np.ndarray | None:
    """How much each of k inputs matters, mean 1: the Hessian's diagonal. Inputs that calibration never saw keep a
    thousandth, so that their weights are still rounded to something near."""
    if hessian is None:
        return None
    diagonal = np.maximum(np.diagonal(hessian), 0).astype(np.float64)
    mean = diagonal.mean() if diagonal.size else 0.0
    return np.asarray(diagonal / mean + 1e-3 if mean > 0 else np.ones_like(diagonal), np.float32)
