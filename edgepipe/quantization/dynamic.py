"""Sites as int8 products whose activation scales are taken at run time.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, section 2.1. Written with ONNX's own operators, which ONNX Runtime fuses when it loads them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.graph import MICROSOFT
from edgepipe.quantization.sites import attribute
from edgepipe.quantization.weights8 import weight8

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site
    from edgepipe.quantization.weights8 import Rounding, Weight8

OPSET = 11
NO_KERNEL = "no int8 kernel takes it with all that it does"
OPERATORS = ("MatMul", "Gemm", "Attention", "Conv", "LSTM")


class DynamicActivations:
    """Activations as uint8 with scales of their own range, each quantized once for all that read it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[int, str], tuple[str, str, str]] = {}

    def quantized(self, value: str, scope: int) -> tuple[tuple[str, str, str], list[Any]]:
        """((codes, scale, zero point), the node that makes them, if it is not there yet). `scope`: of the graph it is for."""
        from onnx.helper import make_node

        known = self._made.get((scope, value))
        if known:
            return known, []
        names = tuple(self._graph.fresh(f"{value}_{part}") for part in ("quantized", "scale", "zero_point"))
        self._made[scope, value] = names  # type: ignore[assignment]
        return names, [make_node("DynamicQuantizeLinear", [value], list(names), name=f"{value}_QuantizeLinear")]  # type: ignore[return-value]


def to_dynamic(graph: Graph, node: Any, site: Site, rounding: Rounding, activations: DynamicActivations) -> None:
    """Put the site's int8 form in its node's place. Call `graph.apply` when all are done."""
    if site.kind == "recurrent":
        graph.replace(node, _recurrent(graph, node, site, rounding))
        return
    if site.kind == "convolution":  # ConvInteger takes one zero point for all channels
        rounding = replace(rounding, symmetric=True)
    weight = weight8(graph, node, site, rounding)
    (codes, scale, zero), quantizing = activations.quantized(site.data, graph.scope(node))
    new = [*weight.nodes, *quantizing]
    if site.kind == "attention":
        new.append(attention8(graph, node, weight, codes, scale, zero))
    elif site.kind == "convolution":
        new += _convolution(graph, node, site, weight, codes, scale, zero)
    else:
        new += _product(graph, node, site, weight, codes, scale, zero)
    graph.replace(node, *new)


def attention8(graph: Graph, node: Any, weight: Weight8, codes: str, scale: str, zero: str) -> Any:
    """A fused Attention whose three projections are one int8 product."""
    from onnx.helper import make_node

    mask = node.input[3] if len(node.input) > 3 else ""
    bias = node.input[2] or graph.constant(f"{node.name}/bias", np.zeros(weight.scale_values.size, np.float32))
    inputs = [codes, weight.codes, bias, scale, weight.scales, mask, zero, weight.zero_points]
    made = make_node("QAttention", inputs, list(node.output), name=f"{node.name}_quant", domain=MICROSOFT)
    made.attribute.extend(a for a in node.attribute if a.name in ("num_heads", "unidirectional", "mask_filter_value"))
    graph.require(MICROSOFT, 1)
    return made


def _product(graph: Graph, node: Any, site: Site, weight: Weight8, codes: str, scale: str, zero: str) -> list[Any]:
    from onnx.helper import make_node

    name = node.name
    whole, floats, scales = (graph.fresh(f"{site.output}_{part}") for part in ("integer", "cast", "scales"))
    bias = node.input[2] if site.operator == "Gemm" and len(node.input) > 2 and node.input[2] else ""
    result = graph.fresh(f"{site.output}_product") if bias else site.output
    made = [
        make_node("MatMulInteger", [codes, weight.codes, zero, weight.zero_points], [whole], name=f"{name}_quant"),
        make_node("Cast", [whole], [floats], name=f"{name}_cast", to=1),
        make_node("Mul", [scale, weight.scales], [scales], name=f"{name}_scales"),
        make_node("Mul", [floats, scales], [result], name=f"{name}_scale"),
    ]
    return [*made, make_node("Add", [result, bias], [site.output], name=f"{name}_bias")] if bias else made


def _convolution(graph: Graph, node: Any, site: Site, weight: Weight8, codes: str, scale: str, zero: str) -> list[Any]:
    """Weights are symmetric; scales may be a channel's own."""
    from onnx.helper import make_node

    name, channels = node.name, (site.n, *([1] * (len(site.shape) - 2)))
    whole, floats, scales = (graph.fresh(f"{site.output}_{part}") for part in ("integer", "cast", "scales"))
    biased = len(node.input) > 2 and bool(node.input[2])
    result = graph.fresh(f"{site.output}_product") if biased else site.output
    per_channel = graph.constant(f"{name}/scales", np.broadcast_to(weight.scale_values, site.n).reshape(channels))
    convolved = make_node("ConvInteger", [codes, weight.codes, zero], [whole], name=f"{name}_quant")
    convolved.attribute.extend(a for a in node.attribute)
    made = [
        convolved,
        make_node("Cast", [whole], [floats], name=f"{name}_cast", to=1),
        make_node("Mul", [scale, per_channel], [scales], name=f"{name}_scales"),
        make_node("Mul", [floats, scales], [result], name=f"{name}_scale"),
    ]
    if biased:
        bias = graph.constant(f"{name}/bias", graph.array(node.input[2]).reshape(channels))
        made.append(make_node("Add", [result, bias], [site.output], name=f"{name}_bias"))
    return made


def _recurrent(graph: Graph, node: Any, site: Site, rounding: Rounding) -> Any:
    """DynamicQuantizeLSTM keeps both weights as [directions, inputs, 4 · hidden]."""
    from onnx.helper import make_node

    from edgepipe.quantization.rounding import Grid, quantize

    names = []
    for weight in node.input[1:3]:
        values = graph.array(weight)  # [directions, 4 · hidden, inputs]
        grid = Grid(8, True, 0 if rounding.per_channel else -1, site.node in rounding.reduced)
        found = [quantize(rounding.method, each.T, grid, name=weight) for each in values]
        scales = np.stack([one.scales[0] for one in found]) if rounding.per_channel else np.stack([one.scales[0, 0] for one in found])
        names.append(
            (
                graph.constant(f"{weight}_quantized", np.stack([one.codes for one in found])),
                graph.constant(f"{weight}_scale", scales),
                graph.constant(f"{weight}_zero_point", np.zeros(scales.shape, np.int8)),
            )
        )
    (w, ws, wz), (r, rs, rz) = names
    rest = [*node.input[3:], *[""] * (8 - len(node.input))]  # bias, lengths, first states, peepholes
    graph.require(MICROSOFT, 1)
    made = make_node(
        "DynamicQuantizeLSTM",
        [node.input[0], w, r, *rest[:5], ws, wz, rs, rz],
        list(node.output),
        name=f"{node.name}_quant",
        domain=MICROSOFT,
    )
    made.attribute.extend(a for a in node.attribute if a.name != "layout")
    return made


def takes(site: Site, node: Any) -> bool:
    """Whether there is an int8 kernel for the node as it is: fused attention with a past or a bias of its scores has none."""
    if site.kind == "attention":
        return not any(node.input[4:]) and not any(attribute(node, name, 0) for name in ("qkv_hidden_sizes", "do_rotary", "scale"))
    if site.kind == "recurrent":
        return (attribute(node, "layout", 0), attribute(node, "input_forget", 0)) == (0, 0)
    return site.kind != "table" and site.operator != "ConvTranspose"
