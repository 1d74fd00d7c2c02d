"""Scales fitted to the codes that several starting scales give: llama.cpp's k-quants.

`make_qx_quants` and `make_qkx3_quants` of llama.cpp's ggml-quants.c (MIT): for some twenty inverse scales around that of
the whole range, round, then solve for the scale (and offset) with the least weighted squared error; keep the best. Weights
count by √(σ² + w²), times their input's mean square where it is known (its "importance matrix"). ONNX Runtime has the
asymmetric half as `quant_tensor_k_quant_cpu`, without inputs' weights, without a symmetric grid, and with the error of its
offset's rounding and of constant groups left in, so it is not called here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.fitting import Best, fitted, least_squares, peaks, squared_errors
from edgepipe.quantization.rounding.grid import TINIEST, codes_of, usable
from edgepipe.quantization.rounding.nearest import widest

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.grid import Grid, Quantized

OFFSETS = np.arange(-9, 10) * 0.1  # in codes
SHARES = (0.8, 0.7, 0.6, 0.5, 0.4)  # of the range: groups larger than llama.cpp's 16 to 32 have outliers worth clipping


def k_quant(weight: np.ndarray, grid: Grid, hessian: np.ndarray | None = None) -> Quantized:
    """No group has a larger weighted squared error than rounding to nearest gives it."""
    return fitted(searched, weight, grid, hessian)


def searched(groups: np.ndarray, grid: Grid, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points [groups, n] for weights [groups, rows, n]."""
    squares = groups * groups
    weights = np.sqrt(squares + squares.mean(1, keepdims=True))
    if importance is not None:
        weights *= importance
    scales, zero_points = widest(groups, grid)
    best = Best(scales, zero_points, squared_errors(groups, scales, zero_points, grid, weights))
    span = abs(grid.lowest) if grid.symmetric else grid.highest
    for share in (*(span / (span + offset) for offset in OFFSETS), *SHARES):
        start, points = _start(groups, grid, float(share), weights)
        shifted = codes_of(groups, start, points, grid)
        if points is not None:
            shifted -= points[:, None, :]
        scales = least_squares(groups, shifted, weights, start)
        best.offer(scales, points, squared_errors(groups, scales, points, grid, weights))
    return best.scales, best.zero_points


def _start(groups: np.ndarray, grid: Grid, share: float, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points to round with first, for a share of each group's range."""
    if grid.symmetric:
        return usable(peaks(groups) * (share / grid.lowest)), None
    low, high = np.minimum(groups.min(1), 0) * share, np.maximum(groups.max(1), 0) * share
    scales = usable((high - low) / grid.highest)
    # The scale and offset that fit these codes best, then the whole number nearest to that offset.
    codes = np.clip(np.rint((groups - low[:, None, :]) / scales[:, None, :]), 0, grid.highest)
    n, x, q = weights.sum(1), (weights * groups).sum(1), (weights * codes).sum(1)
    xq, qq = (weights * groups * codes).sum(1), (weights * codes * codes).sum(1)
    determinant = n * qq - q * q
    slope = np.divide(n * xq - x * q, determinant, out=scales.copy(), where=determinant > 1e-6 * n * qq)
    slope = np.where(slope > TINIEST, slope, scales)
    least = np.divide(x - slope * q, n, out=low.copy(), where=n > 0)
    return slope, np.clip(np.rint(-least / slope), 0, grid.highest).astype(np.uint8)
