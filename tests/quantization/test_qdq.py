"""Convolutions and what lies between them in 8 bits: the runtime finds an int8 kernel for each, and results stay near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgepipe.quantization import dynamic
from edgepipe.quantization.calibration import observe
from edgepipe.quantization.calibrators import activation_range
from edgepipe.quantization.observers import Wanted
from edgepipe.quantization.qdq import to_qdq
from edgepipe.quantization.sites import find_sites
from edgepipe.quantization.static import StaticActivations, scale_of
from edgepipe.quantization.weights8 import Rounding
from tests.onnx_models import make_model
from tests.quantization.graphs import graph_of, inputs_of, run, spared, written

CHANNELS = 8


class Net:
    """Nodes are added one after the other; each call gives the name of its value."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node.{name}", **attributes))
        return name

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"constant{len(self.weights)}"
        self.weights[name] = np.array(values, dtype)
        return name

    def conv(self, value: str, out: int = CHANNELS, into: int = CHANNELS, *, kernel: int = 3, group: int = 1, bias: bool = True) -> str:
        weight = self.rng.standard_normal((out, into // group, kernel, kernel)) / np.sqrt(into // group * kernel**2)
        inputs = [value, self.constant(weight)]
        inputs += [self.constant(0.3 * self.rng.standard_normal(out))] if bias else []
        return self.add("Conv", *inputs, group=group, pads=[kernel // 2] * 4)

    def model(self, *outputs: str, size: int = 12, opset: int = 17) -> Any:
        return make_model(
            self.nodes,
            [inputs_of("x", ("batch", 3, size, size))],
            [inputs_of(name, (None,) * 4) for name in outputs],
            self.weights,
            opset=opset,
        )


def images(count: int = 4, *, size: int = 12, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, size, size)).astype(np.float32)} for _ in range(count)]


def quantized(model: Any, folder: Path, *, symmetric: bool = False, calibrator: str = "min-max", **options: Any) -> Any:
    graph = graph_of(folder / "float", model)
    path = folder / "float" / "model.onnx"
    floats = graph.float_values(path) & ({v for node in graph.nodes for v in (*node.input, *node.output)})
    scales = {
        name: scale_of(*activation_range(observer, calibrator, percentile=99.9, symmetric=symmetric), symmetric=symmetric)
        for name, observer in observe(path, {name: Wanted() for name in floats}, images()).items()
        if observer.reached
    }
    sites = find_sites(graph)
    to_qdq(graph, sites, Rounding(**options, reduced=spared(sites)), StaticActivations(graph, scales))
    graph.apply()
    result = written(graph, folder)
    onnx.checker.check_model(result, full_check=True)
    return result


def kernels(model: Any, folder: Path) -> list[str]:
    """Operators that the runtime runs after all its optimisations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def plain(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def near(after: Any, before: Any, share: float = 0.05) -> bool:
    """Off by a share of the whole, and the optimised session like the plain one."""
    for feeds in images(2, seed=2):
        for ours, whole, theirs in zip(run(after, feeds), plain(after, feeds), run(before, feeds), strict=True):
            if np.linalg.norm(ours - theirs) > share * np.linalg.norm(theirs) or np.abs(ours - whole).max() > 0.04 * np.abs(theirs).max():
                return False
    return True


def relu_chain(net: Net) -> tuple[str, ...]:
    value = net.add("Relu", net.conv("x", into=3))
    return (net.conv(net.add("Relu", net.conv(value, group=CHANNELS))),)


def clip_chain(net: Net) -> tuple[str, ...]:
    bounds = net.constant(0.0), net.constant(1.0)
    value = net.add("Clip", net.conv("x", into=3), *bounds)
    return (net.conv(net.add("Clip", net.conv(value, kernel=1, bias=False), *bounds)),)


def clip_on_both_sides(net: Net) -> tuple[str, ...]:
    bounds = net.constant(-0.5), net.constant(0.7)
    value = net.add("Clip", net.conv("x", into=3), *bounds)
    return (net.conv(net.add("Clip", net.conv(value), net.constant(-9.0))),)


def residual(net: Net) -> tuple[str, ...]:
    value = net.add("Relu", net.conv("x", into=3))
    return (net.conv(net.add("Relu", net.add("Add", net.conv(net.add("Relu", net.conv(value))), value))),)


def hard_swish(net: Net) -> tuple[str, ...]:
    value = net.conv("x", into=3)
    return (net.conv(net.add("Mul", value, net.add("HardSigmoid", value, alpha=1 / 6, beta=0.5))),)


def squeeze_and_excite(net: Net) -> tuple[str, ...]:
    value = net.add("Relu", net.conv("x", into=3))
    squeezed = net.add("Relu", net.conv(net.add("GlobalAveragePool", value), 4, kernel=1))
    gate = net.add("HardSigmoid", net.conv(squeezed, CHANNELS, 4, kernel=1), alpha=0.2, beta=0.5)
    return (net.conv(net.add("Mul", value, gate)),)


def concat(net: Net) -> tuple[str, ...]:
    first, second = net.add("Relu", net.conv("x", into=3)), net.add("Sigmoid", net.conv("x", into=3))
    return (net.conv(net.add("Concat", first, second, axis=1), into=2 * CHANNELS),)


def resize(net: Net) -> tuple[str, ...]:
    scales = net.constant([1, 1, 2, 2])
    value = net.add(
        "Resize", net.conv("x", into=3), "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return (net.conv(value),)


def pooled(net: Net) -> tuple[str, ...]:
    value = net.add("MaxPool", net.add("Relu", net.conv("x", into=3)), kernel_shape=[2, 2], strides=[2, 2])
    return (net.conv(net.add("AveragePool", net.add("LeakyRelu", net.conv(value), alpha=0.1), kernel_shape=[2, 2])),)


def reshaped(net: Net) -> tuple[str, ...]:
    value = net.add("Transpose", net.conv("x", into=3), perm=[0, 1, 3, 2])
    value = net.add("Reshape", value, net.constant([-1, CHANNELS, 6, 24], np.int64))
    return (net.conv(value),)


def output_in_the_middle(net: Net) -> tuple[str, ...]:
    value = net.add("Relu", net.conv("x", into=3))
    return value, net.conv(value)


def two_readers(net: Net) -> tuple[str, ...]:
    value = net.add("Relu", net.conv("x", into=3))
    return net.conv(value), net.add("Softmax", value, axis=1)


def two_readers_of_what_a_relu_clips(net: Net) -> tuple[str, ...]:
    value = net.conv("x", into=3)
    return net.conv(net.add("Relu", value)), net.add("Exp", value)


def with_constants(net: Net) -> tuple[str, ...]:
    value = net.add("Mul", net.conv("x", into=3), net.constant(2.0))
    return (net.conv(net.add("Add", value, net.constant(net.rng.standard_normal((1, CHANNELS, 1, 1))))),)


def softplus_between(net: Net) -> tuple[str, ...]:
    return (net.conv(net.add("Softplus", net.conv("x", into=3))),)


BLOCKS = [
    relu_chain, clip_chain, clip_on_both_sides, residual, hard_swish, squeeze_and_excite, concat, resize, pooled, reshaped, output_in_the_middle, two_readers,
    two_readers_of_what_a_relu_clips, with_constants, softplus_between,
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_no_convolution_computes_in_float32_and_results_are_near(block: Any, tmp_path: Path) -> None:
    net = Net()
    before = net.model(*block(net))

    after = quantized(before, tmp_path)

    found = kernels(after, tmp_path)
    assert not {"Conv", "FusedConv", "NhwcFusedConv"} & set(found), found
    assert sum(kind == "QLinearConv" for kind in found) == sum(node.op_type == "Conv" for node in before.graph.node)
    assert near(after, before)


@pytest.mark.parametrize(
    "block",
    [relu_chain, residual, hard_swish, squeeze_and_excite, concat, pooled, clip_chain, clip_on_both_sides],
    ids=lambda block: block.__name__,
)
@pytest.mark.parametrize(
    "options",
    [{"symmetric": True}, {"per_channel": False}, {"calibrator": "percentile"}, {"stored_bits": 4, "group_size": 8, "method": "mse"}],
    ids=["around zero", "per tensor", "percentile", "stored in 4 bits"],
)
def test_other_ways_of_quantizing_keep_integer_kernels(block: Any, options: dict[str, Any], tmp_path: Path) -> None:
    net = Net()
    before = net.model(*block(net))

    after = quantized(before, tmp_path, **options)

    assert not {"Conv", "FusedConv", "NhwcFusedConv"} & set(kernels(after, tmp_path))
    assert near(after, before, 0.35 if "stored_bits" in options else 0.1)


def test_nothing_but_the_edges_is_float32_in_a_residual_net(tmp_path: Path) -> None:
    net = Net()
    after = quantized(net.model(*residual(net)), tmp_path)

    assert sorted(kernels(after, tmp_path)) == [
        "DequantizeLinear", "QLinearAdd", *["QLinearConv"] * 4, "QuantizeLinear", "Transpose", "Transpose",
    ]  # fmt: skip


def test_channels_of_zeros_and_constant_activations(tmp_path: Path) -> None:
    net = Net()
    value = net.conv("x", into=3)
    net.weights["constant0"][2] = 0
    net.weights["constant1"][2] = 0
    nothing = net.add("Mul", value, net.constant(0.0))
    before = net.model(net.conv(net.add("Add", nothing, net.constant(3.0))), value)

    after = quantized(before, tmp_path)

    assert near(after, before)
    assert all(np.isfinite(values).all() for values in run(after, images(1)[0]))
    assert "Conv" not in kernels(after, tmp_path)


def test_value_without_a_scale_is_left_to_float32(tmp_path: Path) -> None:
    """A convolution whose own output was not observed, for it is in a branch that no sample took, stays as it is."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 3, 3, 3)).astype(np.float32)}
    bodies = [
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["z"], name=f"conv{i}", pads=[1] * 4)], f"b{i}", [], [inputs_of("z", (None,) * 4)]
        )
        for i in range(2)
    ]
    nodes = [helper.make_node("If", ["sure"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1])]
    inputs = [inputs_of("x", ("batch", 3, 8, 8)), helper.make_tensor_value_info("sure", 9, [])]
    graph = graph_of(tmp_path, make_model(nodes, inputs, [inputs_of("y", (None,) * 4)], weights))

    sites = find_sites(graph)
    to_qdq(graph, sites, Rounding(reduced=spared(sites)), StaticActivations(graph, {"x": scale_of(-1, 1)}))
    graph.apply()

    assert {node.op_type for node in graph.nodes} == {"If", "Conv"}
    onnx.checker.check_model(written(graph, tmp_path))


def test_branch_that_reads_what_a_convolution_gives(tmp_path: Path) -> None:
    net = Net()
    value = net.conv("x", into=3)
    body = Net(seed=3)
    inner = body.conv(body.add("Relu", value), bias=False)
    body.weights = {f"inner.{name}": values for name, values in body.weights.items()}
    for node in body.nodes:
        node.input[:] = [f"inner.{name}" if f"inner.{name}" in body.weights else name for name in node.input]
    flat = helper.make_node("Identity", [value], ["same"], name="identity")
    bodies = [
        helper.make_graph(body.nodes, "then", [], [inputs_of(inner, (None,) * 4)]),
        helper.make_graph([flat], "else", [], [inputs_of("same", (None,) * 4)]),
    ]
    net.weights |= body.weights
    net.nodes.append(helper.make_node("If", ["sure"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1]))
    model = net.model("y")
    model.graph.input.append(helper.make_tensor_value_info("sure", 9, []))
    graph = graph_of(tmp_path / "float", model)
    feeds = [{**each, "sure": np.array(sure)} for each in images(4) for sure in (True, False)]
    names = [value, "x", inner, next(node.output[0] for node in body.nodes if node.op_type == "Relu")]
    found = observe(tmp_path / "float" / "model.onnx", {name: Wanted() for name in names}, feeds)
    scales = {name: scale_of(*activation_range(observer)) for name, observer in found.items() if observer.reached}

    sites = find_sites(graph)
    to_qdq(graph, sites, Rounding(reduced=spared(sites)), StaticActivations(graph, scales))
    graph.apply()

    after = written(graph, tmp_path)
    onnx.checker.check_model(after)
    for each in feeds:
        exact = run(model, each)[0]
        assert np.linalg.norm(run(after, each)[0] - exact) < 0.05 * np.linalg.norm(exact)


KINDS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Add", "Mul", "MaxPool", "Concat", "Softplus", "HardSigmoid", "Conv", "Conv", "Conv")


@given(st.integers(0, 10_000), st.lists(st.sampled_from(KINDS), min_size=1, max_size=7), st.booleans())
@settings(max_examples=40)
def test_random_nets_are_near_and_all_their_convolutions_int8(seed: int, kinds: list[str], per_channel: bool) -> None:
    import tempfile

    net = Net(seed)
    values = [net.conv("x", into=3)]
    for kind in kinds:
        last, other = values[-1], values[int(net.rng.integers(len(values)))]
        if kind in ("Add", "Mul"):
            values.append(net.add(kind, last, other))
        elif kind == "Concat":
            values.append(net.conv(net.add(kind, last, other, axis=1), into=2 * CHANNELS, kernel=1))
        elif kind == "Conv":
            values.append(net.conv(last, group=int(net.rng.choice([1, 2, CHANNELS]))))
        elif kind == "Clip":
            values.append(net.add(kind, last, net.constant(0.0), net.constant(2.0)))
        elif kind == "MaxPool":
            values.append(net.add(kind, last, kernel_shape=[3, 3], pads=[1] * 4))
        else:
            values.append(net.add(kind, last))
    before = net.model(net.conv(values[-1]))
    with tempfile.TemporaryDirectory() as folder:
        after = quantized(before, Path(folder), per_channel=per_channel)

        assert not {"Conv", "FusedConv", "NhwcFusedConv"} & set(kernels(after, Path(folder)))
        assert near(after, before, 0.2)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bias", ["constant", "none", "empty"])
def test_dynamic_convolutions_are_near(symmetric: bool, bias: str, tmp_path: Path) -> None:
    net = Net()
    value = net.conv("x", into=3, bias=bias == "constant")
    if bias == "empty":
        net.nodes[0].input.append("")
    net.weights["constant0"] += 0.2  # off centre, so that a zero point matters
    before = net.model(net.conv(net.add("Relu", value), group=CHANNELS))
    graph = graph_of(tmp_path, before)
    activations, sites = dynamic.DynamicActivations(graph), find_sites(graph)

    for node in list(graph.nodes):
        if node.name in sites:
            dynamic.to_dynamic(graph, node, sites[node.name], Rounding(symmetric=symmetric, reduced=spared(sites)), activations)
    graph.apply()

    after = written(graph, tmp_path)
    onnx.checker.check_model(after)
    assert near(after, before)
