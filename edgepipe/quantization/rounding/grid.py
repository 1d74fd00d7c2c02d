"""The values that a weight may take, and a weight that takes only those.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 2.1: w ≈ (code − zero point) · scale, one scale for each group of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

BITS = (2, 3, 4, 8)
TINIEST = float(np.finfo(np.float32).tiny)  # a smaller scale has no float32 reciprocal


@dataclass(frozen=True, slots=True)
class Grid:
    """What values a weight [k, n] (input × output: y = x @ w) may take."""

    bits: int  # 2, 3, 4 or 8
    symmetric: bool  # zero point in the middle, or one for each group
    group_size: int  # along the input axis; 0: the whole column (per channel); -1: the whole tensor
    reduced: bool = False  # 8 bits: half the range, for x86 kernels that sum two products in 16 bits

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"weights of {self.bits} bits cannot be stored", where="bits", fix="take 2, 3, 4 or 8")
        if self.group_size < -1:
            raise UsageError(
                f"a group of {self.group_size} weights cannot be",
                where="group_size",
                fix="take a number of weights, 0 for whole columns or -1 for the whole tensor",
            )

    @property
    def lowest(self) -> int:
        """The least code. A symmetric 8-bit grid leaves −128 out: kernels that add two products of −128 · −128 in 16 bits overflow."""
        if not self.symmetric:
            return 0
        return -self.highest if self.bits == 8 else -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        """The greatest code. Reduced, two products 255 · 64 still fit the 16 bits they are summed in."""
        if not self.symmetric:
            return 127 if self.reduced and self.bits == 8 else (1 << self.bits) - 1
        return 64 if self.reduced and self.bits == 8 else (1 << self.bits - 1) - 1

    def size_of_group(self, k: int) -> int:
        """Rows that share a scale."""
        return min(self.group_size, k) if self.group_size > 0 else k

    def groups(self, k: int) -> int:
        """Groups along an input axis of k; the last may be shorter."""
        return -(-k // self.size_of_group(k)) if k else 0

    def columns(self, n: int) -> int:
        """Columns of scales: one for all columns where the whole tensor has one scale."""
        return 1 if self.group_size == -1 else n


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight on its grid: (codes − zero points) · scales.

    A symmetric grid of fewer than 8 bits has one code more below zero than above: methods that use it give the group's
    scale the sign that lets its largest weight have it, so scales may be negative. `nearest` gives none.
    """

    codes: np.ndarray  # [k, n] int8, around 0 (symmetric), or uint8 from 0
    scales: np.ndarray  # [groups, n] float32; [1, 1] for one scale of the whole tensor; never 0
    zero_points: np.ndarray | None  # as scales, uint8; None: symmetric
    group_size: int  # rows that share a scale; the last group may have fewer

    def dequantized(self) -> np.ndarray:
        """The weight that kernels compute with, [k, n] float32."""
        result = self.codes.astype(np.float32)
        for rows, group in self._groups():
            if self.zero_points is not None:
                result[rows] -= self.zero_points[group].astype(np.float32)
            result[rows] *= self.scales[group]
        return result

    def columns(self, picked: slice) -> Quantized:
        """The same for some columns."""
        whole = self.scales.shape[1] == 1
        scales = self.scales if whole else self.scales[:, picked]
        zero_points = self.zero_points if whole or self.zero_points is None else self.zero_points[:, picked]
        return Quantized(self.codes[:, picked], scales, zero_points, self.group_size)

    def _groups(self) -> Iterator[tuple[slice, int]]:
        for group in range(len(self.scales)):
            yield slice(group * self.group_size, (group + 1) * self.group_size), group


def grouped(values: np.ndarray, grid: Grid) -> np.ndarray:
    """[k, n] as [groups, rows, n] (whole tensor: [1, k · n, 1]), the last group filled up with zeros, which change no extreme."""
    k, n = values.shape
    if grid.group_size == -1:
        return values.reshape(1, k * n, 1)
    size, groups = grid.size_of_group(k), grid.groups(k)
    if groups * size != k:
        values = np.concatenate([values, np.zeros((groups * size - k, n), values.dtype)])
    return values.reshape(groups, size, n)


def ungrouped(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What `grouped` came from, without its filling."""
    if values.shape[0] == 1 and values.shape[2] == 1:
        return values.reshape(shape)
    return values.reshape(-1, shape[1])[: shape[0]]


def usable(scales: np.ndarray) -> np.ndarray:
    """Scales as float32, 1 where a group holds nothing but zeros (or less than float32 can divide by)."""
    scales = scales.astype(np.float32)
    return np.where(np.abs(scales) < TINIEST, np.float32(1), scales)


def codes_of(groups: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, grid: Grid) -> np.ndarray:
    """Nearest codes of [groups, rows, n] as float32, for scales and zero points [groups, n]; halves go to the even code."""
    codes: np.ndarray = groups / scales[:, None, :]
    np.rint(codes, out=codes)
    if zero_points is not None:
        codes += zero_points[:, None, :].astype(np.float32)
    np.clip(codes, grid.lowest, grid.highest, out=codes)
    return codes


def values_of(codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None) -> np.ndarray:
    """What codes of [groups, rows, n] stand for."""
    shifted = codes if zero_points is None else codes - zero_points[:, None, :].astype(np.float32)
    return np.asarray(shifted * scales[:, None, :], np.float32)


def on_grid(weight: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, grid: Grid) -> Quantized:
    """Each weight rounded to the nearest code of its group's scale and zero point."""
    codes = codes_of(grouped(weight, grid), scales, zero_points, grid).astype(np.int8 if grid.symmetric else np.uint8)
    return Quantized(ungrouped(codes, weight.shape), scales, zero_points, grid.size_of_group(len(weight)))
