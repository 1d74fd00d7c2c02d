"""Products in 8, 4 and 2 bits: within half a step of every weight and activation of the float32 result, by whatever scheme."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgepipe.quantization import dynamic, static
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.rounding import Grid, Quantized, quantize
from edgepipe.quantization.sites import find_sites, matrix_of
from edgepipe.quantization.static import Scale, StaticActivations, scale_of
from edgepipe.quantization.stored import expanded, pack
from edgepipe.quantization.weight_only import to_nbits
from edgepipe.quantization.weights8 import Rounding, progressive
from tests.onnx_models import make_model
from tests.quantization.graphs import graph_of, inputs_of, spared, written

SHAPES = [(1, 2), (7, 3), (16, 5), (33, 8), (64, 17), (100, 4)]


def product(k: int, n: int, seed: int, *, kind: str = "MatMul", wild: float = 1.0) -> tuple[Any, dict[str, np.ndarray]]:
    """x [rows, k] → y [rows, n], with a bias; `wild` is how much larger one input channel's weights are."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((k, n)).astype(np.float32)
    weight[0] *= wild
    weights = {"w": weight.T.copy() if kind == "Gemm, transposed" else weight, "b": rng.standard_normal(n).astype(np.float32)}
    if kind == "MatMul":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="n"), helper.make_node("Add", ["h", "b"], ["y"], name="add")]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n", transB=int("," in kind))]
    model = make_model(nodes, [inputs_of("x", ("rows", k))], [inputs_of("y", ("rows", n))], weights)
    return model, {"x": (rng.standard_normal((5, k)) + rng.standard_normal()).astype(np.float32)}


def both(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the runtime gives, the same with and without its optimisations."""
    found = []
    for level in (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        found.append(
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        )
    assert np.allclose(found[0], found[1], rtol=1e-4, atol=1e-4 * (1 + np.abs(found[0]).max()))
    return found[1]


def rewritten(model: Any, change: Callable[[Graph], None]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(Path(folder) / "model", model)
        change(graph)
        graph.apply()
        result = written(graph, Path(folder))
        onnx.checker.check_model(result)
        return result


def parts(graph: Graph) -> tuple[Any, Any]:
    site = find_sites(graph)["n"]
    return next(node for node in graph.nodes if node.name == "n"), site


def matrix(model: Any) -> tuple[np.ndarray, np.ndarray]:
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(node for node in model.graph.node if node.name == "n")
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return (weights["w"].T if transposed else weights["w"]), weights["b"]


def bound(x: np.ndarray, weight: np.ndarray, x_step: float, w_steps: np.ndarray) -> np.ndarray:
    """How far a product may be off where x and w are each off by half a step; steps [k, n] or what broadcasts."""
    dx, dw = x_step * 0.5001 + 1e-7, w_steps * 0.5001 + 1e-7
    spread = np.broadcast_to(dw, weight.shape)
    return np.abs(x) @ spread + dx * np.abs(weight).sum(0) + dx * spread.sum(0) + 1e-4 * (1 + np.abs(x) @ np.abs(weight))


def steps(found: Quantized, k: int) -> np.ndarray:
    return np.abs(np.repeat(found.scales, found.group_size, axis=0)[:k])


kinds = st.sampled_from(["MatMul", "Gemm", "Gemm, transposed"])


@given(st.sampled_from(SHAPES), st.integers(0, 10_000), kinds, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1.0, 300.0]))
@settings(max_examples=60)
def test_dynamic_products_are_within_half_a_step(
    shape: tuple[int, int], seed: int, kind: str, per_channel: bool, symmetric: bool, reduced: bool, wild: float
) -> None:
    model, feeds = product(*shape, seed, kind=kind, wild=wild)
    reduced = reduced or bool(spared("n"))
    rounding = Rounding(per_channel=per_channel, symmetric=symmetric, reduced=frozenset(["n"] if reduced else []))

    after = rewritten(model, lambda graph: dynamic.to_dynamic(graph, *parts(graph), rounding, dynamic.DynamicActivations(graph)))

    weight, bias = matrix(model)
    found = quantize("nearest", weight, Grid(8, symmetric, 0 if per_channel else -1, reduced))
    x_step = (max(feeds["x"].max(), 0) - min(feeds["x"].min(), 0)) / 255
    exact = feeds["x"] @ weight + bias
    assert (np.abs(both(after, feeds) - exact) <= bound(feeds["x"], weight, 2 * x_step, found.scales)).all()
    assert not {"MatMul", "Gemm"} & {node.op_type for node in after.graph.node}


@given(st.sampled_from(SHAPES), st.integers(0, 10_000), kinds, st.booleans(), st.booleans())
@settings(max_examples=40)
def test_static_products_are_within_half_a_step(shape: tuple[int, int], seed: int, kind: str, per_channel: bool, around_zero: bool) -> None:
    model, feeds = product(*shape, seed, kind=kind)
    scale = scale_of(float(feeds["x"].min()), float(feeds["x"].max()), symmetric=around_zero)
    rounding = Rounding(per_channel=per_channel, reduced=spared("n"))

    after = rewritten(model, lambda graph: static.to_static(graph, *parts(graph), rounding, StaticActivations(graph, {"x": scale})))

    weight, bias = matrix(model)
    found = quantize("nearest", weight, Grid(8, True, 0 if per_channel else -1, bool(spared("n"))))
    assert (np.abs(both(after, feeds) - feeds["x"] @ weight - bias) <= bound(feeds["x"], weight, 2 * scale.scale, found.scales)).all()
    assert [node.op_type for node in after.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]


@given(
    st.sampled_from(SHAPES), st.integers(0, 10_000), kinds, st.sampled_from([2, 4, 8]), st.sampled_from([16, 32, 64]), st.booleans(),
    st.sampled_from(["nearest", "mse", "hqq"]),
)  # fmt: skip
@settings(max_examples=60)
def test_few_bit_products_compute_with_the_rounded_weights(
    shape: tuple[int, int], seed: int, kind: str, bits: int, group: int, symmetric: bool, method: str
) -> None:
    model, feeds = product(*shape, seed, kind=kind)
    weight, bias = matrix(model)
    found = quantize(method, weight, Grid(bits, symmetric, group))

    after = rewritten(model, lambda graph: to_nbits(graph, *parts(graph), found, bits, 0))

    exact = feeds["x"] @ found.dequantized() + bias
    assert np.allclose(both(after, feeds), exact, atol=1e-4 * (1 + np.abs(exact).max()))


@given(st.sampled_from(SHAPES), st.integers(0, 10_000), kinds, st.sampled_from([2, 4, 8]), st.sampled_from([0, 5, 16, 32]), st.booleans())
@settings(max_examples=60)
def test_stored_weights_expand_exactly(shape: tuple[int, int], seed: int, kind: str, bits: int, group: int, symmetric: bool) -> None:
    model, feeds = product(*shape, seed, kind=kind)
    weight, _ = matrix(model)
    found = quantize("mse", weight, Grid(bits, symmetric, group))
    wanted = found.dequantized().T if kind == "Gemm, transposed" else found.dequantized()

    def store(graph: Graph) -> None:
        node, site = parts(graph)
        name, nodes = expanded(graph, "w", found, bits, transposed=kind == "Gemm, transposed", shape=site.shape)
        new = type(node).FromString(node.SerializeToString())
        new.input[1] = name
        graph.replace(node, *nodes, new)

    after = rewritten(model, store)

    plain = onnx.ModelProto.FromString(after.SerializeToString())
    weight_name = next(node for node in plain.graph.node if node.name == "n").input[1]
    plain.graph.output.append(helper.make_tensor_value_info(weight_name, 1, None))
    session = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run([weight_name], feeds)[0], wanted)
    both(after, feeds)
    codes = [len(t.raw_data) for t in after.graph.initializer if "stored" in t.name and t.data_type in (2, 3)]
    groups, size = found.scales.shape[0], found.group_size
    assert -(-groups * size * shape[1] * bits // 8) in codes


@pytest.mark.parametrize(("bits", "group", "most_bytes"), [(8, 0, 250), (8, 32, 500), (4, 32, 700)])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm, transposed"])
def test_nodes_that_expand_a_weight_take_little_of_a_small_file(kind: str, bits: int, group: int, most_bytes: int) -> None:
    model, _ = product(64, 32, 0, kind=kind)
    weight, _ = matrix(model)
    found = quantize("nearest", weight, Grid(bits, True, group))

    def store(graph: Graph) -> None:
        node, site = parts(graph)
        name, nodes = expanded(graph, "w", found, bits, transposed=kind == "Gemm, transposed", shape=site.shape)
        node.input[1] = name
        graph.before(node, *nodes)

    after = rewritten(model, store)

    assert model.ByteSize() - 4 * weight.size + weight.size * bits // 8 + found.scales.nbytes + most_bytes > after.ByteSize()


@given(st.sampled_from(SHAPES), st.integers(0, 10_000), st.booleans(), st.sampled_from([8, 32]), st.sampled_from(["nearest", "mse"]))
@settings(max_examples=40)
def test_eight_bits_stored_in_four_are_whole_multiples(shape: tuple[int, int], seed: int, reduced: bool, group: int, method: str) -> None:
    model, feeds = product(*shape, seed)
    reduced = reduced or bool(spared("n"))
    rounding = Rounding(method, stored_bits=4, group_size=group, reduced=frozenset(["n"] if reduced else []))

    after = rewritten(model, lambda graph: dynamic.to_dynamic(graph, *parts(graph), rounding, dynamic.DynamicActivations(graph)))

    product_node = next(node for node in after.graph.node if node.op_type == "MatMulInteger")
    plain = onnx.ModelProto.FromString(after.SerializeToString())
    plain.graph.output.append(helper.make_tensor_value_info(product_node.input[1], 3, None))
    session = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    codes = session.run([product_node.input[1]], feeds)[0]
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= (64 if reduced else 120)
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(Path(folder) / "model", model)
        node, site = parts(graph)
        found, factors = progressive(matrix_of(graph, node, site), rounding, site)
    assert np.array_equal(codes, found.codes * np.repeat(factors, found.group_size, axis=0)[: shape[0]])
    weight, bias = matrix(model)
    values = codes * found.scales[0]
    x_step = (max(feeds["x"].max(), 0) - min(feeds["x"].min(), 0)) / 255
    error = np.abs(both(after, feeds) - feeds["x"] @ values - bias)
    assert (error <= bound(feeds["x"], values, 2 * x_step, np.zeros(1))).all()
    assert np.linalg.norm(values - weight) <= 0.3 * np.linalg.norm(weight)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=50), st.sampled_from([2, 4, 8]))
def test_packed_codes_can_be_taken_apart(values: list[int], bits: int) -> None:
    codes = (np.array(values) % (1 << bits)).astype(np.uint8)

    packed = pack(codes, bits)

    apart = np.concatenate([(packed >> np.uint8(bits * place)) & np.uint8((1 << bits) - 1) for place in range(8 // bits)])
    assert np.array_equal(apart[: len(codes)], codes)
    assert len(packed) == -(-len(codes) * bits // 8)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.booleans())
def test_scales_hold_their_range_and_zero(one: float, other: float, around_zero: bool) -> None:
    low, high = min(one, other), max(one, other)

    found: Scale = scale_of(low, high, symmetric=around_zero)

    assert 0 <= found.zero_point <= 255
    assert found.scale > 0
    assert (0 - found.zero_point) * found.scale <= min(low, 0) + 0.51 * found.scale
    assert (255 - found.zero_point) * found.scale >= max(high, 0) - (1.01 if around_zero else 0.51) * found.scale
    assert not around_zero or found.zero_point == 128


def test_layers_that_share_a_weight_share_its_codes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"], name=f"n{i}") for i in range(4)]
    model = make_model(
        nodes, [inputs_of("h0", (None, 64))], [inputs_of("h4", (None, 64))], {"w": rng.standard_normal((64, 64)).astype(np.float32) / 8}
    )
    feeds = {"h0": rng.standard_normal((3, 64)).astype(np.float32)}

    def change(graph: Graph, stored_bits: int) -> None:
        activations, sites = dynamic.DynamicActivations(graph), find_sites(graph)
        for node in list(graph.nodes):
            dynamic.to_dynamic(graph, node, sites[node.name], Rounding(stored_bits=stored_bits), activations)

    for bits in (8, 4):
        after = rewritten(model, lambda graph, bits=bits: change(graph, bits))  # type: ignore[misc]

        assert sum(len(tensor.raw_data) for tensor in after.graph.initializer) < 64 * 64 * bits / 8 + 1200
        assert np.abs(both(after, feeds)).max() < 100


@pytest.mark.parametrize("shape", [(1, 5), (5,), (1,), (3, 5)])
def test_bias_of_a_gemm_may_have_any_shape_that_fits(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((32, 5)).astype(np.float32), "b": 10 * rng.standard_normal(shape).astype(np.float32)}
    model = make_model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="n")], [inputs_of("x", (3, 32))], [inputs_of("y", (3, 5))], weights
    )
    x = rng.standard_normal((3, 32)).astype(np.float32)
    exact = x @ weights["w"] + weights["b"]
    found = quantize("nearest", weights["w"], Grid(8, True, 32))

    after = rewritten(model, lambda graph: to_nbits(graph, *parts(graph), found, 8, 0))
    other = rewritten(
        model, lambda graph: dynamic.to_dynamic(graph, *parts(graph), Rounding(reduced=spared("n")), dynamic.DynamicActivations(graph))
    )

    for each in (after, other):
        assert np.abs(both(each, {"x": x}) - exact).max() < 0.3
