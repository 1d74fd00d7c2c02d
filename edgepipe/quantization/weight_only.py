"""Weights in few bits that stay so at run time: products by ONNX Runtime's MatMulNBits, tables by GatherBlockQuantized.

MatMulNBits computes in int8 with `accuracy_level` 4, else it expands blocks to float32 as it goes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.graph import MICROSOFT
from edgepipe.quantization.sites import attribute

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph
    from edgepipe.quantization.rounding import Grid, Quantized
    from edgepipe.quantization.sites import Site

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128  # the latter of a table's rows, where no size is asked for


def to_nbits(graph: Graph, node: Any, site: Site, found: Quantized, bits: int, accuracy_level: int) -> None:
    """Put MatMulNBits in the place of a product, or of the projections of a fused attention."""
    from onnx.helper import make_node

    graph.require(MICROSOFT, 1)
    attention = site.kind == "attention"
    bias = node.input[2] if len(node.input) > 2 and node.input[2] and (attention or site.operator == "Gemm") else ""
    added = bias if bias and not (bias in graph.constants and graph.shape(bias) == (site.n,)) else ""
    bias = "" if added else bias
    output = graph.fresh(f"{site.output}_projections") if attention or added else site.output
    block = _block(found)
    packed, scales, zeros = _packed_columns(graph, site, found, bits, block)
    inputs = [site.data, packed, scales, zeros, "", bias]
    while not inputs[-1]:
        inputs.pop()
    product = make_node(
        "MatMulNBits", inputs, [output], name=f"{node.name}_quant", domain=MICROSOFT,
        K=site.k, N=site.n, bits=bits, block_size=block, accuracy_level=accuracy_level,
    )  # fmt: skip
    rest = _attention(graph, node, site, output) if attention else []
    if added:  # a bias of another shape than the kernel's
        rest = [make_node("Add", [output, added], [site.output], name=f"{node.name}_bias")]
    graph.replace(node, product, *rest)


def _block(found: Quantized) -> int:
    """Weights in a kernel's block: a group, filled up where there is but one, shorter than any block."""
    if len(found.scales) > 1:
        return found.group_size
    return max(SMALLEST_BLOCK, 1 << (found.group_size - 1).bit_length())


def _packed_columns(graph: Graph, site: Site, found: Quantized, bits: int, size: int) -> tuple[str, str, str]:
    """Codes as [n, blocks, bytes], the first code of a byte in its lowest bits; zero points packed the same way."""
    k, n = found.codes.shape
    blocks = found.scales.shape[0]
    middle = 1 << bits - 1
    codes = np.full((blocks * size, n), middle, np.int16)
    codes[:k] = found.codes
    if found.zero_points is None:
        codes[:k] += middle
    columns = codes.T.reshape(n, blocks, size)
    packed = graph.constant(f"{site.weight}_Q{bits}", _in_bytes(columns, bits))
    scales = graph.constant(f"{site.weight}_scales", found.scales.T.reshape(n, blocks))
    if found.zero_points is None:
        return packed, scales, ""
    zeros = found.zero_points.T.reshape(n, blocks)
    filled = np.concatenate([zeros, np.zeros((n, -blocks % (8 // bits)), zeros.dtype)], axis=1)
    return packed, scales, graph.constant(f"{site.weight}_zero_points", _in_bytes(filled, bits).reshape(-1))


def _in_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis, several to a byte, the first in the lowest bits."""
    parts = codes.astype(np.uint8).reshape(*codes.shape[:-1], -1, 8 // bits)
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    packed: np.ndarray = np.bitwise_or.reduce(parts << shifts, axis=-1).astype(np.uint8)
    return packed


def _attention(graph: Graph, node: Any, site: Site, projections: str) -> list[Any]:
    """Attention over projections that are there already: split in three, each [batch, sequence, hidden]."""
    from onnx.helper import make_node

    query, key, value = (graph.fresh(f"{site.output}_{part}") for part in ("query", "key", "value"))
    opset = next(entry.version for entry in graph.model.opset_import if entry.domain in ("", "ai.onnx"))
    sizes = [graph.constant(f"{node.name}/sizes", np.array([site.n // 3] * 3, np.int64))] if opset >= 13 else []
    split = make_node("Split", [projections, *sizes], [query, key, value], name=f"{node.name}_split", axis=-1)
    mask = [node.input[3]] if len(node.input) > 3 and node.input[3] else []
    attention = make_node("MultiHeadAttention", [query, key, value, *([""] if mask else []), *mask], list(node.output), name=node.name, domain=MICROSOFT)  # fmt: skip
    attention.attribute.extend(a for a in node.attribute if a.name in ("num_heads", "unidirectional", "mask_filter_value", "scale"))
    return [split, attention]


def to_block_table(graph: Graph, node: Any, site: Site, found: Quantized, bits: int) -> None:
    """Put GatherBlockQuantized in the place of a lookup. `found` is of the table transposed: groups lie along its rows."""
    from onnx.helper import make_node

    graph.require(MICROSOFT, 1)
    rows = found.codes.T  # [entries, width]
    middle = 1 << bits - 1
    codes = rows.astype(np.int16) + (middle if found.zero_points is None else 0)
    width = rows.shape[1]
    codes = np.concatenate([codes, np.full((len(codes), -width % (8 // bits)), middle, np.int16)], axis=1)
    packed = graph.constant(f"{site.weight}_Q{bits}", _in_bytes(codes, bits))
    scales = graph.constant(f"{site.weight}_scales", np.ascontiguousarray(found.scales.T))
    inputs = [packed, node.input[1], scales]
    if found.zero_points is not None:
        zeros = found.zero_points.T
        zeros = np.concatenate([zeros, np.zeros((len(zeros), -zeros.shape[1] % (8 // bits)), zeros.dtype)], axis=1)
        inputs.append(graph.constant(f"{site.weight}_zero_points", _in_bytes(zeros, bits)))
    made = make_node(
        "GatherBlockQuantized", inputs, list(node.output), name=f"{node.name}_quant", domain=MICROSOFT,
        gather_axis=0, quantize_axis=1, block_size=found.group_size, bits=bits,
    )  # fmt: skip
    graph.replace(node, made)


def grid_of_rows(grid: Grid, width: int) -> Grid:
    """A table's grid: blocks within its rows of a power of two from 16 on, as the runtime's kernels take them."""
    size = min(grid.group_size if grid.group_size > 0 else LARGEST_BLOCK, 1 << (width.bit_length() - 1))
    return replace(grid, group_size=max(SMALLEST_BLOCK, size))


def takes_block(size: int) -> bool:
    """Whether the runtime has kernels for blocks of that many weights: powers of two from 16."""
    return size >= SMALLEST_BLOCK and size & (size - 1) == 0


def decomposes(site: Site, node: Any) -> bool:
    """Whether a fused attention can be taken apart: one without a past, whose three parts are of one size."""
    return site.kind != "attention" or not (
        any(node.input[4:]) or attribute(node, "qkv_hidden_sizes", []) or attribute(node, "do_rotary", 0)
    )
