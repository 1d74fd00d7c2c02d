"""A model being rewritten: nothing that was not touched changes, names stay apart, weights come and go one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.errors import PassError
from edgepipe.quantization import graph as graph_module
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.sites import find_sites
from tests.onnx_models import make_model
from tests.quantization.graphs import graph_of, inputs_of, run, written
from tests.quantization.models import feed_forward, in_a_branch


def constant_node(name: str, values: np.ndarray) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, f"{name}.value"))


def alike(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def branches(rng: np.random.Generator) -> tuple[Any, list[np.ndarray]]:
    """x [n, 8], sure [] → y. Each branch has a weight of its own, and both are called "w"."""
    own = [rng.standard_normal((8, 8)).astype(np.float32) for _ in range(2)]
    bodies = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"z{i}"], name=f"product{i}")], f"body{i}", [], [inputs_of(f"z{i}", ("n", 8))],
            [numpy_helper.from_array(weight, "w")],
        )
        for i, weight in enumerate(own)
    ]  # fmt: skip
    node = helper.make_node("If", ["sure"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1])
    inputs = [inputs_of("x", ("n", 8)), helper.make_tensor_value_info("sure", TensorProto.BOOL, [])]
    return make_model([node], inputs, [inputs_of("y", ("n", 8))], {}), own


def test_nothing_changes_when_nothing_is_asked_for(tmp_path: Path) -> None:
    model, feeds = feed_forward()
    graph = graph_of(tmp_path, model)

    graph.apply()

    after = written(graph, tmp_path)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in model.graph.node]
    assert alike(run(after, feeds), run(model, feeds))


def test_replacements_stand_in_the_place_of_their_node(tmp_path: Path) -> None:
    model, feeds = feed_forward(1)
    graph = graph_of(tmp_path, model)
    tanh = next(node for node in graph.nodes if node.op_type == "Tanh")
    value, result = tanh.input[0], tanh.output[0]

    graph.before(tanh, helper.make_node("Identity", [value], ["first"], name="one"))
    graph.replace(tanh, helper.make_node("Tanh", ["first"], ["second"], name="two"), helper.make_node("Identity", ["second"], [result]))
    graph.apply()

    after = written(graph, tmp_path)
    onnx.checker.check_model(after)
    kinds = [node.op_type for node in after.graph.node]
    assert kinds == ["MatMul", "Add", "Identity", "Tanh", "Identity", "MatMul", "Add", "LayerNormalization"]
    assert alike(run(after, feeds), run(model, feeds))


def test_replacements_in_a_branch_stay_in_that_branch(tmp_path: Path) -> None:
    model, feeds = in_a_branch()
    graph = graph_of(tmp_path, model)
    relus = [node for node in graph.nodes if node.op_type == "Relu"]
    assert graph.scope(relus[0]) != graph.scope(relus[1])
    assert {graph.first(relu).op_type for relu in relus} == {"If"}
    then = next(relu for relu in relus if relu.name == "relu-w0")

    graph.replace(then, helper.make_node("Neg", list(then.input), list(then.output), name="neg"))
    graph.apply()

    after = written(graph, tmp_path)
    untouched = {**feeds, "sure": np.array(False)}
    assert alike(run(after, untouched), run(model, untouched))
    assert not alike(run(after, feeds), run(model, feeds))


def test_nodes_get_names_that_no_other_node_has(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="same"), helper.make_node("Relu", ["b"], ["y"], name="same")]  # fmt: skip
    graph = graph_of(tmp_path, make_model(nodes, [inputs_of("x", (4,))], [inputs_of("y", (4,))], {}))

    names = [node.name for node in graph.nodes]

    assert len(set(names)) == 3
    assert all(names)


def test_constants_are_found_wherever_they_lie(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, node_weight = rng.standard_normal((8, 8)).astype(np.float32), rng.standard_normal((8, 8)).astype(np.float32)
    nodes = [
        constant_node("c", node_weight),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "c"], ["y"], name="second"),
    ]
    graph = graph_of(tmp_path, make_model(nodes, [inputs_of("x", (4, 8))], [inputs_of("y", (4, 8))], {"w": weight}))

    assert np.array_equal(graph.array("w"), weight)
    assert np.array_equal(graph.array("c"), node_weight)
    assert graph.is_float("c")
    assert not graph.is_float("x")
    assert list(find_sites(graph)) == ["first", "second"]


def test_weights_of_two_branches_with_one_name_stay_apart(tmp_path: Path) -> None:
    model, own = branches(np.random.default_rng(0))
    graph = graph_of(tmp_path, model)

    sites = find_sites(graph)

    assert all(
        np.array_equal(graph.array(site.weight), weight) for site, weight in zip((sites["product0"], sites["product1"]), own, strict=True)
    )
    after = written(graph, tmp_path)
    for sure in (True, False):
        feeds = {"x": np.eye(8, dtype=np.float32), "sure": np.array(sure)}
        assert alike(run(after, feeds), run(model, feeds))


def test_a_changed_constant_is_read_by_all_who_read_the_old(tmp_path: Path) -> None:
    model, feeds = feed_forward(1)
    graph = graph_of(tmp_path, model)

    graph.set_constant("up0", graph.array("up0") * 0)
    graph.set_constant("b0", graph.array("b0") * 0)

    after = written(graph, tmp_path)
    assert not alike(run(after, feeds), run(model, feeds))
    assert np.allclose(run(after, feeds, ("u0",))[0], 0)


def test_constants_nobody_reads_are_not_written(tmp_path: Path) -> None:
    model, feeds = feed_forward(1)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "unread"))
    model.graph.node.insert(0, constant_node("unread.node", np.ones((64, 64), np.float32)))
    graph = graph_of(tmp_path, model)

    after = written(graph, tmp_path)

    assert "unread" not in {tensor.name for tensor in after.graph.initializer}
    assert "Constant" not in {node.op_type for node in after.graph.node}
    assert alike(run(after, feeds), run(model, feeds))


def test_constant_that_is_an_output_is_written(tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [inputs_of("x", (4,))],
        [inputs_of("y", (4,)), inputs_of("c", (2,))],
        {"c": np.ones(2, np.float32)},
    )
    graph = graph_of(tmp_path, model)

    assert np.array_equal(run(written(graph, tmp_path), {"x": np.ones(4, np.float32)})[1], np.ones(2))


def test_names_are_never_used_twice(tmp_path: Path) -> None:
    model, _ = feed_forward(1)
    graph = graph_of(tmp_path, model)

    names = [graph.fresh("up0"), graph.fresh("new"), graph.fresh("new"), graph.constant("new", np.ones(3, np.float32))]

    assert len({*names, "up0"}) == 5
    assert names[1] == "new"


def test_the_same_constant_under_one_name_is_kept_once(tmp_path: Path) -> None:
    model, _ = feed_forward(1)
    graph = graph_of(tmp_path, model)
    values = np.arange(1000, dtype=np.float32)

    same = [graph.constant("w_quantized", values), graph.constant("w_quantized", values.copy())]
    others = [
        graph.constant("w_quantized", values + 1),
        graph.constant("w_quantized", values.reshape(10, 100)),
        graph.constant("other", values),
    ]

    assert same[0] == same[1]
    assert len({same[0], *others}) == 4


def test_large_new_constants_wait_in_a_file_and_two_graphs_may_share_a_folder(tmp_path: Path) -> None:
    model, _ = feed_forward(1)
    values = np.arange(1000, dtype=np.float32)
    first = graph_of(tmp_path, model)
    name = first.constant("kept", values)

    second = Graph(tmp_path / "model.onnx", tmp_path / "work")
    other = second.constant("kept", values * 2)

    assert (tmp_path / "work" / "fresh.bin").stat().st_size == 2 * values.nbytes
    assert np.array_equal(first.array(name), values)
    assert np.array_equal(second.array(other), values * 2)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_weights_beside_the_graph_come_and_go(outside: bool, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = feed_forward()
    if large:
        monkeypatch.setattr(graph_module, "INLINE_BYTES", 100)
    (tmp_path / "work").mkdir()
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save_model(copy, tmp_path / "model.onnx", save_as_external_data=outside, location="weights.bin", size_threshold=0)
    graph = Graph(tmp_path / "model.onnx", tmp_path / "work")
    assert np.array_equal(graph.array("up1"), numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "up1")))
    graph.set_constant("up0", graph.array("up0"))

    target = tmp_path / "out"
    target.mkdir()
    graph.write(target)

    beside = target / "model.onnx.data"
    assert beside.exists() is large
    assert alike(run(onnx.load(target / "model.onnx"), feeds), run(model, feeds))
    if large:
        stored = onnx.load(target / "model.onnx", load_external_data=False).graph.initializer
        offsets = [int(entry.value) for tensor in stored for entry in tensor.external_data if entry.key == "offset"]
        assert offsets
        assert all(offset % 4096 == 0 for offset in offsets)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model, _ = feed_forward()
    files = []
    for name in ("one", "two"):
        graph = graph_of(tmp_path / name, model)
        graph.constant("unused", np.ones(3000, np.float32))
        graph.set_constant("up0", graph.array("up0") * 2)
        written(graph, tmp_path / name)
        files.append((tmp_path / name / "written" / "model.onnx").read_bytes())

    assert files[0] == files[1]


# --- operator sets


def old(opset: int, *, squeeze: bool = True) -> tuple[Any, dict[str, np.ndarray]]:
    """x [4, 8] → y [4, 300]; with `squeeze` through an operator that opset 13 wrote anew."""
    weights = {"w": np.random.default_rng(0).standard_normal((8, 300)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product")]
    if squeeze:
        nodes += [helper.make_node("Unsqueeze", ["h"], ["u"], axes=[0]), helper.make_node("Squeeze", ["u"], ["y"], axes=[0])]
    else:
        nodes += [helper.make_node("Relu", ["h"], ["y"])]
    model = make_model(nodes, [inputs_of("x", (4, 8))], [inputs_of("y", (4, 300))], weights, opset=opset)
    return model, {"x": np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)}


def opsets(model: Any) -> dict[str, int]:
    return {entry.domain: entry.version for entry in model.opset_import}


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("outside", [False, True])
def test_old_models_are_converted(opset: int, squeeze: bool, outside: bool, tmp_path: Path) -> None:
    model, feeds = old(opset, squeeze=squeeze)
    (tmp_path / "work").mkdir()
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save_model(copy, tmp_path / "model.onnx", save_as_external_data=outside, location="w.bin", size_threshold=0)
    graph = Graph(tmp_path / "model.onnx", tmp_path / "work")
    if not outside:
        graph.set_constant("w", graph.array("w"))  # which goes to a file too

    graph.require("", 13)

    after = written(graph, tmp_path)
    assert opsets(after)[""] == 13
    assert np.allclose(run(after, feeds)[0], run(model, feeds)[0], atol=1e-6)
    assert "product" in find_sites(graph)


def test_newer_models_stay_as_they_are_and_domains_are_added(tmp_path: Path) -> None:
    model, feeds = old(17, squeeze=False)
    graph = graph_of(tmp_path, model)

    graph.require("", 13)
    graph.require("com.microsoft", 1)
    graph.require("com.microsoft", 1)

    after = written(graph, tmp_path)
    assert opsets(after) == {"": 17, "com.microsoft": 1}
    assert after.ir_version == model.ir_version
    assert alike(run(after, feeds), run(model, feeds))


def test_operator_sets_with_four_bit_integers_need_a_newer_format(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, old(17, squeeze=False)[0])

    graph.require("", 21)

    assert written(graph, tmp_path).ir_version >= 10


def test_model_that_cannot_be_converted_is_an_error_for_a_person(tmp_path: Path) -> None:
    weights = {"w": np.ones((2, 2), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("NotAnOperator", ["h"], ["y"])]
    graph = graph_of(tmp_path, make_model(nodes, [inputs_of("x", (2, 2))], [inputs_of("y", (2, 2))], weights, opset=11))

    with pytest.raises(PassError, match="opset 11 is too old") as caught:
        graph.require("", 13)

    assert caught.value.fix == "export it with opset 13 or newer"
