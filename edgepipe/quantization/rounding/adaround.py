"""AdaRound: whether each weight goes up or down is learned from what that does to the layer's output.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568, section 3.2: a rectified
sigmoid for each weight, pushed towards 0 or 1 by a regulariser that sharpens, Adam. The output error is taken from the
Hessian, tr(Δᵀ H Δ), so that no activations are kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import DataError
from edgepipe.quantization.rounding.fitting import row_importance
from edgepipe.quantization.rounding.grid import TINIEST, Quantized, grouped
from edgepipe.quantization.rounding.mse import least_squared_error
from edgepipe.quantization.rounding.nearest import nearest
from edgepipe.quantization.rounding.objective import better_columns
from edgepipe.quantization.rounding.slabs import by_columns

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.fitting import Fit
    from edgepipe.quantization.rounding.grid import Grid

ZETA, GAMMA = 1.1, -0.1  # the sigmoid's reach, so that 0 and 1 can be had exactly
SHARPNESS = (20.0, 2.0)  # the regulariser's exponent, from first to last step
WARM_UP = 0.2  # share of the steps without a regulariser


def adaround(
    weight: np.ndarray,
    grid: Grid,
    hessian: np.ndarray,
    *,
    steps: int = 300,
    learning_rate: float = 0.1,
    regularizer: float = 0.3,
    fit: Fit = least_squared_error,
) -> Quantized:
    """No column has a larger output error than rounding to nearest gives it."""
    if not np.isfinite(hessian).all():
        raise DataError("the inputs' second moments hold values that are no numbers", fix="check the calibration samples")
    mean = float(np.trace(hessian)) / max(1, len(hessian))
    curvature = (hessian / mean if mean > 0 else np.eye(len(hessian))).astype(np.float32)

    def rounded(slab: np.ndarray) -> Quantized:
        scales, zero_points = fit(grouped(slab, grid), grid, row_importance(hessian, slab.shape, grid))
        size = grid.size_of_group(len(slab))
        rows = np.arange(len(slab)) // size
        points = np.zeros((1, 1), np.float32) if zero_points is None else zero_points[rows].astype(np.float32)
        codes = _learned(slab, scales[rows], points, curvature, grid, steps, learning_rate, regularizer)
        result = Quantized(codes.astype(np.int8 if grid.symmetric else np.uint8), scales, zero_points, size)
        return better_columns(slab, result, nearest(slab, grid), hessian, grid)

    return by_columns(rounded, weight, grid)


def _learned(
    slab: np.ndarray, scales: np.ndarray, points: np.ndarray, curvature: np.ndarray, grid: Grid, steps: int, rate: float, regularizer: float
) -> np.ndarray:
    """Codes [k, n] as float32, for scales [k, n or 1]."""
    exact = slab / scales + points
    below = np.floor(exact)
    part = np.clip((exact - below - GAMMA) / (ZETA - GAMMA), 1e-4, 1 - 1e-4)
    logit = np.log(part / (1 - part))
    # A column's error in units of its own mean step, so that one regulariser suits them all.
    unit = scales / np.sqrt(np.maximum((scales * scales).mean(0, keepdims=True), TINIEST))
    first, second = np.zeros_like(logit), np.zeros_like(logit)
    for step in range(1, steps + 1):
        sigmoid = 1 / (1 + np.exp(-logit))
        up = np.clip(sigmoid * (ZETA - GAMMA) + GAMMA, 0, 1)
        soft = below + up
        inside = (soft > grid.lowest) & (soft < grid.highest) & (up > 0) & (up < 1)
        delta = (np.clip(soft, grid.lowest, grid.highest) - exact) * unit
        gradient = 2 * (curvature @ delta) * unit
        progress = (step / steps - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            sharpness = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 + math.cos(math.pi * progress)) / 2
            centred = 2 * up - 1
            gradient -= 2 * regularizer * sharpness * np.sign(centred) * np.exp((sharpness - 1) * np.log(np.abs(centred) + TINIEST))
        gradient *= inside * sigmoid * (1 - sigmoid) * (ZETA - GAMMA)
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        logit -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    up = logit >= 0  # where the rectified sigmoid is a half
    return np.asarray(np.clip(below + up, grid.lowest, grid.highest))
