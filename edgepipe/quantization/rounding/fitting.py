"""Choosing scales and zero points for groups of weights: candidates are tried, each group keeps its best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgepipe.quantization.rounding.grid import TINIEST, codes_of, grouped, on_grid, values_of
from edgepipe.quantization.rounding.objective import input_importance
from edgepipe.quantization.rounding.slabs import by_columns

if TYPE_CHECKING:
    from edgepipe.quantization.rounding.grid import Grid, Quantized


class Fit(Protocol):
    """Scales float32 and zero points uint8 (None: symmetric), [groups, n], for weights [groups, rows, n], given how much
    each of the rows matters, [groups, rows, n or 1]."""

    def __call__(self, groups: np.ndarray, grid: Grid, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]: ...


class Best:
    """The scales that had the least error so far, group by group."""

    def __init__(self, scales: np.ndarray, zero_points: np.ndarray | None, errors: np.ndarray) -> None:
        self.scales, self.zero_points, self.errors = scales.copy(), None if zero_points is None else zero_points.copy(), errors

    def offer(self, scales: np.ndarray, zero_points: np.ndarray | None, errors: np.ndarray) -> None:
        better = errors < self.errors
        self.errors = np.where(better, errors, self.errors)
        self.scales = np.where(better, scales, self.scales)
        if zero_points is not None and self.zero_points is not None:
            self.zero_points = np.where(better, zero_points, self.zero_points)


def squared_errors(
    groups: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, grid: Grid, weights: np.ndarray | None
) -> np.ndarray:
    """Σ weight · (rounded − w)² of every group, [groups, n]."""
    error = values_of(codes_of(groups, scales, zero_points, grid), scales, zero_points)
    error -= groups
    error *= error
    if weights is not None:
        error *= weights
    return np.asarray(error.sum(1))


def least_squares(groups: np.ndarray, shifted: np.ndarray, weights: np.ndarray | None, otherwise: np.ndarray) -> np.ndarray:
    """The scale that puts codes less their zero point nearest to the weights, [groups, n]; `otherwise` where no code is off it."""
    weighted = shifted if weights is None else shifted * weights
    below = (weighted * shifted).sum(1)
    above = (weighted * groups).sum(1)
    fitted = np.divide(above, below, out=otherwise.copy(), where=below > 0)
    return np.where(np.abs(fitted) < TINIEST, otherwise, fitted).astype(np.float32)


def peaks(groups: np.ndarray) -> np.ndarray:
    """The weight that is farthest from zero in each group, with its sign, [groups, n]."""
    low, high = groups.min(1), groups.max(1)
    return np.asarray(np.where(-low > high, low, high))


def row_importance(hessian: np.ndarray | None, shape: tuple[int, ...], grid: Grid) -> np.ndarray | None:
    """How much each row of a weight of this shape matters, laid out as its groups are."""
    importance = input_importance(hessian)
    if importance is None:
        return None
    k, n = shape
    if grid.group_size == -1:
        return np.repeat(importance, n).reshape(1, k * n, 1)
    return grouped(importance[:, None], grid)


def fitted(fit: Fit, weight: np.ndarray, grid: Grid, hessian: np.ndarray | None) -> Quantized:
    """A weight rounded to the nearest codes of fitted scales."""

    def rounded(slab: np.ndarray) -> Quantized:
        return on_grid(slab, *fit(grouped(slab, grid), grid, row_importance(hessian, slab.shape, grid)), grid)

    return by_columns(rounded, weight, grid)
