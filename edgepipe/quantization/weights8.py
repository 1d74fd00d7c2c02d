"""A site's weight as 8-bit constants for integer kernels, stored in 8 bits or in 4 with a whole-number factor a group.

The 4-bit form is QServe's progressive quantization (Lin et al., arXiv 2405.04532, section 4.1): 8 bits a channel first,
then 4 bits a group with integer scales, so that kernels for 8 bits run on what 4 bits store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.rounding import NEEDS_HESSIAN, Grid, Quantized, quantize
from edgepipe.quantization.rounding.fitting import fitted
from edgepipe.quantization.rounding.gptq import gptq
from edgepipe.quantization.rounding.mse import least_squared_error
from edgepipe.quantization.sites import matrix_of
from edgepipe.quantization.stored import expanded

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site

LARGEST_FACTOR = 15  # −8 · 15 = −120 is still 8 bits, and −8 · 8 = −64 is 7


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the weights of a pass are rounded, and the second moments of a site's inputs where the method needs them."""

    method: str = "nearest"
    per_channel: bool = True
    symmetric: bool = True
    reduced: frozenset[str] = frozenset()  # nodes whose weights get 7 bits
    stored_bits: int = 8
    group_size: int = 32  # of weights stored in 4 bits
    hessian: Callable[[Site], np.ndarray | None] = field(default=lambda site: None)

    def method_for(self, site: Site) -> str:
        """`mse` where the method needs moments and there are none: of convolutions, and of what no sample reached."""
        return "mse" if self.method in NEEDS_HESSIAN and self.hessian(site) is None else self.method

    def grid(self, site: Site) -> Grid:
        return Grid(8, self.symmetric, 0 if self.per_channel else -1, site.node in self.reduced)


@dataclass(frozen=True, slots=True)
class Weight8:
    """Names of codes ([k, n]; convolutions [n, …]), scales and zero points ([n] or scalars), and the nodes that make the
    codes where they are stored smaller."""

    codes: str
    scales: str
    zero_points: str
    scale_values: np.ndarray
    nodes: tuple[Any, ...] = ()


def weight8(graph: Graph, node: Any, site: Site, rounding: Rounding) -> Weight8:
    """Quantize the site's weight and add it to the graph."""
    base, weight = site.weight, matrix_of(graph, node, site)
    convolution = site.kind == "convolution"
    shape = site.shape if convolution else None
    nodes: list[Any] = []
    if rounding.stored_bits == 4:
        found, factors = progressive(weight, rounding, site)
        codes, nodes = expanded(graph, base, found, 4, factors=factors, transposed=convolution, shape=shape)
        scales, zeros = found.scales[0], np.zeros(site.n, np.int8)
    else:
        found = quantize(rounding.method_for(site), weight, rounding.grid(site), rounding.hessian(site), name=base)
        codes = graph.constant(f"{base}_quantized", found.codes.T.reshape(site.shape) if convolution else found.codes)
        scales = found.scales[0] if rounding.per_channel else found.scales.reshape(())
        zeros = np.zeros(scales.shape, np.int8) if found.zero_points is None else found.zero_points.reshape(scales.shape)
    return Weight8(codes, graph.constant(f"{base}_scale", scales), graph.constant(f"{base}_zero_point", zeros), scales, tuple(nodes))


def progressive(weight: np.ndarray, rounding: Rounding, site: Site) -> tuple[Quantized, np.ndarray]:
    """4-bit codes [k, n], a scale for each of their channels, and factors int8 [groups, n]: weight ≈ code · factor · scale."""
    largest = 8 if site.node in rounding.reduced else LARGEST_FACTOR
    grid, hessian = Grid(4, True, rounding.group_size), rounding.hessian(site)

    def fit(groups: np.ndarray, grid: Grid, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The scales with the least squared error, each moved to the nearest whole multiple of its channel's."""
        scales, _ = least_squared_error(groups, grid, importance)
        channels = np.abs(scales).max(axis=0) / np.float32(largest)
        return (np.clip(np.rint(np.abs(scales) / channels), 1, largest) * np.sign(scales) * channels).astype(np.float32), None

    if rounding.method == "gptq" and hessian is not None:
        found = gptq(weight, grid, hessian, fit=fit, compared=False)
    else:
        found = fitted(fit, weight, grid, hessian)
    channels = np.abs(found.scales).max(axis=0) / np.float32(largest)
    factors = np.rint(found.scales / channels).astype(np.int8)
    groups = np.broadcast_to(channels, factors.shape).astype(np.float32)
    return Quantized(found.codes, groups, None, found.group_size), factors
