"""x · clip(x + 3, 0, 6) / 6 written out in four nodes, as HardSigmoid and one product.

Howard et al., "Searching for MobileNetV3", arXiv 1905.02244, section 5.2. Exporters for old opsets spell it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.quantization.graph import Graph

THREE, SIX = 3.0, 6.0


def fuse_hard_swish(graph: Graph) -> int:
    """Gives the number of nodes that are gone."""
    removed = 0
    for clip in graph.nodes:
        if clip.op_type != "Clip" or not (add := _shifted(graph, clip)):
            continue
        if found := _product_first(graph, clip, add):
            removed += _rewrite(graph, clip, add, *found)
        elif _divides(graph, division := graph.consumers[clip.output[0]][0]):
            removed += _gate(graph, clip, add, division)
    graph.apply()
    return removed


def _shifted(graph: Graph, clip: Any) -> Any:
    """The Add of 3 in front of a Clip to 0 … 6, where nothing else reads either."""
    bounds = [_number(graph, name) for name in clip.input[1:]] or [
        next((a.f for a in clip.attribute if a.name == n), None) for n in ("min", "max")
    ]
    add = graph.producer.get(clip.input[0])
    if bounds != [0.0, SIX] or add is None or add.op_type != "Add" or not _alone(graph, clip.input[0]) or not _alone(graph, clip.output[0]):
        return None
    return add if THREE in [_number(graph, name) for name in add.input] else None


def _value(graph: Graph, add: Any) -> Any:
    return next(name for name in add.input if _number(graph, name) is None)


def _product_first(graph: Graph, clip: Any, add: Any) -> tuple[Any, Any] | None:
    """(the Mul by x, the division by 6), in that order."""
    product = graph.consumers[clip.output[0]][0]
    if product.op_type != "Mul" or _value(graph, add) not in product.input or not _alone(graph, product.output[0]):
        return None
    division = graph.consumers[product.output[0]][0]
    return (product, division) if _divides(graph, division) else None


def _gate(graph: Graph, clip: Any, add: Any, division: Any) -> int:
    """The division comes first: what follows it may stay."""
    from onnx.helper import make_node

    graph.replace(add)
    graph.replace(clip)
    gate = make_node("HardSigmoid", [_value(graph, add)], list(division.output), name=f"{clip.name}_gate", alpha=1 / 6, beta=0.5)
    graph.replace(division, gate)
    return 2


def _rewrite(graph: Graph, clip: Any, add: Any, product: Any, division: Any) -> int:
    from onnx.helper import make_node

    value = _value(graph, add)
    gate = graph.fresh(f"{value}_gate")
    graph.replace(add, make_node("HardSigmoid", [value], [gate], name=f"{clip.name}_gate", alpha=1 / 6, beta=0.5))
    graph.replace(clip)
    graph.replace(product)
    graph.replace(division, make_node("Mul", [value, gate], list(division.output), name=division.name))
    return 2


def _divides(graph: Graph, node: Any) -> bool:
    numbers = [_number(graph, name) for name in node.input]
    if node.op_type == "Div":
        return numbers[1] == SIX
    return node.op_type == "Mul" and any(number is not None and abs(number * SIX - 1) < 1e-6 for number in numbers)


def _alone(graph: Graph, name: str) -> bool:
    readers = graph.consumers[name]
    return len(readers) == 1 and readers[0] is not None


def _number(graph: Graph, name: str) -> float | None:
    if not name or name not in graph.constants or not graph.is_float(name):
        return None
    values = graph.array(name)
    return float(values.reshape(())) if values.size == 1 else None
