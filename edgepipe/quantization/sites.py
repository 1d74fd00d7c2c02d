"""Sites: the nodes of a graph whose weights can be quantized, and how their weights lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgepipe.quantization.graph import Graph

Kind = Literal["product", "convolution", "table", "attention", "recurrent"]
KINDS: dict[str, Kind] = {
    "MatMul": "product",
    "Gemm": "product",
    "Conv": "convolution",
    "ConvTranspose": "convolution",
    "Gather": "table",
    "Attention": "attention",
    "LSTM": "recurrent",
}
SMALLEST_TABLE = 4096  # values: below that a table is no embedding but an index
QUANTIZED = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QAttention",
    "DynamicQuantizeLSTM",
    "ConvInteger",
    "DynamicQuantizeLinear",
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearMatMul",
    "QLinearConv",
    "QGemm",
    "MatMulNBits",
    "GatherBlockQuantized",
)


@dataclass(frozen=True, slots=True)
class Site:
    """One node with a constant weight, seen as `data @ weight` with a weight of [k, n] (convolutions: n output channels)."""

    node: str
    operator: str
    kind: Kind
    weight: str  # the constant's name
    data: str  # the activation it meets; of tables, the rows looked up
    output: str
    shape: tuple[int, ...]  # of the constant as it is stored
    k: int
    n: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def find_sites(graph: Graph) -> dict[str, Site]:
    """Every site by node name, in the graph's order. A weight that several nodes read makes a site of each."""
    found = {}
    for node in graph.nodes:
        kind = KINDS.get(node.op_type)
        if kind is None or len(node.input) < 2:
            continue
        weight, data = (node.input[0], node.input[1]) if kind == "table" else (node.input[1], node.input[0])
        rest = [name for name in node.input[2:3] if name and kind in ("convolution", "recurrent")]
        if not all(graph.is_float(name) for name in (weight, *rest)):  # a convolution's bias and recurrent weights count too
            continue
        if data not in graph.constants and _fits(node, kind, graph.shape(weight)):
            shape = graph.shape(weight)
            found[node.name] = Site(node.name, node.op_type, kind, weight, data, node.output[0], shape, *_matrix(node, kind, shape))
    return found


def _fits(node: Any, kind: Kind, shape: tuple[int, ...]) -> bool:
    if math.prod(shape) < 2:
        return False
    if node.op_type == "Gemm":
        return (attribute(node, "transA", 0), attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) == (0, 1.0, 1.0)
    if kind == "table":
        return len(shape) == 2 and attribute(node, "axis", 0) == 0 and math.prod(shape) >= SMALLEST_TABLE
    if kind == "convolution":
        return len(shape) >= 3
    if kind == "recurrent":
        return math.prod(shape) > 0 and len(shape) == 3
    return len(shape) == 2


def _matrix(node: Any, kind: Kind, shape: tuple[int, ...]) -> tuple[int, int]:
    if kind == "convolution":
        return math.prod(shape[1:]), shape[0]
    if kind == "recurrent":
        return shape[2], shape[0] * shape[1]
    return (shape[1], shape[0]) if is_transposed(node) else (shape[0], shape[1])


def is_transposed(node: Any) -> bool:
    """Whether the node keeps its weight as [n, …]: convolutions, and products that say so."""
    return KINDS.get(node.op_type) == "convolution" or bool(node.op_type == "Gemm" and attribute(node, "transB", 0))


def matrix_of(graph: Graph, node: Any, site: Site) -> np.ndarray:
    """The site's weight as [k, n], float32."""
    values = graph.array(site.weight)
    return values.reshape(site.n, site.k).T if is_transposed(node) else values.reshape(site.k, site.n)


def chosen(
    sites: dict[str, Site], include: Sequence[str] | None, exclude: Sequence[str], kinds: Sequence[str], *, where: str
) -> dict[str, Site]:
    """The sites a pass is to work on. Raises `UsageError` naming a node that is none of the model's sites."""
    for option, names in (("include", include or ()), ("exclude", exclude)):
        for name in names:
            if name not in sites:
                raise UsageError(f'the model has no node "{name}" with weights', where=f"{where}.{option}", fix=nearest(name, sites)[:300])
    return {
        name: site
        for name, site in sites.items()
        if (name in include if include is not None else site.operator in kinds) and name not in exclude
    }
