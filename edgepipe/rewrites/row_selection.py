"""Rows that nothing reads are not computed: a position picked at the end is picked before the row-wise nodes in front.

A classifier reads the first token of the last layer's output only. Products, biases, normalisation and activations of
that layer treat each position by itself, so the position is picked right behind the attention instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.quantization.sites import attribute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.quantization.graph import Graph

ROW_WISE = ("Gelu", "FastGelu", "QuickGelu", "Erf", "Tanh", "Relu", "Sigmoid", "HardSigmoid", "Identity", "Sqrt")
PAIRED = ("Add", "Mul", "Sub", "Div", "BiasGelu", "Pow")


def pick_rows_early(graph: Graph) -> int:
    """Gives the number of nodes that now work on one position instead of all."""
    picks = [node for node in graph.nodes if node.op_type == "Gather" and _picks_a_position(graph, node)]
    shapes = _shapes(graph) if picks else {}
    moved = sum(_move(graph, pick, shapes) for pick in picks)
    graph.apply()
    return moved


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Of activations of the main graph, as far as they are known; 0 for an axis of any length."""
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(graph.model)
    except Exception:  # errors of several kinds, and models over 2 GB
        model = graph.model
    values = [value for value in (*model.graph.input, *model.graph.value_info) if value.type.tensor_type.HasField("shape")]
    return {value.name: tuple(each.dim_value for each in value.type.tensor_type.shape.dim) for value in values}


def _picks_a_position(graph: Graph, pick: Any) -> bool:
    """One position of [batch, position, hidden], by a constant."""
    constant = pick.input[0] not in graph.constants and pick.input[1] in graph.constants
    return constant and attribute(pick, "axis", 0) == 1 and graph.shape(pick.input[1]) == ()


def _move(graph: Graph, pick: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    from onnx.helper import make_node

    region = _region(graph, pick, shapes)
    if not region:
        return 0
    inside = {name for node in region for name in node.output}
    picked: dict[str, str] = {}
    first = True
    for node in region:
        new = type(node).FromString(node.SerializeToString())
        picks = []
        for index, name in enumerate(node.input):
            if not name or name in graph.constants or name in inside:
                continue
            if name not in picked:
                picked[name] = graph.fresh(f"{name}_position")
                picks.append(make_node("Gather", [name, pick.input[1]], [picked[name]], name=f"{picked[name]}_Gather", axis=1))
            new.input[index] = picked[name]
        graph.replace(node, *picks, new)
        first = False
    graph.replace(pick, make_node("Identity", [pick.input[0]], list(pick.output), name=pick.name))
    return 0 if first else len(region)


def _region(graph: Graph, pick: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[Any]:
    """The row-wise nodes in front of `pick` that nothing else depends on, in the graph's order."""
    found: dict[int, Any] = {}
    while True:
        inside = {name for node in found.values() for name in node.output} | {pick.input[0]}
        wanted = {name for node in found.values() for name in node.input} | {pick.input[0]}
        grown = False
        for name in wanted:
            node = graph.producer.get(name)
            if node is None or id(node) in found or not _by_rows(graph, node, shapes) or graph.scope(node) != graph.scope(pick):
                continue
            readers = [reader for output in node.output if output for reader in graph.consumers[output]]
            if all(reader is not None and (id(reader) in found or reader is pick) for reader in readers):
                found[id(node)] = node
                grown = True
        if not grown:
            return [node for node in graph.nodes if id(node) in found] if inside else []


def _by_rows(graph: Graph, node: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the node treats each position of [batch, position, hidden] by itself, and would a [batch, hidden] alike."""
    known = [shapes[name] for name in node.input if name in shapes and name not in graph.constants]
    if any(len(shape) != 3 or shape[1] == 1 for shape in known):  # the second axis of something else
        return False
    others = [name for name in node.input[1:] if name]
    if node.op_type in ROW_WISE:
        return True
    if node.op_type == "MatMul":
        return node.input[1] in graph.constants and len(graph.shape(node.input[1])) == 2
    if node.op_type == "SkipLayerNormalization":
        return all(name in graph.constants for name in node.input[2:] if name) and not any(node.output[1:])
    if node.op_type == "LayerNormalization":
        return attribute(node, "axis", -1) == -1 and all(name in graph.constants for name in others)
    if node.op_type in PAIRED:
        constants = [name for name in node.input if name in graph.constants]
        return all(len(graph.shape(name)) <= 1 for name in constants)
    return False
