"""Round to nearest: the scale that just holds the largest weight of each group.

Jacob et al., arXiv 1712.05877, section 3: the range is that of the weights, widened to hold zero exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.grid import Quantized, grouped, on_grid, usable
from edgepipe.quantization.rounding.slabs import by_columns, column_slabs

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.grid import Grid


def nearest(weight: np.ndarray, grid: Grid, hessian: np.ndarray | None = None) -> Quantized:
    """No weight moves by more than half a step of its group."""
    if grid.group_size == -1 and weight.size:
        return _with_one_scale(weight, grid)
    return by_columns(lambda slab: on_grid(slab, *widest(grouped(slab, grid), grid), grid), weight, grid)


def _with_one_scale(weight: np.ndarray, grid: Grid) -> Quantized:
    """The scale of the whole tensor's extremes, then some rows at a time."""
    extremes = np.array([weight.min(), weight.max()], np.float32).reshape(1, 2, 1)
    scales, zero_points = widest(extremes, grid)
    codes = np.empty(weight.shape, np.int8 if grid.symmetric else np.uint8)
    for rows in column_slabs(weight.T.shape):
        codes[rows] = on_grid(np.ascontiguousarray(weight[rows], np.float32), scales, zero_points, grid).codes
    return Quantized(codes, scales, zero_points, len(weight))


def widest(groups: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales float32 and zero points uint8 (None: symmetric), [groups, n], that clip nothing of [groups, rows, n]."""
    low = np.minimum(groups.min(1), 0).astype(np.float64)
    high = np.maximum(groups.max(1), 0).astype(np.float64)
    if grid.symmetric:
        return usable(np.maximum(-low, high) / grid.highest), None
    scales = usable((high - low) / grid.highest)
    return scales, np.clip(np.rint(-low / scales), 0, grid.highest).astype(np.uint8)
