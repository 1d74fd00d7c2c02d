"""Which small graphs cost the same: a digest of what decides a graph's time, free of names and of weights' values.

Layers of one model are mostly alike; one of each kind is timed or counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.artifact import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

FLOATS = (1, 10, 11, 16)  # float32, float16, float64, bfloat16
BYTES = (2, 3, 21, 22)  # uint8, int8, uint4, int4: quantized values
# Where scales stand among the inputs; the input after each is its zero point.
SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,), "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6)}


def likeness(model: Any, feeds: Mapping[str, np.ndarray]) -> str:
    """A digest that two graphs share when a runtime spends the same time on them: operators, attributes, how they are
    wired, shapes and types, and the values of what is no weight (a target shape, an exponent).

    Of scales and zero points it matters which are equal (the runtime drops what quantizes again in the same way) and
    which are zero (kernels differ), not what they are. `model` has its weights loaded.
    """
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        return names.setdefault(name, str(len(names))) if name else ""

    for name in (*(value.name for value in model.graph.input), *(value.name for value in model.graph.output)):
        renamed(name)
    return digest(
        {
            "opsets": sorted([entry.domain, entry.version] for entry in model.opset_import),
            "graph": _graph(model.graph, renamed, {}),
            "feeds": sorted([renamed(name), value.dtype.name, list(value.shape), _content(value)] for name, value in feeds.items()),
        }
    )


def _content(value: np.ndarray) -> list[Any]:
    """Of an input: what steers the work, not what is worked on."""
    return [] if value.dtype.kind == "f" or value.dtype.itemsize == 1 else value.ravel().tolist()[:4096]


def _graph(graph: Any, renamed: Any, grids: dict[bytes, int]) -> list[Any]:
    positions = {
        name: place - scale
        for node in graph.node
        for scale in SCALES.get(node.op_type, ())
        for place in (scale, scale + 1)
        if place < len(node.input)
        for name in (node.input[place],)
    }
    nodes = [
        [
            node.domain,
            node.op_type,
            [renamed(name) for name in node.input],
            [renamed(name) for name in node.output],
            sorted(([a.name, *_attribute(a, renamed, grids)] for a in node.attribute), key=str),
        ]
        for node in graph.node
    ]
    tensors = sorted([renamed(t.name), *_tensor(t, t.name in positions, grids)] for t in graph.initializer)
    ends = [[[renamed(value.name), value.type.tensor_type.elem_type] for value in side] for side in (graph.input, graph.output)]
    return [nodes, tensors, ends]


def _attribute(attribute: Any, renamed: Any, grids: dict[bytes, int]) -> list[Any]:
    import onnx

    bodies = [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]
    if bodies:
        return [_graph(body, renamed, grids) for body in bodies]
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value, False, grids)
    return [
        value.hex()
        if isinstance(value, bytes)
        else [v.hex() if isinstance(v, bytes) else v for v in value]
        if isinstance(value, list)
        else value
    ]


def _tensor(tensor: Any, is_grid: bool, grids: dict[bytes, int]) -> list[Any]:
    import onnx

    seen = [tensor.data_type, list(tensor.dims)]
    if len(tensor.dims) > 1 and tensor.data_type in (*FLOATS, *BYTES):
        return seen
    values = onnx.numpy_helper.to_array(tensor)
    content = values.tobytes()
    if is_grid:  # a scale or zero point, one or as many as there are channels
        return [*seen, grids.setdefault(content, len(grids)), not values.any()]
    if tensor.data_type in FLOATS and values.size > 1:
        return seen
    return [*seen, content.hex()]
