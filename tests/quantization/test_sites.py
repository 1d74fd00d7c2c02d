"""Which nodes have weights that can be quantized, and that the matrix a site stands for is what its node multiplies by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgepipe.errors import UsageError
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.sites import Site, chosen, find_sites, matrix_of
from tests.onnx_models import make_model
from tests.quantization.graphs import graph_of, inputs_of, run


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one(folder: Path, node: Any, weights: dict[str, np.ndarray], *, data: Any = None, opset: int = 17) -> tuple[Graph, Any]:
    """A model of one node from x to y."""
    model = make_model([node], [data or inputs_of("x", (None, None))], [inputs_of("y", None)], weights, opset=opset)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return graph_of(folder, model), model


def sites_of(folder: Path, node: Any, weights: dict[str, np.ndarray]) -> dict[str, Site]:
    return find_sites(one(folder, node, weights)[0])


PRODUCTS = {
    "MatMul": (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), normal(6, 4)),
    "Gemm": (helper.make_node("Gemm", ["x", "w"], ["y"], name="n"), normal(6, 4)),
    "Gemm, transposed": (helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transB=1), normal(4, 6)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_is_data_times_the_sites_matrix(name: str, tmp_path: Path) -> None:
    node, weight = PRODUCTS[name]
    graph, model = one(tmp_path, node, {"w": weight})
    site = find_sites(graph)["n"]
    x = normal(5, 6, seed=1)

    matrix = matrix_of(graph, graph.nodes[0], site)

    assert (site.kind, site.k, site.n, site.data, site.output, site.parameters) == ("product", 6, 4, "x", "y", 24)
    assert np.allclose(run(model, {"x": x})[0], x @ matrix, atol=1e-5)


def test_convolution_has_a_column_for_each_output_channel(tmp_path: Path) -> None:
    weight = normal(4, 3, 2, 2)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n")
    graph, model = one(tmp_path, node, {"w": weight}, data=inputs_of("x", (None, 3, None, None)))
    patch = normal(1, 3, 2, 2, seed=1)

    site = find_sites(graph)["n"]

    assert (site.kind, site.k, site.n) == ("convolution", 12, 4)
    assert np.allclose(run(model, {"x": patch})[0].ravel(), patch.reshape(1, -1) @ matrix_of(graph, node, site), atol=1e-5)


@pytest.mark.parametrize(
    ("node", "weights", "kind", "k", "n"),
    [
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="n"), {"w": normal(3, 4, 2, 2)}, "convolution", 16, 3),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="n"), {"w": normal(4, 3, 5)}, "convolution", 15, 4),
        (helper.make_node("Gather", ["w", "x"], ["y"], name="n"), {"w": normal(128, 32)}, "table", 128, 32),
        (
            helper.make_node("Attention", ["x", "w", "b"], ["y"], name="n", domain="com.microsoft", num_heads=2),
            {"w": normal(8, 24), "b": normal(24)}, "attention", 8, 24,
        ),
        (helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="n", hidden_size=4), {"w": normal(1, 16, 6), "r": normal(1, 16, 4)}, "recurrent", 6, 16),
    ],
)  # fmt: skip
def test_other_operators_with_weights(node: Any, weights: dict[str, np.ndarray], kind: str, k: int, n: int, tmp_path: Path) -> None:
    site = sites_of(tmp_path, node, weights)["n"]

    assert (site.kind, site.k, site.n, site.weight, site.data) == (kind, k, n, "w", "x")


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (helper.make_node("MatMul", ["x", "x"], ["y"], name="n"), {}),
        (helper.make_node("MatMul", ["w", "x"], ["y"], name="n"), {"w": normal(6, 4)}),
        (helper.make_node("MatMul", ["w", "v"], ["y"], name="n"), {"w": normal(6, 4), "v": normal(4, 6)}),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), {"w": normal(2, 6, 4)}),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="n"), {"w": normal(6, 4).astype(np.float64)}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transA=1), {"w": normal(6, 4)}),
        (helper.make_node("Gemm", ["x", "w"], ["y"], name="n", alpha=0.5), {"w": normal(6, 4)}),
        (helper.make_node("Gather", ["w", "x"], ["y"], name="n"), {"w": normal(64, 8)}),
        (helper.make_node("Gather", ["w", "x"], ["y"], name="n", axis=1), {"w": normal(128, 64)}),
        (helper.make_node("Gather", ["w", "x"], ["y"], name="n"), {"w": np.zeros((128, 64), np.int64)}),
        (helper.make_node("LSTM", ["x", "w", "x"], ["y"], name="n", hidden_size=4), {"w": normal(1, 16, 6)}),
        (helper.make_node("Conv", ["x", "w", "x"], ["y"], name="n"), {"w": normal(4, 3, 5)}),
    ],
    ids=[
        "two activations", "weight first", "two constants", "three dimensions", "float64", "transA", "alpha", "small table", "axis", "integers",
        "recurrent weight computed", "bias computed",
    ],
)  # fmt: skip
def test_what_has_no_weight_that_could_be_quantized(node: Any, weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    assert sites_of(tmp_path, node, weights) == {}


def test_weight_that_several_nodes_read_makes_a_site_of_each(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), helper.make_node("MatMul", ["h", "w"], ["y"], name="second")]
    graph = graph_of(tmp_path, make_model(nodes, [inputs_of("x", (None, 4))], [inputs_of("y", (None, 4))], {"w": normal(4, 4)}))

    assert [(site.node, site.weight) for site in find_sites(graph).values()] == [("first", "w"), ("second", "w")]


def test_sites_are_chosen_by_operator_or_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], name="rows"),
        helper.make_node("MatMul", ["rows", "w"], ["h"], name="up"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="down"),
    ]
    weights = {"table": normal(128, 32), "w": normal(32, 8), "v": normal(8, 4)}
    data = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    sites = find_sites(graph_of(tmp_path, make_model(nodes, [data], [inputs_of("y", (None, 4))], weights)))

    def names(include: tuple[str, ...] | None = None, exclude: tuple[str, ...] = (), kinds: tuple[str, ...] = ("MatMul",)) -> list[str]:
        return list(chosen(sites, include, exclude, kinds, where="pass"))

    assert names() == ["up", "down"]
    assert names(exclude=("up",)) == ["down"]
    assert names(include=("rows", "down")) == ["rows", "down"]
    with pytest.raises(UsageError, match='no node "dwon"') as caught:
        names(exclude=("dwon",))
    assert "down" in str(caught.value.fix)
    assert caught.value.where == "pass.exclude"
