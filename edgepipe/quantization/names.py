"""Names in a model and in the bodies of its If, Loop and Scan nodes, of which ONNX lets several have the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def name_node(node: Any, taken: set[str]) -> None:
    """Give a node a name that no node before it has, its own where that is one."""
    if not node.name or node.name in taken:
        node.name = f"{node.name or node.op_type}:{node.output[0]}"
    taken.add(node.name)


def tell_constants_apart(graph: Any) -> None:
    """Rename constants of bodies that have the name of another body's: then and else may each have a weight "w"."""
    bodies = list(_bodies(graph))
    everything = {name for body in bodies for name in _names(body)}
    taken: set[str] = set()
    for body in bodies:
        own = [tensor.name for tensor in body.initializer]
        own += [node.output[0] for node in body.node if node.op_type == "Constant"]
        fresh = {name: _free(name, everything) for name in own if name in taken}
        taken |= set(own)
        if fresh:
            _rename(body, fresh)


def _bodies(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for inner in _inside(node):
            yield from _bodies(inner)


def _inside(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _names(graph: Any) -> Iterator[str]:
    yield from (entry.name for entry in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output


def _free(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _rename(graph: Any, fresh: dict[str, str]) -> None:
    """In a body and in the bodies in it, which see its names."""
    for entry in (*graph.initializer, *graph.output, *graph.value_info):
        entry.name = fresh.get(entry.name, entry.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [fresh.get(name, name) for name in names]
        for inner in _inside(node):
            _rename(inner, fresh)
