"""Constant factors and offsets around a convolution, folded into its weights.

Networks with re-parametrised blocks (MobileOne, PP-LCNet) are exported with a Mul and an Add by constants on either side
of a convolution; each reads and writes the whole activation. Measured on the RapidOCR detector (x86-64, AVX-512, one
thread, 640 × 640): element-wise nodes take 41 % of the time of the model as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.quantization.sites import attribute

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph

CONVOLUTIONS = ("Conv", "ConvTranspose")


def fold_affine(graph: Graph) -> int:
    """Fold what can be folded; gives the number of nodes that are gone. Several rounds: one fold opens the next."""
    removed = 0
    while step := _backward(graph) or _forward(graph) or _offset_first(graph):
        graph.apply()
        removed += step if step > 0 else 0
    return removed


def _backward(graph: Graph) -> int:
    """Conv → Mul or Add by a constant of one value or one a channel: into the weights of that convolution."""
    count = 0
    for node in graph.nodes:
        if node.op_type not in CONVOLUTIONS or not _own_weights(graph, node):
            continue
        follower = _sole(graph, node.output[0])
        if follower is None or follower.op_type not in ("Mul", "Add"):
            continue
        channels = _channels(graph, node)
        values = _per_channel(graph, follower, node.output[0], channels, len(graph.shape(node.input[1])))
        if values is None:
            continue
        weight, bias = graph.array(node.input[1]), _bias(graph, node, channels)
        if follower.op_type == "Mul":
            spread = values.reshape(-1, *([1] * (weight.ndim - 1))) if node.op_type == "Conv" else _transposed(graph, node, values)
            graph.set_constant(node.input[1], (weight * spread).astype(np.float32))
            bias = bias * values
        else:
            bias = bias + values
        graph.replace(node, _with(graph, node, bias, output=follower.output[0]))
        graph.replace(follower)
        return count + 1
    return count


def _forward(graph: Graph) -> int:
    """Mul or Add by a constant → convolutions only: into the weights of those."""
    for node in graph.nodes:
        if node.op_type not in ("Mul", "Add"):
            continue
        value = next((name for name in node.input if name not in graph.constants), None)
        readers = graph.consumers[node.output[0]]
        if value is None or not readers or any(r is None or r.op_type != "Conv" or not _own_weights(graph, r) for r in readers):
            continue
        if any(reader.input[0] != node.output[0] or (node.op_type == "Add" and _pads(reader)) for reader in readers):
            continue
        found = [_per_channel(graph, node, value, _inputs(graph, reader), len(graph.shape(reader.input[1]))) for reader in readers]
        if any(values is None for values in found) or _width(graph, value) not in (None, _inputs(graph, readers[0])):
            continue
        for reader, values in zip(readers, found, strict=True):
            weight, groups = graph.array(reader.input[1]), attribute(reader, "group", 1)
            # [out, in / groups, …]: input channel of each weight
            channels = (np.arange(len(weight)) // (len(weight) // groups))[:, None] * weight.shape[1] + np.arange(weight.shape[1])
            spread = values[channels].reshape(*channels.shape, *([1] * (weight.ndim - 2)))  # type: ignore[index]
            bias = _bias(graph, reader, len(weight))
            if node.op_type == "Mul":
                graph.set_constant(reader.input[1], (weight * spread).astype(np.float32))
            else:
                bias = bias + (weight.astype(np.float64) * spread).sum(axis=tuple(range(1, weight.ndim)))
            new = _with(graph, reader, bias)
            new.input[0] = value
            graph.replace(reader, new)
        graph.replace(node)
        return 1
    return 0


def _offset_first(graph: Graph) -> int:
    """Mul then Add before a convolution that pads: the other way round, so that the factor at least can be folded."""
    for node in graph.nodes:
        follower = _sole(graph, node.output[0]) if node.op_type == "Mul" else None
        if follower is None or follower.op_type != "Add":
            continue
        value = next((name for name in node.input if name not in graph.constants), None)
        readers = graph.consumers[follower.output[0]]
        if value is None or not readers or any(r is None or r.op_type != "Conv" or not _own_weights(graph, r) for r in readers):
            continue
        factor = _scalar(graph, node, value)
        offset = _scalar(graph, follower, node.output[0])
        if factor is None or offset is None or factor == 0:
            continue
        first, second = type(node).FromString(follower.SerializeToString()), type(node).FromString(node.SerializeToString())
        first.input[:] = [value, graph.constant(f"{follower.name}/offset", np.array(offset / factor, np.float32))]
        first.output[0] = graph.fresh(f"{value}_offset")
        second.input[:] = [first.output[0], graph.constant(f"{node.name}/factor", np.array(factor, np.float32))]
        second.output[0] = follower.output[0]
        graph.replace(node)
        graph.replace(follower, first, second)
        return -1
    return 0


def _sole(graph: Graph, name: str) -> Any:
    readers = graph.consumers[name]
    return readers[0] if len(readers) == 1 else None


def _own_weights(graph: Graph, node: Any) -> bool:
    """Whether weight and bias are float32 constants that nothing else reads."""
    names = [name for name in node.input[1:] if name]
    return all(graph.is_float(name) and len(graph.consumers[name]) == 1 for name in names)


def _channels(graph: Graph, node: Any) -> int:
    shape = graph.shape(node.input[1])
    return shape[0] if node.op_type == "Conv" else shape[1] * attribute(node, "group", 1)


def _inputs(graph: Graph, node: Any) -> int:
    return int(graph.shape(node.input[1])[1] * attribute(node, "group", 1))


def _width(graph: Graph, value: str) -> int | None:
    """Channels of an activation, where they are known: a factor may make three of one."""
    producer = graph.producer.get(value)
    if producer is not None:
        return _channels(graph, producer) if producer.op_type in CONVOLUTIONS and producer.input[1] in graph.constants else None
    shapes = [entry.type.tensor_type.shape.dim for entry in graph.model.graph.input if entry.name == value]
    return shapes[0][1].dim_value or None if shapes and len(shapes[0]) > 1 else None


def _transposed(graph: Graph, node: Any, values: np.ndarray) -> np.ndarray:
    """The factor of each weight [in, out / groups, …] of a transposed convolution."""
    inside, outside, *rest = graph.shape(node.input[1])
    groups = attribute(node, "group", 1)
    group = np.arange(inside) // (inside // groups)
    spread: np.ndarray = values[group[:, None] * outside + np.arange(outside)].reshape(inside, outside, *([1] * len(rest)))
    return spread


def _pads(node: Any) -> bool:
    return any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _bias(graph: Graph, node: Any, channels: int) -> np.ndarray:
    return graph.array(node.input[2]).astype(np.float64) if len(node.input) > 2 and node.input[2] else np.zeros(channels)


def _with(graph: Graph, node: Any, bias: np.ndarray, output: str = "") -> Any:
    """The node with another bias, giving another value."""
    new = type(node).FromString(node.SerializeToString())
    new.input[:] = [*node.input[:2], graph.constant(f"{node.input[1]}_bias", bias.astype(np.float32))]
    if output:
        new.output[0] = output
    return new


def _per_channel(graph: Graph, node: Any, value: str, channels: int, rank: int) -> np.ndarray | None:
    """The node's constant as one number a channel, where it is one value, or one for each channel of [batch, channels, …],
    which has `rank` axes."""
    name = next((other for other in node.input if other != value), None)
    if name is None or not graph.is_float(name):
        return None
    constant = graph.array(name).astype(np.float64)
    if constant.size == 1 and constant.ndim <= rank:
        return np.full(channels, constant.reshape(()))
    shape = constant.shape[1:] if constant.ndim == rank and constant.shape[0] == 1 else constant.shape
    return constant.reshape(-1) if shape == (channels, *([1] * (rank - 2))) else None


def _scalar(graph: Graph, node: Any, value: str) -> float | None:
    name = next((other for other in node.input if other != value), None)
    if name is None or not graph.is_float(name):
        return None
    constant = graph.array(name)
    return float(constant.reshape(())) if constant.size == 1 and constant.ndim <= 4 else None
