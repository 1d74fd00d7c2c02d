"""A large ONNX model run one part after the other, so that checking it takes the memory of its largest layer.

What passes from part to part is kept, sessions are not. Nodes that make constants of constants (weights that are stored
small) belong to whatever part reads them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepipe.quantization.changed_model import editable, open_changed
from edgepipe.weights import all_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from edgepipe.artifact import Artifact

    Feeds = Mapping[str, np.ndarray]

PART_BYTES = 64_000_000  # of constants; one node with more is a part of its own
EXPANDED = 16  # times the bytes that nodes make constants of: 4 bits to float32, and one step of that beside it
NOT_TENSORS = ("Sequence", "Optional", "SplitToSequence", "ConcatFromSequence")


def open_in_segments(artifact: Artifact, optimise: bool, threads: int, exact: bool = False) -> Segments | None:
    """A model as a session would run it, in the memory of its largest layer; None for what cannot be taken apart."""
    if artifact.model.format != "onnx" or not can_be_cut(artifact.model.main_file):
        return None
    disabled = artifact.program.get("session", {}).get("disabled_optimizers", ())
    return Segments(artifact.model.main_file, threads=threads, disabled_optimizers=disabled, optimise=optimise, exact=exact)


def can_be_cut(path: Path) -> bool:
    """Whether every value between nodes is known to be a tensor."""
    model = editable(path)
    return not model.graph.sparse_initializer and not any(node.op_type.startswith(NOT_TENSORS) for node in all_nodes(model.graph))


class Segments:
    """Feeds → outputs by name, as a session of the whole would give them; rewrites that reach over a border are not made."""

    def __init__(
        self, path: Path, *, threads: int, disabled_optimizers: Sequence[str] = (), optimise: bool = True, exact: bool = False
    ) -> None:
        self._folder, self._threads, self._disabled = path.parent, threads, disabled_optimizers
        self._optimise, self._exact = optimise, exact
        self._model = editable(path)
        graph = self._model.graph
        self._outputs = [value.name for value in graph.output]
        self._inputs = [value.name for value in graph.input]
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = list(graph.node)
        self._makers: dict[str, int] = {}  # constants that nodes make of constants, by what makes them
        for number, node in enumerate(self._nodes):
            if all(name in self._constants or name in self._makers for name in needs(node)):
                self._makers |= dict.fromkeys((name for name in node.output if name), number)
        self._parts = self._cut()

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        values = {name: feeds[name] for name in self._inputs if name in feeds}
        last = {name: number for number, part in enumerate(self._parts) for node in part for name in needs(self._nodes[node])}
        last |= dict.fromkeys(self._outputs, len(self._parts))
        for number, part in enumerate(self._parts):
            values |= self._run(part, values, {name for name, place in last.items() if place > number}, number == len(self._parts) - 1)
            values = {name: value for name, value in values.items() if last.get(name, -1) > number}
        return {name: values[name] for name in self._outputs}

    def _cut(self) -> list[list[int]]:
        """Nodes by number, in parts: a new one where the constants of the last pass the limit."""
        made = set(self._makers.values())
        parts: list[list[int]] = [[]]
        size = 0
        for number, node in enumerate(self._nodes):
            if number in made:
                continue
            more = sum(self._bytes(name) * (1 if name in node.input else EXPANDED) for name in self._constants_of(needs(node))[1])
            if parts[-1] and size + more > PART_BYTES:
                parts.append([])
                size = 0
            parts[-1].append(number)
            size += more
        return parts

    def _bytes(self, name: str) -> int:
        from onnx.helper import tensor_dtype_to_np_dtype

        tensor = self._constants[name]
        count: int = math.prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        return count

    def _constants_of(self, names: set[str]) -> tuple[set[int], set[str]]:
        """(nodes, initializers) that make these of constants."""
        nodes: set[int] = set()
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in self._constants:
                found.add(name)
            elif name in self._makers and self._makers[name] not in nodes:
                nodes.add(self._makers[name])
                waiting += needs(self._nodes[self._makers[name]])
        return nodes, found

    def _run(self, part: Sequence[int], values: Feeds, later: set[str], final: bool) -> dict[str, np.ndarray]:
        """What the part gives that is needed later; the last gives outputs that are constant, too."""
        import onnx

        given = {name for number in part for name in self._nodes[number].output if name}
        wanted = {name for number in part for name in needs(self._nodes[number])}
        constant_outputs = {name for name in self._outputs if final and (name in self._makers or name in self._constants)}
        makers, initializers = self._constants_of(wanted | constant_outputs)
        taken = sorted(name for name in wanted - given if name in values)
        outputs = sorted((given & later) | constant_outputs)
        if not outputs:
            return {}
        model = type(self._model)(ir_version=self._model.ir_version)
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        graph = model.graph
        graph.name = "part"
        graph.node.extend(self._nodes[number] for number in sorted({*part, *makers}))
        graph.initializer.extend(self._constants[name] for name in sorted(initializers))
        for name in taken:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values[name].shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        session = open_changed(
            model, self._folder, threads=self._threads, disabled_optimizers=self._disabled,
            plain=not self._optimise, exact=self._exact, arena=False, prepacked=True,
        )  # fmt: skip
        return dict(zip(outputs, session.run(outputs, {name: values[name] for name in taken}), strict=True))


def needs(node: Any) -> set[str]:
    """Values of its own graph that a node reads, those in its bodies included."""
    return {name for name in (*node.input, *_captured(node)) if name}


def _captured(node: Any) -> Iterator[str]:
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            own = {tensor.name for tensor in body.initializer} | {value.name for value in body.input}
            for inner in body.node:
                yield from needs(inner) - own
                own |= set(inner.output)
            yield from {value.name for value in body.output} - own
