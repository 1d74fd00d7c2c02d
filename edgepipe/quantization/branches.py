"""Values inside the branches of an If, made outputs of the graph that holds it, so that calibration can look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

LIFTED = "edgepipe_from_branch:"


def lift(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Give float32 values of If branches of the main graph, branches in branches too, as values of the main graph.

    Gives the new name of each that was found. It is empty in a run that takes another branch. Bodies of Loop and Scan run
    more or less than once, and are left alone.
    """
    return _lift(model.graph, set(names))


def _lift(graph: Any, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "If":
            continue
        branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        for branch in branches:
            inside = {**_lift(branch, wanted), **{name: name for inner in branch.node for name in inner.output if name in wanted}}
            for name, inner_name in inside.items():
                found[name] = outer = f"{LIFTED}{node.name or node.output[0]}:{name}"
                node.output.append(outer)
                if inner_name in {value.name for value in branch.output}:  # it can be an output only once
                    inner_name = _copied(branch, inner_name, outer)
                for other in branches:
                    other.output.append(_value(inner_name if other is branch else _empty(other, outer)))
    return found


def _copied(graph: Any, name: str, outer: str) -> str:
    from onnx import helper

    output = f"{outer}:copied"
    graph.node.append(helper.make_node("Identity", [name], [output], name=output))
    return output


def _empty(graph: Any, name: str) -> str:
    """What the other branch gives: no values, of the same type."""
    import numpy as np
    from onnx import helper, numpy_helper

    output = f"{name}:not_taken"
    graph.node.append(helper.make_node("Constant", [], [output], value=numpy_helper.from_array(np.zeros(0, np.float32), output)))
    return output


def _value(name: str) -> Any:
    import onnx

    return onnx.ValueInfoProto(name=name)
