"""Rows that nothing reads are not computed: a position picked at the end is picked before the row-wise nodes in front.

A classifier reads the first token of the last layer's output only. Products, biases, normalisation and activations of
that layer treat each position by itself, so the position is picked right behind the attention instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.quantization.sites import attribute

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph

ROW_WISE = ("Gelu", "FastGelu", "QuickGelu", "Erf", "Tanh", "Relu", "Sigmoid", "HardSigmoid", "Identity", "Sqrt")
PAIRED = ("Add", "Mul", "Sub", "Div", "BiasGelu", "Pow")


def pick_rows_early(graph: Graph) -> int:
    """Gives the number of nodes that now work on one position instead of all."""
    moved = 0
    for pick in graph.nodes:
        if pick.op_type == "Gather" and _picks_a_position(graph, pick):
            moved += _move(graph, pick)
    graph.apply()
    return moved


def _picks_a_position(graph: Graph, pick: Any) -> bool:
    """One position of [batch, position, hidden], by a constant."""
    constant = pick.input[0] not in graph.constants and pick.input[1] in graph.constants
    return constant and attribute(pick, "axis", 0) == 1 and graph.shape(pick.input[1]) == ()


def _move(graph: Graph, pick: Any) -> int:
    from onnx.helper import make_node

    region = _region(graph, pick)
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


def _region(graph: Graph, pick: Any) -> list[Any]:
    """The row-wise nodes in front of `pick` that nothing else depends on, in the graph's order."""
    found: dict[int, Any] = {}
    while True:
        inside = {name for node in found.values() for name in node.output} | {pick.input[0]}
        wanted = {name for node in found.values() for name in node.input} | {pick.input[0]}
        grown = False
        for name in wanted:
            node = graph.producer.get(name)
            if node is None or id(node) in found or not _by_rows(graph, node) or graph.scope(node) != graph.scope(pick):
                continue
            readers = [reader for output in node.output if output for reader in graph.consumers[output]]
            if all(reader is not None and (id(reader) in found or reader is pick) for reader in readers):
                found[id(node)] = node
                grown = True
        if not grown:
            return [node for node in graph.nodes if id(node) in found] if inside else []


def _by_rows(graph: Graph, node: Any) -> bool:
    """Whether the node treats each position of [batch, position, hidden] by itself, and would a [batch, hidden] alike."""
    others = [name for name in node.input[1:] if name]
    if node.op_type in ROW_WISE:
        return True
    if node.op_type == "MatMul":
        return node.input[1] in graph.constants and len(graph.shape(node.input[1])) == 2
    if node.op_type == "LayerNormalization":
        return attribute(node, "axis", -1) == -1 and all(name in graph.constants for name in others)
    if node.op_type in PAIRED:
        constants = [name for name in node.input if name in graph.constants]
        return all(len(graph.shape(name)) <= 1 for name in constants)
    return False
