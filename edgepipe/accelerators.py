"""Which nodes of an ONNX graph an accelerator's provider takes: the tables `export/operators/{coreml,nnapi,xnnpack}.json`, applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.operators import since_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NO_KERNEL = "it has no kernel for it"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a value: `dtype` is empty and `shape` None where nothing is; unknown dimensions are None."""

    dtype: str = ""
    shape: tuple[int | None, ...] | None = None
    constant: bool = False
    external: bool = False  # its data lies in a file beside the model


UNKNOWN = Tensor()


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph as the providers look at it: its values, and which node makes each."""

    values: Mapping[str, Tensor]
    producers: Mapping[str, Any]
    opsets: Mapping[str, int]

    def inputs(self, node: Any) -> list[Tensor | None]:
        """The node's inputs in order; None for an optional one that is left out."""
        return [self.values.get(name, UNKNOWN) if name else None for name in node.input]


def refusal(node: Any, graph: Graph, table: Mapping[str, Any]) -> str:
    """Why the provider leaves this node to the CPU; empty when it takes it."""
    domain = node.domain or "ai.onnx"
    rules = table["operators"].get(domain, {}).get(node.op_type)
    if rules is None:
        return NO_KERNEL
    inputs = graph.inputs(node)
    checks: tuple[Callable[[], str], ...] = (
        lambda: _version(node, domain, graph, table, rules),
        lambda: _fusion(node, graph, table, rules),
        lambda: _shapes(node, inputs, table, rules),
        lambda: _types(inputs, table, rules),
        lambda: _constants(inputs, table, rules),
        lambda: _attributes(node, rules),
        lambda: _products(node, inputs, rules),
    )
    return next((reason for reason in (check() for check in checks) if reason), "")


def _version(node: Any, domain: str, graph: Graph, table: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    if domain != "ai.onnx":
        return ""
    first, last = rules.get("since", table["since"])
    version = since_version(node.op_type, domain, graph.opsets.get(domain, 1))
    if first <= version and (last is None or version <= last):
        return ""
    return f"its definition {version} is outside {first} to {last or 'now'}: export with an opset that has another"


def _fusion(node: Any, graph: Graph, table: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    """Activations that run only as part of the operator before them."""
    if "fused_into" not in rules:
        return ""
    before = graph.producers.get(node.input[0])
    if before is not None and before.op_type in rules["fused_into"] and not refusal(before, graph, table):
        return ""
    return f"it stands behind none of {', '.join(rules['fused_into'])} that it takes"


def _shapes(node: Any, inputs: list[Tensor | None], table: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    for index, value in enumerate(inputs):
        if value is None:
            continue
        if table["static_shapes"] and (value.shape is None or None in value.shape):
            return f"the shape of input {index} is not fixed"
        shape = value.shape or ()
        if table["max_rank"] and len(shape) > table["max_rank"]:
            return f"input {index} has {len(shape)} dimensions, it takes {table['max_rank']}"
        if table["max_dimension"] and any(dim and dim > table["max_dimension"] for dim in shape):
            return f"input {index} has a dimension over {table['max_dimension']}"
    first = inputs[0].shape if inputs and inputs[0] else None
    if node.op_type in table.get("static_inner", ()):
        known = first is not None and None not in (first[-1:] if rules.get("last_axis") else first[1:])
        if not known:
            return "the shape of input 0 is not fixed"
    for index, (least, most) in ((int(key), span) for key, span in rules.get("rank", {}).items()):
        ranked = inputs[index] if index < len(inputs) else None
        if ranked is not None and (ranked.shape is None or not least <= len(ranked.shape) <= most):
            have = "unknown" if ranked.shape is None else len(ranked.shape)
            return f"input {index} has {have} dimensions, it takes {least if least == most else f'{least} to {most}'}"
    if rules.get("last_axis") and first is not None and _attribute(node, "axis", -1) not in (-1, len(first) - 1):
        return "it takes the last axis only"
    return ""


def _types(inputs: list[Tensor | None], table: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    wanted = {"0": table["types"], **rules.get("types", {}), **rules.get("types_unless_constant", {})}
    for index, types in ((int(key), types) for key, types in wanted.items()):
        value = inputs[index] if index < len(inputs) else None
        if value is None or (value.constant and str(index) in rules.get("types_unless_constant", {})):
            continue
        if value.dtype not in types:
            return f"input {index} is {value.dtype or 'unknown'}, it takes {' or '.join(types)}"
    return ""


def _constants(inputs: list[Tensor | None], table: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    for index in rules.get("constant", ()):
        value = inputs[index] if index < len(inputs) else None
        if value is not None and not value.constant:
            return f"input {index} is not constant"
    if not table["external_weights"] and any(value is not None and value.external for value in inputs):
        return "its weights lie in a file of their own"
    return ""


def _attributes(node: Any, rules: Mapping[str, Any]) -> str:
    for name, allowed in rules.get("attributes", {}).items():
        value = _attribute(node, name, allowed[0])
        if value not in allowed:
            return f"its {name} is {value}, it takes {' or '.join(map(str, allowed))}"
    return ""


def _products(node: Any, inputs: list[Tensor | None], rules: Mapping[str, Any]) -> str:
    """What NNAPI asks of the operands of matrix products (op_builder_helpers.cc: IsSupportedBatchMatMul)."""
    a, b = (tuple(value.shape or ()) if value else () for value in (*inputs[:2], None, None)[:2])
    if rules.get("matmul"):
        if len(a) == len(b) == 2:
            return "" if inputs[1] and inputs[1].constant else "its second input is not constant"
        if len(a) < 3 or len(a) != len(b) or a[:-2] != b[:-2]:
            return f"it takes 2-D by 2-D, or equal batches, not {len(a)}-D by {len(b)}-D"
    c = inputs[2] if len(inputs) > 2 else None
    if rules.get("gemm_bias") and c is not None and (not c.shape or any(dim != 1 for dim in c.shape[:-1])):
        return "its third input is no vector"
    return ""


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    found = next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)
    return found.decode() if isinstance(found, bytes) else found
