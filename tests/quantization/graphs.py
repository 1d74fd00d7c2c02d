"""Small graphs whose channels can be scaled, what runs through them, and statistics of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edgepipe.profile import host_profile
from edgepipe.quantization.graph import Graph
from tests.onnx_models import make_model

WIDTH = 8


def inputs_of(name: str, shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def transformer(*, residual: bool, rng: np.random.Generator) -> Any:
    """x [batch, sequence, 8]: a LayerNormalization with one wild channel, fused attention, and a feed-forward with a ReLU.
    With `residual` the normalized values are added again, so that they cannot be made smaller."""
    wild = np.ones(WIDTH, np.float32)
    wild[2] = 60
    weights = {
        "gamma": wild, "shared": 0.1 * rng.standard_normal(WIDTH).astype(np.float32),
        "qkv": rng.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32), "qkv.bias": rng.standard_normal(3 * WIDTH).astype(np.float32),
        "out": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "up": rng.standard_normal((WIDTH, 16)).astype(np.float32), "up.bias": rng.standard_normal(16).astype(np.float32),
        "down": rng.standard_normal((16, WIDTH)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "shared"], ["normal"], name="norm"),
        helper.make_node("Attention", ["normal", "qkv", "qkv.bias"], ["mixed"], name="attention", domain="com.microsoft", num_heads=2),
        helper.make_node("MatMul", ["mixed", "out"], ["projected"], name="out"),
        helper.make_node("Add", ["projected", "shared"], ["attended"], name="out.add"),
        helper.make_node("Add", ["attended", "normal" if residual else "x"], ["between"], name="residual"),
        helper.make_node("MatMul", ["between", "up"], ["raised"], name="up"),
        helper.make_node("Add", ["up.bias", "raised"], ["raised.biased"], name="up.add"),
        helper.make_node("Relu", ["raised.biased"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "down"], ["y"], name="down"),
    ]
    return make_model(nodes, [inputs_of("x", (None, None, WIDTH))], [inputs_of("y", (None, None, WIDTH))], weights)


def convolutions(rng: np.random.Generator) -> Any:
    """image [batch, 3, 9, 9]: plain, depthwise, grouped and pointwise convolutions, ReLUs between, then a HardSwish."""
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "b1": rng.standard_normal(8).astype(np.float32),
        "w2": (rng.standard_normal((8, 1, 3, 3)) * np.exp(2 * rng.standard_normal((8, 1, 1, 1)))).astype(np.float32),
        "b2": rng.standard_normal(8).astype(np.float32),
        "w3": rng.standard_normal((6, 4, 1, 1)).astype(np.float32),
        "w4": rng.standard_normal((5, 6, 1, 1)).astype(np.float32), "w5": rng.standard_normal((5, 5, 1, 1)).astype(np.float32),
        "slope": np.full((1, 6, 1, 1), 0.2, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="plain", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise", group=8),
        helper.make_node("LeakyRelu", ["c2"], ["r2"], name="r2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], name="p2", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p2", "w3"], ["c3"], name="grouped", group=2),
        helper.make_node("PRelu", ["c3", "slope"], ["r3"], name="r3"),
        helper.make_node("Conv", ["r3", "w4"], ["c4"], name="pointwise"),
        helper.make_node("HardSwish", ["c4"], ["h4"], name="h4"),
        helper.make_node("Conv", ["h4", "w5"], ["y"], name="last"),
    ]
    return make_model(nodes, [inputs_of("image", (None, 3, 9, 9))], [inputs_of("y", (None, 5, None, None))], weights)


def spared(sites: Iterable[str]) -> frozenset[str]:
    """The layers that get 7 bits for their results to be near: all where this CPU sums products in 16 bits first."""
    return frozenset(sites) if host_profile().cpu.int8_saturates else frozenset()


def graph_of(folder: Path, model: Any) -> Graph:
    (folder / "work").mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return Graph(folder / "model.onnx", folder / "work")


def run(model: Any, feeds: dict[str, np.ndarray], outputs: tuple[str, ...] = ()) -> list[np.ndarray]:
    """Given outputs, or the model's own."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    own = {value.name for value in copy.graph.output}
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name not in own)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs) or None, feeds)


def written(graph: Graph, folder: Path) -> Any:
    target = folder / "written"
    target.mkdir()
    graph.write(target)
    return onnx.load(target / "model.onnx")


def statistics(model: Any, feeds: dict[str, np.ndarray], tensors: list[str], axis: int) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for name in tensors:
        values = feeds[name] if name in feeds else run(model, feeds, (name,))[0]
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)
        found[name] = {
            "max": np.abs(rows).max(0),
            "magnitude": np.abs(rows).mean(0),
            "mean": rows.mean(0),
            "hessian": 2 * rows.T @ rows / len(rows),
        }
    return found


def close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


def part(values: dict[str, dict[str, np.ndarray]], key: str) -> dict[str, np.ndarray]:
    return {name: one[key] for name, one in values.items()}


def images(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"image": rng.standard_normal((2, 3, 9, 9)).astype(np.float32)}
