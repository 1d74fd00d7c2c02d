"""Stored small, run fast: constants kept in few bits in the file and expanded once, when the model is loaded.

The nodes that expand a weight read constants only, so ONNX Runtime's constant folding runs them at load, and kernels get
plain float32 or int8 weights. Written with Mod, BitShift and Cast, which every opset from 11 has, and not with
DequantizeLinear, which the runtime leaves in the graph for its own fusions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.rounding import Quantized

OPSET = 11
FLOAT, INT8, INT32 = 1, 3, 6  # ONNX's numbers of types


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes 0 … 2^bits − 1, flat, as uint8: the first share of them in the lowest bits. Filled up with zeros."""
    per_byte = 8 // bits
    parts = np.concatenate([codes, np.zeros(-len(codes) % per_byte, codes.dtype)]).astype(np.uint8).reshape(per_byte, -1)
    packed = np.zeros(parts.shape[1], np.uint8)
    for number, part in enumerate(parts):
        packed |= part << np.uint8(bits * number)
    return packed


def expanded(
    graph: Graph,
    base: str,
    found: Quantized,
    bits: int,
    *,
    factors: np.ndarray | None = None,
    transposed: bool = False,
    shape: tuple[int, ...] | None = None,
) -> tuple[str, list[Any]]:
    """(name, nodes) of a weight [k, n], float32, or int8 where `factors` [groups, n] take the place of scales.

    `transposed`: as [n, k], and in any case in `shape` where that is given. The graph must have opset 11.
    """
    make, (k, n) = _Nodes(graph, base), found.codes.shape
    groups, size = found.scales.shape[0], found.group_size
    last = shape or ((n, k) if transposed else (k, n))
    if groups == 1:  # codes lie in the file as the kernel wants them: every node that is not there is a tenth of a kilobyte
        size, laid = k, last if transposed or len(last) == 2 else (k, n)
        each = (n, *(1 for _ in laid[1:])) if transposed else (1, n)
    else:
        laid, each = ((n, groups, size), (n, groups, 1)) if transposed else ((groups, size, n), (groups, 1, n))

    def by_channel(values: np.ndarray) -> np.ndarray:
        return (values.T if transposed else values).reshape(each)

    middle = 0 if found.zero_points is not None or bits == 8 else 1 << bits - 1
    codes = np.full((groups * size, n), middle, np.int16)
    codes[:k] = found.codes
    codes[:k] += middle
    codes = codes.T if transposed else codes
    if bits == 8:
        value = make.codes(codes.astype(found.codes.dtype).reshape(laid))
    else:
        value = make.reshape(_unpacked(make, codes.ravel(), bits), *laid)
    kind = FLOAT if factors is None else INT32
    dtype = np.float32 if factors is None else np.int32
    value = make.node("Cast", value, to=kind)
    if found.zero_points is not None:
        value = make.node("Sub", value, make.widened(by_channel(found.zero_points), kind))
    elif middle:
        value = make.node("Sub", value, make.constant(np.array(middle, dtype)))
    value = make.node("Mul", value, make.constant(by_channel(found.scales)) if factors is None else make.widened(by_channel(factors), kind))
    if groups * size != k:  # the last group is not full
        axis = 1 if transposed else 0
        laid = (n, groups * size) if transposed else (groups * size, n)
        value = make.part(make.reshape(value, *laid), k, groups * size, axis)
        laid = (n, k) if transposed else (k, n)
    if factors is not None:
        value = make.node("Cast", value, to=INT8)
    if laid != tuple(last):
        value = make.reshape(value, *last)
    return value, make.nodes


def _unpacked(make: _Nodes, codes: np.ndarray, bits: int) -> str:
    """[shares, bytes] or, where the last byte is not full, flat: shifted and masked, all shares at once."""
    packed, shares = pack(codes, bits), 8 // bits
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    value = make.node("BitShift", make.codes(packed), make.constant(shifts), direction="RIGHT")
    value = make.node("Mod", value, make.constant(np.array(1 << bits, np.uint8)))
    if len(codes) == shares * len(packed):
        return value
    return make.part(make.reshape(value, -1), len(codes), shares * len(packed))


class _Nodes:
    """The nodes that make one constant out of smaller ones. The codes are named after the weight; everything else has a short
    name, since in small models names are what does not shrink."""

    def __init__(self, graph: Graph, base: str) -> None:
        self.graph, self.base = graph, base
        self.short = graph.fresh("w")
        self.nodes: list[Any] = []

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx.helper import make_node

        name = self.graph.fresh(f"{self.short}.{len(self.nodes)}")
        self.nodes.append(make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def codes(self, values: np.ndarray) -> str:
        return self.graph.constant(f"{self.base}/stored", values)

    def constant(self, values: np.ndarray) -> str:
        """What other weights need too, shapes above all, is there once."""
        return self.graph.constant("stored", values)

    def widened(self, values: np.ndarray, kind: int) -> str:
        """8-bit values, stored so, as another type."""
        return self.node("Cast", self.constant(values), to=kind)

    def reshape(self, value: str, *shape: int) -> str:
        return self.node("Reshape", value, self.constant(np.array(shape, np.int64)))

    def part(self, value: str, count: int, of: int, axis: int = 0) -> str:
        """The first `count` along an axis, where there are more."""
        if count == of:
            return value
        return self.node("Slice", value, *(self.constant(np.array([number], np.int64)) for number in (0, count, axis)))
