"""Convolutions and what lies between them in 8 bits with fixed scales: QuantizeLinear and DequantizeLinear around each node.

Jacob et al., arXiv 1712.05877. ONNX Runtime fuses each node and its pairs to QLinearConv, QLinearAdd, QLinearMul, …;
what only moves values keeps their scale. The gate of hard-swish needs no arithmetic at all: clip(αx + β, 0, 1) in 8 bits
is x quantized with the scale 1 / 255α around 255β, for quantization clips.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.sites import attribute
from edgepipe.quantization.static import Scale, scale_of
from edgepipe.quantization.weights8 import weight8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site
    from edgepipe.quantization.static import StaticActivations
    from edgepipe.quantization.weights8 import Rounding

OPSET = 13
MOVING = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Resize")  # values keep their scale
COMPUTING = ("Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu", "Sigmoid")
CLIPPING = ("Relu", "Clip")
GATE = "HardSigmoid"
UNIT_SCALE = 1 / 255


def to_qdq(
    graph: Graph,
    sites: Mapping[str, Site],
    rounding: Rounding,
    activations: StaticActivations,
    other: Callable[[Any], None] = lambda node: None,
) -> None:
    """Put convolutions into 8 bits, and the nodes between them that have a kernel for it. Call `graph.apply` when done.

    `other` is called for the rest, all in the graph's order: whoever reads a value first has it quantized for all.
    """
    scales = activations.scales
    convolutions = {
        name for name, site in sites.items() if site.operator == "Conv" and site.data in scales and site.output in scales
    }  # fmt: skip
    members = between(graph, convolutions, scales)
    work = _Work(graph, members, rounding, activations)
    for node in graph.nodes:
        if node.name in members:
            work.convert(node, sites.get(node.name))
        else:
            other(node)


def between(graph: Graph, convolutions: set[str], scales: Mapping[str, Scale]) -> set[str]:
    """Names of the convolutions and of the nodes between them that can stay in 8 bits."""
    members = set(convolutions)
    for node in graph.nodes:  # in the graph's order, so producers come first
        values = [name for name in node.input if name and name not in graph.constants]
        known = all((producer := graph.producer.get(name)) is not None and producer.name in members for name in _data(node, values))
        if _has_kernel(graph, node) and values and known and all(name in scales for name in node.output if name):
            members.add(node.name)
    while ends := {node.name for node in graph.nodes if node.name in members - convolutions and not _is_read(graph, node, members)}:
        members -= ends
    return members


def clipped(scale: Scale, low: float, high: float) -> Scale:
    """The scale whose codes reach no farther than a clip lets through: quantizing then clips, and the runtime drops the node."""
    if not low <= 0 < high:
        return scale
    found = scale_of(max(low, -scale.zero_point * scale.scale), min(high, (255 - scale.zero_point) * scale.scale))
    above, below = 255 - found.zero_point, found.zero_point
    step = min(found.scale, high / above if above else found.scale, -low / below if below else found.scale)
    return Scale(step, found.zero_point)


def _bounds(graph: Graph, node: Any) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [float(graph.array(name).reshape(())) if name else None for name in (*node.input[1:3], "", "")][:2]
    return float("-inf") if ends[0] is None else ends[0], float("inf") if ends[1] is None else ends[1]


def _data(node: Any, values: list[str]) -> list[str]:
    """Of a node's values those that carry activations: shapes and sizes do not."""
    return values[:1] if node.op_type in (*MOVING, *CLIPPING) else values


def _has_kernel(graph: Graph, node: Any) -> bool:
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", b"nearest") == b"nearest")
    if node.op_type == "Clip":
        return all(name in graph.constants for name in node.input[1:] if name)
    if node.op_type == "MaxPool":
        return len(node.output) == 1
    return node.op_type in (*MOVING, *COMPUTING, *CLIPPING, GATE)


def _is_read(graph: Graph, node: Any, members: set[str]) -> bool:
    return any(reader is not None and reader.name in members for name in node.output for reader in graph.consumers[name])


class _Work:
    def __init__(self, graph: Graph, members: set[str], rounding: Rounding, activations: StaticActivations) -> None:
        self.graph, self.members, self.rounding, self.activations = graph, members, rounding, activations
        self.float_names: dict[str, str] = {}  # value → what its producer gives where its clip reads that unquantized
        self.scales = dict(activations.scales)
        self.scales |= {
            node.output[0]: clipped(self.scales[node.output[0]], *_bounds(graph, node))
            for node in graph.nodes
            if node.name in members and node.op_type in CLIPPING
        }
        activations.scales = self.scales

    def convert(self, node: Any, site: Site | None) -> None:
        graph = self.graph
        if node.op_type == GATE:
            self._gate(node)
            return
        new = type(node).FromString(node.SerializeToString())
        before: list[Any] = []
        for index, name in enumerate(node.input):
            if not name or (index and name not in self._carried(node)):
                continue
            if name in self.float_names:  # of a clip whose producer is a member: fused with it
                new.input[index] = self.float_names[name]
            elif name in graph.constants:
                if site is None:
                    new.input[index] = self._constant(name, before)
            else:
                codes, made = self.activations.codes(name, graph.scope(node))
                before += made
                new.input[index] = self._dequantized(codes, name, before)
        if site is not None:
            before += self._weights(node, site, new)
        output = node.output[0]
        reader = graph.consumers[output][0] if len(graph.consumers[output]) == 1 else None
        inner = graph.fresh("f")
        new.output[0] = inner
        if reader is not None and reader.op_type in CLIPPING and reader.name in self.members and node.op_type not in (*MOVING, *CLIPPING):
            self.float_names[output] = inner
            graph.replace(node, *before, new)
            return
        if node.op_type in MOVING:
            self.scales[output] = self.scales[node.input[0]]
        graph.replace(node, *before, new, *self._quantized(inner, output, node))

    def _carried(self, node: Any) -> list[str]:
        """Inputs after the first that carry activations or a constant to compute with."""
        return list(node.input) if node.op_type in ("Add", "Mul", "Concat") else []

    def _quantized(self, inner: str, output: str, node: Any) -> list[Any]:
        """The codes of what a member gives, and the float32 value where others read it."""
        from onnx.helper import make_node

        scope = self.graph.scope(node)
        codes, _ = self.activations.codes(output, scope)
        made = [make_node("QuantizeLinear", [inner, *self.activations.constants(output)], [codes])]
        if any(reader is None or reader.name not in self.members for reader in self.graph.consumers[output]):
            made.append(make_node("DequantizeLinear", [codes, *self.activations.constants(output)], [output]))
        return made

    def _dequantized(self, codes: str, value: str, before: list[Any]) -> str:
        """A pair's second half of the reader's own: the runtime fuses none that is shared."""
        from onnx.helper import make_node

        name = self.graph.fresh("dq")
        before.append(make_node("DequantizeLinear", [codes, *self.activations.constants(value)], [name]))
        return name

    def _constant(self, name: str, before: list[Any]) -> str:
        """A constant operand in 8 bits, with a scale of its own."""
        from onnx.helper import make_node

        values = self.graph.array(name).astype(np.float32)
        found = scale_of(float(values.min(initial=0)), float(values.max(initial=0)))
        codes = np.clip(np.rint(values / found.scale) + found.zero_point, 0, 255).astype(np.uint8)
        parts = [codes, np.array(found.scale, np.float32), np.array(found.zero_point, np.uint8)]
        result = self.graph.fresh("dq")
        names = [self.graph.constant(f"{name}_{part}", value) for part, value in zip(("codes", "scale", "zero"), parts, strict=True)]
        before.append(make_node("DequantizeLinear", names, [result]))
        return result

    def _weights(self, node: Any, site: Site, new: Any) -> list[Any]:
        """Weights and bias of a convolution as DequantizeLinear of constants. A bias is kept in 32 bits at the scale of the sums."""
        from onnx.helper import make_node

        weight = weight8(self.graph, node, site, replace(self.rounding, symmetric=True))
        scales = np.broadcast_to(weight.scale_values, site.n).astype(np.float64)
        new.input[1] = self.graph.fresh("dq")
        per_channel = {"axis": 0} if self.rounding.per_channel else {}
        inputs = [weight.codes, weight.scales, weight.zero_points]
        made = [
            *weight.nodes,
            make_node("DequantizeLinear", inputs, [new.input[1]], **per_channel),
        ]
        if len(node.input) > 2 and node.input[2]:
            sums = scales * self.scales[site.data].scale
            codes = np.clip(np.rint(self.graph.array(node.input[2]).astype(np.float64) / sums), -(2**31), 2**31 - 1)
            names = [
                self.graph.constant(f"{node.input[2]}_{part}", value)
                for part, value in (
                    ("codes", codes.astype(np.int32)),
                    ("scale", sums.astype(np.float32)),
                )
            ]
            new.input[2] = self.graph.fresh("dq")
            made.append(make_node("DequantizeLinear", names, [new.input[2]], axis=0))
        return made

    def _gate(self, node: Any) -> None:
        from onnx.helper import make_node

        value, output = node.input[0], node.output[0]
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        before: list[Any] = []
        codes, made = self.activations.codes(value, self.graph.scope(node))
        plain = self._dequantized(codes, value, before)
        self.scales[output] = Scale(UNIT_SCALE, 0)
        gate, _ = self.activations.codes(output, self.graph.scope(node))
        shifted = [
            self.graph.constant(f"{output}_gate_scale", np.array(1 / (255 * alpha), np.float32)),
            self.graph.constant(f"{output}_gate_zero", np.array(round(255 * beta), np.uint8)),
        ]
        new = [*made, *before, make_node("QuantizeLinear", [plain, *shifted], [gate])]
        if any(reader is None or reader.name not in self.members for reader in self.graph.consumers[output]):
            new.append(make_node("DequantizeLinear", [gate, *self.activations.constants(output)], [output]))
        self.graph.replace(node, *new)
