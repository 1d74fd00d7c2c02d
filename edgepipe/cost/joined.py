"""Many small graphs as one model of parts that do not touch, so that one emulated run counts them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np

    from edgepipe.cost.latency import Prediction

    Graphs = Mapping[str, tuple[Any, Mapping[str, np.ndarray]]]  # an ONNX model with its weights loaded, and its inputs

LARGEST_BYTES = 500_000_000  # of one joined model, well under what a protobuf file may hold
MOST_NODES = 4000  # in one run: matching node borders takes time that grows with their square


def batches(graphs: Graphs) -> Iterator[dict[str, tuple[Any, Mapping[str, np.ndarray]]]]:
    """The graphs in groups that can be joined: of the same operator sets, and together not too large."""
    alike: dict[str, dict[str, tuple[Any, Mapping[str, np.ndarray]]]] = {}
    for name, graph in graphs.items():
        alike.setdefault(str(sorted(_opsets(graph[0]).items())), {})[name] = graph
    for group in alike.values():
        batch: dict[str, tuple[Any, Mapping[str, np.ndarray]]] = {}
        size_bytes = nodes = 0
        for name, (model, feeds) in group.items():
            if batch and (size_bytes + model.ByteSize() > LARGEST_BYTES or nodes + len(model.graph.node) > MOST_NODES):
                yield batch
                batch, size_bytes, nodes = {}, 0, 0
            batch[name] = (model, feeds)
            size_bytes, nodes = size_bytes + model.ByteSize(), nodes + len(model.graph.node)
        yield batch


def joined(graphs: Graphs) -> tuple[Any, dict[str, np.ndarray]]:
    """One model of all graphs, which have the same operator sets, and inputs for it. Values and nodes of the n-th graph
    are named `<n>/…`; what the runtime fuses keeps the name of one of its parts."""
    import onnx
    from onnx import helper

    joint = helper.make_graph([], "joined", [], [])
    feeds: dict[str, np.ndarray] = {}
    for place, (model, given) in enumerate(graphs.values()):
        part = onnx.compose.add_prefix(model, f"{place}/").graph
        for index, node in enumerate(part.node):
            node.name = f"{place}/{index}"
        joint.node.extend(part.node)
        joint.initializer.extend(part.initializer)
        joint.input.extend(part.input)
        joint.output.extend(part.output)
        feeds |= {f"{place}/{name}": value for name, value in given.items()}
    models = [model for model, _ in graphs.values()]
    opsets = [helper.make_opsetid(domain, version) for domain, version in _opsets(models[0]).items()]
    return helper.make_model(joint, opset_imports=opsets, ir_version=max(model.ir_version for model in models)), feeds


def owners(optimised: Any) -> dict[str, int]:
    """For every node of the graph that the runtime made of a joined model: the graph it belongs to. What the runtime adds
    (a change of layout) has no name of ours, but is joined by values to what has an input of the graph."""
    parts: dict[str, str] = {}

    def part(value: str) -> str:
        while parts.setdefault(value, value) != value:
            parts[value] = value = parts[parts[value]]
        return value

    constants = {tensor.name for tensor in optimised.graph.initializer}
    for node in optimised.graph.node:
        values = [value for value in (*node.input, *node.output) if value and value not in constants]
        for value in values[1:]:
            parts[part(value)] = part(values[0])
    known = {part(value.name): int(value.name.partition("/")[0]) for value in (*optimised.graph.input, *optimised.graph.output)}
    return {node.name: known[place] for node in optimised.graph.node if (place := part(node.output[0])) in known}


def apportioned(prediction: Prediction, names: Iterable[str], owned: Mapping[str, int]) -> dict[str, float]:
    """Milliseconds of each graph of a joined model.

    What runs between nodes, the runtime's dispatch, is shared out by how many nodes a graph has left; what belongs to no
    graph (a constant folded at run time) goes the same way.
    """
    times = dict.fromkeys(names, 0.0)
    nodes = dict.fromkeys(times, 0)
    order = list(times)
    between = 0.0
    for node in prediction.nodes:
        place = owned.get(node.name) if node.op_type else None
        if place is None:
            between += node.ms
        else:
            times[order[place]] += node.ms
            nodes[order[place]] += 1
    count = max(1, sum(nodes.values()))
    return {name: ms + between * nodes[name] / count for name, ms in times.items()}


def _opsets(model: Any) -> dict[str, int]:
    found = {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in model.opset_import}
    return {"": found.pop("", 1), **dict(sorted(found.items())), "com.microsoft": 1}
