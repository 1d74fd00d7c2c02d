"""Products whose activations are quantized with scales found in calibration, and whose sums come out as float32.

Jacob et al., arXiv 1712.05877, section 2.1. Nothing is taken from the sample at run time, so an output depends neither
on its neighbours in a batch nor on padding. ONNX Runtime's MatMulIntegerToFloat scales the sums and adds the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.dynamic import attention8
from edgepipe.quantization.dynamic import takes as has_kernel
from edgepipe.quantization.graph import MICROSOFT
from edgepipe.quantization.weights8 import weight8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site
    from edgepipe.quantization.weights8 import Rounding

OPSET = 13


@dataclass(frozen=True, slots=True)
class Scale:
    """uint8 of an activation: value ≈ (code − zero point) · scale."""

    scale: float
    zero_point: int


def scale_of(low: float, high: float, *, symmetric: bool = False) -> Scale:
    """The scale that holds [low, high], which is widened to hold zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    step = float(np.float32((high - low) / 255)) or 1.0
    return Scale(step, 128 if symmetric else int(np.clip(np.rint(-low / step), 0, 255)))


class StaticActivations:
    """Activations as uint8 with fixed scales, each quantized once for all that read it."""

    def __init__(self, graph: Graph, scales: Mapping[str, Scale]) -> None:
        self.graph, self.scales = graph, scales
        self._constants: dict[str, tuple[str, str]] = {}
        self._codes: dict[tuple[int, str], str] = {}

    def constants(self, value: str) -> tuple[str, str]:
        """Names of the scale and zero point of a value."""
        if value not in self._constants:
            found = self.scales[value]
            self._constants[value] = (
                self.graph.constant(f"{value}_s", np.array(found.scale, np.float32)),
                self.graph.constant(f"{value}_z", np.array(found.zero_point, np.uint8)),
            )
        return self._constants[value]

    def known(self, value: str, scope: int) -> str | None:
        return self._codes.get((scope, value))

    def codes(self, value: str, scope: int) -> tuple[str, list[Any]]:
        """(codes of the value, the node that makes them, if it is not there yet)."""
        from onnx.helper import make_node

        if name := self.known(value, scope):
            return name, []
        name = self._codes[scope, value] = self.graph.fresh(f"{value}_q")
        return name, [make_node("QuantizeLinear", [value, *self.constants(value)], [name], name=f"{value}_Q")]


def to_static(graph: Graph, node: Any, site: Site, rounding: Rounding, activations: StaticActivations) -> None:
    """Put the int8 form of a product or attention in its node's place. Call `graph.apply` when all are done."""
    from onnx.helper import make_node

    weight = weight8(graph, node, site, rounding)
    codes, quantizing = activations.codes(site.data, graph.scope(node))
    scale, zero = activations.constants(site.data)
    new = [*weight.nodes, *quantizing]
    graph.require(MICROSOFT, 1)
    if site.kind == "attention":
        graph.replace(node, *new, attention8(graph, node, weight, codes, scale, zero))
        return
    bias, output, follower = _bias(graph, node, site)
    inputs = [codes, weight.codes, scale, weight.scales, zero, weight.zero_points, *([bias] if bias else [])]
    product = make_node("MatMulIntegerToFloat", inputs, [output], name=f"{node.name}_quant", domain=MICROSOFT)
    graph.replace(node, *new, product)
    if follower is not None and follower.op_type == "BiasGelu":
        graph.replace(follower, make_node("Gelu", [output], list(follower.output), name=follower.name, domain=MICROSOFT))
    elif follower is not None:
        graph.replace(follower)


def _bias(graph: Graph, node: Any, site: Site) -> tuple[str, str, Any]:
    """(bias, what the product gives, the node that added the bias until now)."""
    if site.operator == "Gemm":
        third = node.input[2] if len(node.input) > 2 else ""
        if third and graph.is_float(third) and graph.shape(third) in ((site.n,), (1, site.n)):
            flat = third if len(graph.shape(third)) == 1 else graph.constant(f"{third}_flat", graph.array(third).reshape(-1))
            return flat, site.output, None
        return "", site.output, None
    readers = graph.consumers[site.output]
    follower = readers[0] if len(readers) == 1 else None
    if follower is None or follower.op_type not in ("Add", "BiasGelu") or graph.scope(follower) != graph.scope(node):
        return "", site.output, None
    bias = next((name for name in follower.input if name != site.output and graph.is_float(name)), "")
    if not bias or graph.shape(bias) != (site.n,):
        return "", site.output, None
    return bias, follower.output[0] if follower.op_type == "Add" else site.output, follower


def takes(graph: Graph, site: Site, node: Any) -> bool:
    """Whether the product can be made so; a Gemm that adds a matrix of its own cannot, nor attention with a past."""
    if not has_kernel(site, node):
        return False
    if site.operator != "Gemm" or len(node.input) < 3 or not node.input[2]:
        return True
    return graph.is_float(node.input[2]) and graph.shape(node.input[2]) in ((site.n,), (1, site.n))
