"""Costs of small graphs: asked once for what is alike, kept, and every node of a joint run told to its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from edgepipe.cost.joined import apportioned, batches, joined, owners
from edgepipe.cost.latency import NodePrediction, Prediction
from edgepipe.cost.likeness import likeness
from edgepipe.errors import DeviceError
from edgepipe.graph_costs import graph_costs
from edgepipe.profile import host_profile, load_profile
from edgepipe.progress import Silent
from edgepipe.quantization.cutting import cut_regions
from edgepipe.store import Store
from tests.onnx_models import make_model
from tests.quantization.models import conv_chain, feed_forward, save, static


def power(exponent: float = 2.0, size: int = 64) -> tuple[Any, dict[str, np.ndarray]]:
    ends = [[helper.make_tensor_value_info(name, 1, [size])] for name in "xy"]
    model = make_model([helper.make_node("Pow", ["x", "e"], ["y"])], *ends, {"e": np.array(exponent, np.float32)})
    return model, {"x": np.ones(size, np.float32)}


def regraded(first: float, second: float) -> tuple[Any, dict[str, np.ndarray]]:
    """x quantized, dequantized and quantized again."""
    ends = [helper.make_tensor_value_info("x", 1, [8])], [helper.make_tensor_value_info("y", 2, [8])]
    weights = {"a": np.array(first, np.float32), "b": np.array(second, np.float32), "z": np.array(3, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "a", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "a", "z"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "b", "z"], ["y"]),
    ]
    return make_model(nodes, *ends, weights), {"x": np.ones(8, np.float32)}


@pytest.fixture
def graphs(tmp_path: Path) -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    """A convolutional model whole, in float32 and as QDQ."""
    model, feeds = conv_chain()
    before = save(model, tmp_path / "float.onnx")
    return cut_regions(before, static(before, feeds, tmp_path / "int8.onnx"), feeds).graphs


# --- which graphs are alike


def test_layers_of_one_kind_are_alike_whatever_their_weights_and_names(tmp_path: Path) -> None:
    model, feeds = feed_forward()
    before = save(model, tmp_path / "float.onnx")
    found = cut_regions(before, static(before, feeds, tmp_path / "int8.onnx", nodes_to_quantize=["up-0", "up-1"]), feeds).graphs
    names = sorted({name.rpartition("/")[0] for name in found})

    assert len(names) == 2
    for variant in ("float32", "quantized"):
        assert likeness(*found[f"{names[0]}/{variant}"]) == likeness(*found[f"{names[1]}/{variant}"])


def test_what_changes_the_work_is_not_alike() -> None:
    assert likeness(*power()) == likeness(*power())
    assert len({likeness(*power()), likeness(*power(3.0)), likeness(*power(size=65))}) == 3


def test_scales_count_by_which_are_equal() -> None:
    assert likeness(*regraded(0.1, 0.2)) == likeness(*regraded(0.3, 0.7))
    assert likeness(*regraded(0.1, 0.2)) != likeness(*regraded(0.1, 0.1))


# --- joined


def test_every_node_that_the_runtime_makes_of_a_joined_model_has_its_graph(
    graphs: dict[str, tuple[Any, dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    model, feeds = conv_chain()
    (batch,) = batches({"plain": (model, feeds), "other": power()})
    whole, given = joined(batch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    results = onnxruntime.InferenceSession(whole.SerializeToString(), options).run(None, given)

    optimised = onnx.load(tmp_path / "optimised.onnx")
    owned = owners(optimised)

    assert len(results) == 2
    assert {node.name for node in optimised.graph.node} == set(owned)
    nodes = tuple(NodePrediction(node.name, node.op_type, 1.0, "compute") for node in optimised.graph.node)
    rest = NodePrediction("between nodes", "", 3.0, "issue")
    found = apportioned(Prediction(0, 0, 0, (*nodes, rest), "compute", (), ()), batch, owned)
    assert sum(found.values()) == pytest.approx(len(nodes) + 3)
    assert found["plain"] > found["other"] > 0


def test_graphs_of_other_operator_sets_are_joined_apart() -> None:
    old = power()
    old[0].opset_import[0].version = 13

    assert [list(batch) for batch in batches({"a": power(), "b": old, "c": power()})] == [["a", "c"], ["b"]]


# --- on this machine


def test_costs_are_measured_once_and_kept(graphs: dict[str, tuple[Any, dict[str, np.ndarray]]], store: Store) -> None:
    first = graph_costs(graphs, host_profile(), store, Silent())
    again = graph_costs(graphs, host_profile(), store, Silent())

    assert (first.source, first.reason) == ("measured", "")
    assert set(first.ms) == set(graphs)
    assert all(ms > 0 for ms in first.ms.values())
    assert again == first  # no two measurements are


def test_what_is_alike_is_measured_once(store: Store) -> None:
    found = graph_costs({"a": power(), "b": power(), "c": power(size=70_000)}, host_profile(), store, Silent(), threads=2).ms

    assert found["a"] == found["b"] != found["c"]


def test_machine_stands_in_where_nothing_else_does(store: Store) -> None:
    found = graph_costs({"a": power()}, load_profile("rpi4"), store, Silent())

    assert found.source == "host"
    assert "not set up" in found.reason


def test_graph_that_the_runtime_does_not_take_is_named(store: Store) -> None:
    model, feeds = power()
    model.graph.node[0].op_type = "Power"

    with pytest.raises(DeviceError, match="Power") as caught:
        graph_costs({"good": power(), "layer-3/quantized": (model, feeds)}, host_profile(), store, Silent())
    assert caught.value.where == "layer-3/quantized"


# --- under emulation


def test_costs_on_a_pi_are_counted_in_one_run_and_kept(
    emulation: Path, graphs: dict[str, tuple[Any, dict[str, np.ndarray]]], store: Store
) -> None:
    counted = graph_costs(graphs, load_profile("rpi4"), store, Silent())
    again = graph_costs(graphs, load_profile("rpi4"), store, Silent())

    assert counted.source == "counted"
    assert set(counted.ms) == set(graphs)
    assert all(ms > 0.01 for ms in counted.ms.values())  # a convolution's node is in each
    assert again == counted


def test_x86_without_dot_products_is_stood_in_for(emulation: Path, store: Store, on_x86_linux: None) -> None:
    profile = load_profile("x86-avx2")
    found = graph_costs({"a": power()}, profile, store, Silent())

    assert found.source == "host"
    assert found.reason
