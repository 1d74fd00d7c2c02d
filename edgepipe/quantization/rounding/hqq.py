"""Half-quadratic quantization: scales and zero points for weights whose few large errors should stay large.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023 (mobiusml.github.io/hqq_blog): the
l_p norm of the error, p < 1, is split into a sparse part E, found by generalised soft thresholding, and a quadratic part
solved for the zero point. ONNX Runtime's solver is the same but needs torch, leaves zero points that are no whole numbers,
and stops all groups together; here zero points are whole, the scale (all that a symmetric grid has) is solved for too, and
every group keeps the best it came by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.fitting import Best, fitted, least_squares, peaks
from edgepipe.quantization.rounding.grid import TINIEST, codes_of, usable, values_of
from edgepipe.quantization.rounding.nearest import widest

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.grid import Grid, Quantized

NORM, BETA, KAPPA, ROUNDS = 0.7, 10.0, 1.01, 20  # as the authors give them


def hqq(weight: np.ndarray, grid: Grid, hessian: np.ndarray | None = None) -> Quantized:
    """No group has a larger Σ |error|^0.7 than rounding to nearest gives it; takes no data."""
    return fitted(half_quadratic, weight, grid, None)


def half_quadratic(groups: np.ndarray, grid: Grid, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    scales, zero_points = widest(groups, grid)
    errors, _ = _lp_errors(groups, scales, zero_points, grid)
    best = Best(scales, zero_points, errors)
    starts = [(scales, zero_points)]
    if grid.symmetric and grid.lowest != -grid.highest:
        starts.append((usable(peaks(groups) / grid.lowest), None))
    for scales, zero_points in starts:
        beta = BETA
        # β was given for weights around one; a group's own size keeps the threshold in proportion.
        unit = np.maximum(np.abs(groups).max(1, keepdims=True), TINIEST)
        for _ in range(ROUNDS):
            errors, codes = _lp_errors(groups, scales, zero_points, grid)
            best.offer(scales, zero_points, errors)
            residual = (groups - values_of(codes, scales, zero_points)) / unit
            size = np.abs(residual)
            sparse = np.sign(residual) * np.maximum(size - (size + 1e-8) ** (NORM - 1) / beta, 0) * unit
            beta *= KAPPA
            wanted = groups - sparse
            if zero_points is not None:
                points = (codes - wanted / scales[:, None, :]).mean(1)
                zero_points = np.clip(np.rint(points), 0, grid.highest).astype(np.uint8)
                codes = codes_of(wanted, scales, zero_points, grid) - zero_points[:, None, :]
            scales = least_squares(wanted, codes, None, scales)
        best.offer(scales, zero_points, _lp_errors(groups, scales, zero_points, grid)[0])
    return best.scales, best.zero_points


def _lp_errors(groups: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    codes = codes_of(groups, scales, zero_points, grid)
    error = values_of(codes, scales, zero_points)
    error -= groups
    return (np.abs(error, out=error) ** NORM).sum(1), codes
