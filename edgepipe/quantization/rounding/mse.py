"""Scales by line search over how much of each group's range is clipped, for the least squared error.

Clipping by mean squared error: Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference",
arXiv 1902.06822, section 3; weighted by how large the inputs are where the Hessian's diagonal is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.fitting import Best, fitted, peaks, squared_errors
from edgepipe.quantization.rounding.grid import usable
from edgepipe.quantization.rounding.nearest import widest

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.grid import Grid, Quantized

RATIOS = np.linspace(1.0, 0.3, 36)


def mse(weight: np.ndarray, grid: Grid, hessian: np.ndarray | None = None) -> Quantized:
    """No group has a larger (weighted) squared error than rounding to nearest gives it."""
    return fitted(least_squared_error, weight, grid, hessian)


def least_squared_error(groups: np.ndarray, grid: Grid, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The best of the whole range and of 36 shares of it, group by group."""
    scales, zero_points = widest(groups, grid)
    best = Best(scales, zero_points, squared_errors(groups, scales, zero_points, grid, importance))
    if grid.symmetric:
        # The code below all others goes to the largest weight, whichever its sign.
        whole = peaks(groups) / grid.lowest if grid.lowest != -grid.highest else np.abs(peaks(groups)) / grid.highest
        for ratio in RATIOS:
            scales = usable(whole * ratio)
            best.offer(scales, None, squared_errors(groups, scales, None, grid, importance))
        return best.scales, None
    low, high = np.minimum(groups.min(1), 0).astype(np.float64), np.maximum(groups.max(1), 0).astype(np.float64)
    for ratio in RATIOS[1:]:
        scales = usable((high - low) * (ratio / grid.highest))
        zero_points = np.clip(np.rint(-low * ratio / scales), 0, grid.highest).astype(np.uint8)
        best.offer(scales, zero_points, squared_errors(groups, scales, zero_points, grid, importance))
    return best.scales, best.zero_points
