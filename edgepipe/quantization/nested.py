"""A view of an ONNX model for reading: every node with the graph it stands in, so that bodies of If, Loop and Scan that
use a name twice are kept apart."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from edgepipe.quantization.names import name_node
from edgepipe.weights import load_onnx

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    Value = tuple[int, str]  # the number of the graph that declares it, the name


class Nested:
    """One model, its nodes named as in `Graph`. They are numbered over all graphs; the main graph is number 0, the others
    follow in the order of a walk."""

    def __init__(self, path: Path) -> None:
        self.model, self.folder = load_onnx(path), path.parent
        self.graphs: list[Any] = []
        self.parents: list[int] = []
        self.nodes: list[Any] = []
        self.scopes: list[int] = []  # of each node
        self.bodies: dict[int, list[int]] = {}  # graphs that a node holds
        self.constants: dict[Value, Any] = {}
        self.producer: dict[Value, int] = {}
        self._declared: set[Value] = set()
        self._names: set[str] = set()
        self._walk(self.model.graph, -1)
        self.inputs: list[list[Value]] = []  # of each node, what its bodies read from around it too
        self.outputs = [[(scope, name) for name in node.output if name] for node, scope in zip(self.nodes, self.scopes, strict=True)]
        self.readers: dict[Value, list[int]] = defaultdict(list)
        self.ends = {self.resolve(scope, value.name) for scope, graph in enumerate(self.graphs) for value in graph.output}
        for index, scope in enumerate(self.scopes):
            self.inputs.append(list(dict.fromkeys(self._read_by(index, scope))))
            for value in self.inputs[-1]:
                self.readers[value].append(index)

    def _walk(self, graph: Any, parent: int) -> None:
        import onnx

        scope = len(self.graphs)
        self.graphs.append(graph)
        self.parents.append(parent)
        self.constants |= {(scope, tensor.name): tensor for tensor in graph.initializer}
        self._declared |= {(scope, value.name) for value in (*graph.input, *graph.initializer)}
        for node in graph.node:
            index = len(self.nodes)
            name_node(node, self._names)
            self.nodes.append(node)
            self.scopes.append(scope)
            for name in node.output:
                self.producer[scope, name] = index
                self._declared.add((scope, name))
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                    self.constants[scope, node.output[0]] = attribute.t
                for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    self.bodies.setdefault(index, []).append(len(self.graphs))
                    self._walk(inner, scope)

    def resolve(self, scope: int, name: str) -> Value:
        """The value that a name means in a graph: the graph's own, or one of the graphs around it."""
        here = scope
        while here >= 0:
            if (here, name) in self._declared:
                return here, name
            here = self.parents[here]
        return scope, name

    def has(self, value: Value) -> bool:
        return value in self._declared

    def _read_by(self, index: int, scope: int) -> Iterable[Value]:
        yield from (self.resolve(scope, name) for name in self.nodes[index].input if name)
        for body in self.bodies.get(index, ()):
            inside = self._inside(body)
            read = [(where, name) for where in inside for node in self.graphs[where].node for name in node.input if name]
            read += [(where, value.name) for where in inside for value in self.graphs[where].output]
            for where, name in read:
                value = self.resolve(where, name)
                if value[0] not in inside:
                    yield value

    def _inside(self, body: int) -> set[int]:
        found = {body}
        for scope in range(body + 1, len(self.graphs)):
            if self.parents[scope] in found:
                found.add(scope)
        return found

    def tensor(self, value: Value) -> Any:
        """A copy of a constant under its own name, its values loaded."""
        import onnx

        tensor = onnx.TensorProto()
        tensor.CopyFrom(self.constants[value])
        tensor.name = value[1]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(self.folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
        return tensor
