"""Working on some columns of a weight at a time: they share nothing, and what a method keeps beside them stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.quantization.rounding.grid import Quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepipe.quantization.rounding.grid import Grid

WEIGHTS = 1 << 21  # in a slab: float32, 8 MiB; methods keep some ten copies of one


def column_slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Columns of a weight [k, n], some at a time."""
    width = max(1, WEIGHTS // max(shape[0], 1))
    for start in range(0, shape[1], width):
        yield slice(start, start + width)


def by_columns(rounded: Callable[[np.ndarray], Quantized], weight: np.ndarray, grid: Grid) -> Quantized:
    """`rounded` of every slab, as one; of the whole at once where the tensor has one scale."""
    if not weight.size:
        return _empty(weight, grid)
    if grid.group_size == -1:
        return rounded(np.ascontiguousarray(weight, np.float32))
    k, n = weight.shape
    shape = (grid.groups(k), n)
    codes, scales = np.empty((k, n), np.int8 if grid.symmetric else np.uint8), np.empty(shape, np.float32)
    zero_points = None if grid.symmetric else np.empty(shape, np.uint8)
    for columns in column_slabs(weight.shape):
        part = rounded(np.ascontiguousarray(weight[:, columns], np.float32))
        codes[:, columns], scales[:, columns] = part.codes, part.scales
        if zero_points is not None and part.zero_points is not None:
            zero_points[:, columns] = part.zero_points
    return Quantized(codes, scales, zero_points, grid.size_of_group(k))


def _empty(weight: np.ndarray, grid: Grid) -> Quantized:
    """A weight without rows or columns is on every grid."""
    k, n = weight.shape
    shape = (grid.groups(k), grid.columns(n))
    zero_points = None if grid.symmetric else np.zeros(shape, np.uint8)
    return Quantized(
        weight.astype(np.int8 if grid.symmetric else np.uint8), np.ones(shape, np.float32), zero_points, max(1, grid.size_of_group(k))
    )
