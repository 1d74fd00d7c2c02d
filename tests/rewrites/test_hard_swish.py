"""x · clip(x + 3, 0, 6) / 6 spelled out becomes a HardSigmoid and a product; what only looks like it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgepipe.rewrites.hard_swish import fuse_hard_swish
from tests.onnx_models import make_model
from tests.quantization.graphs import graph_of, inputs_of, run, written

NUMBERS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, "two": 2.0}
X = {"x": np.linspace(-8, 8, 64, dtype=np.float32).reshape(1, 64)}


def swish(
    order: str, *, division: str = "Div", add: tuple[str, str] = ("x", "three"), clip: tuple[str, ...] = ("zero", "six"), opset: int = 17
) -> Any:
    by_six = ["six"] if division == "Div" else ["sixth"]
    attributes = {"min": 0.0, "max": 6.0} if opset < 11 else {}
    nodes = [
        helper.make_node("Add", list(add), ["a"], name="add"),
        helper.make_node("Clip", ["a", *(() if opset < 11 else clip)], ["c"], name="clip", **attributes),
    ]
    if order == "product first":
        nodes += [
            helper.make_node("Mul", ["x", "c"], ["p"], name="product"),
            helper.make_node(division, ["p", *by_six], ["y"], name="division"),
        ]
    else:
        nodes += [
            helper.make_node(division, ["c", *by_six], ["d"], name="division"),
            helper.make_node("Mul", ["d", "x"], ["y"], name="product"),
        ]
    return model_of(nodes, opset=opset)


def model_of(nodes: list[Any], outputs: tuple[str, ...] = ("y",), opset: int = 17) -> Any:
    used = {name for node in nodes for name in node.input}
    weights = {name: np.array(value, np.float32) for name, value in NUMBERS.items() if name in used}
    return make_model(nodes, [inputs_of("x", (1, 64))], [inputs_of(name, (1, 64)) for name in outputs], weights, opset=opset)


def fused(model: Any, folder: Path) -> tuple[int, list[str]]:
    graph = graph_of(folder, model)
    removed = fuse_hard_swish(graph)
    after = written(graph, folder)
    onnx.checker.check_model(after)
    for ours, theirs in zip(run(after, X), run(model, X), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)
    return removed, [node.op_type for node in after.graph.node]


@pytest.mark.parametrize("order", ["product first", "division first"])
@pytest.mark.parametrize("division", ["Div", "Mul"])
@pytest.mark.parametrize("add", [("x", "three"), ("three", "x")])
def test_hard_swish_is_found_in_any_order(order: str, division: str, add: tuple[str, str], tmp_path: Path) -> None:
    assert fused(swish(order, division=division, add=add), tmp_path) == (2, ["HardSigmoid", "Mul"])


def test_bounds_may_be_attributes_as_in_old_opsets(tmp_path: Path) -> None:
    assert fused(swish("product first", opset=10), tmp_path) == (2, ["HardSigmoid", "Mul"])


def test_gate_alone_is_found(tmp_path: Path) -> None:
    nodes = list(swish("division first").graph.node[:3])
    nodes[-1].output[0] = "y"

    assert fused(model_of(nodes), tmp_path) == (2, ["HardSigmoid"])


@pytest.mark.parametrize("order", ["product first", "division first"])
@pytest.mark.parametrize(
    "change",
    [{"clip": ("zero", "two")}, {"clip": ("zero",)}, {"clip": ()}, {"add": ("x", "two")}],
    ids=["bounds", "no upper", "none", "offset"],
)
def test_other_numbers_are_left(order: str, change: dict[str, Any], tmp_path: Path) -> None:
    removed, kinds = fused(swish(order, **change), tmp_path)

    assert removed == 0
    assert "HardSigmoid" not in kinds


@pytest.mark.parametrize("between", ["a", "c"])
@pytest.mark.parametrize("order", ["product first", "division first"])
def test_values_between_that_others_read_are_left(order: str, between: str, tmp_path: Path) -> None:
    model = model_of(list(swish(order).graph.node), ("y", between))

    assert fused(model, tmp_path)[0] == 0


def test_product_with_another_value_is_left_before_its_division(tmp_path: Path) -> None:
    nodes = list(swish("product first").graph.node)
    nodes.insert(2, helper.make_node("Tanh", ["x"], ["t"], name="tanh"))
    nodes[3].input[0] = "t"

    assert fused(model_of(nodes), tmp_path)[0] == 0


def test_six_over_the_gate_is_no_division_by_six(tmp_path: Path) -> None:
    nodes = list(swish("product first").graph.node)
    nodes[-1].input[:] = ["six", "p"]
    model = model_of(nodes)
    graph = graph_of(tmp_path, model)

    assert fuse_hard_swish(graph) == 0
