"""Lookup tables in 8 bits with one scale, by ONNX's own operators: rows are looked up as codes and then scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.rounding import Grid, quantize

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.sites import Site

OPSET = 13  # DequantizeLinear of values of any shape


def to_table8(graph: Graph, node: Any, site: Site) -> None:
    """Put a lookup of codes and DequantizeLinear in the place of a lookup. Call `graph.apply` when all are done."""
    from onnx.helper import make_node

    found = quantize("nearest", graph.array(site.weight), Grid(8, False, -1), name=site.weight)
    assert found.zero_points is not None
    codes = graph.constant(f"{site.weight}_quantized", found.codes)
    scale = graph.constant(f"{site.weight}_scale", found.scales.reshape(()))
    zero = graph.constant(f"{site.weight}_zero_point", found.zero_points.astype(np.uint8).reshape(()))
    rows = graph.fresh(f"{site.output}_quantized")
    gather = make_node("Gather", [codes, *node.input[1:]], [rows], name=node.name)
    gather.attribute.extend(node.attribute)
    graph.replace(node, gather, make_node("DequantizeLinear", [rows, scale, zero], [site.output], name=f"{node.name}_DequantizeLinear"))
