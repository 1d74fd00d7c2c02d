"""Small real graphs and their quantized forms, as ONNX Runtime's own quantizers write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.onnx_models import make_model

if TYPE_CHECKING:
    from pathlib import Path

    Feeds = dict[str, np.ndarray]


def _float(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def conv_chain() -> tuple[Any, Feeds]:
    """x [batch, 3, h, w]: three convolutions with Relu between, one of them depthwise, and a residual Add."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.standard_normal((32, 3, 3, 3)).astype(np.float32),
        "w1": rng.standard_normal((32, 1, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((32, 32, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="depthwise", pads=[1] * 4, group=32),
        helper.make_node("Conv", ["c1", "w2"], ["c2"], name="pointwise"),
        helper.make_node("Add", ["c2", "r0"], ["y"], name="residual"),
    ]
    model = make_model(nodes, [_float("x", "batch", 3, "h", "w")], [_float("y", "batch", 32, "h", "w")], weights)
    return model, {"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)}


def feed_forward(layers: int = 2) -> tuple[Any, Feeds]:
    """x [batch, tokens, 32]: MatMul, bias, Gelu, MatMul, bias and LayerNormalization, so many times."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {}
    nodes, value = [], "x"
    for i in range(layers):
        weights |= {
            f"up{i}": rng.standard_normal((32, 64)).astype(np.float32), f"a{i}": rng.standard_normal(64).astype(np.float32),
            f"down{i}": rng.standard_normal((64, 32)).astype(np.float32), f"b{i}": rng.standard_normal(32).astype(np.float32),
            f"g{i}": np.ones(32, np.float32),
        }  # fmt: skip
        nodes += [
            helper.make_node("MatMul", [value, f"up{i}"], [f"u{i}"], name=f"up-{i}"),
            helper.make_node("Add", [f"u{i}", f"a{i}"], [f"ub{i}"], name=f"up-bias-{i}"),
            helper.make_node("Tanh", [f"ub{i}"], [f"t{i}"], name=f"tanh-{i}"),
            helper.make_node("MatMul", [f"t{i}", f"down{i}"], [f"d{i}"], name=f"down-{i}"),
            helper.make_node("Add", [f"d{i}", f"b{i}"], [f"db{i}"], name=f"down-bias-{i}"),
            helper.make_node("LayerNormalization", [f"db{i}", f"g{i}"], [f"y{i}"], name=f"norm-{i}"),
        ]
        value = f"y{i}"
    model = make_model(nodes, [_float("x", "batch", "tokens", 32)], [_float(value, "batch", "tokens", 32)], weights)
    return model, {"x": rng.standard_normal((1, 8, 32)).astype(np.float32)}


def in_a_branch() -> tuple[Any, Feeds]:
    """x [n, 32], sure [] → y: each branch of an If has two products, with the same names inside."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) for name in ("w0", "w1")}
    branches = []
    for weight in weights:
        nodes = [
            helper.make_node("MatMul", ["x", weight], ["h"], name=f"product-{weight}"),
            helper.make_node("Relu", ["h"], ["r"], name=f"relu-{weight}"),
            helper.make_node("MatMul", ["r", weight], ["z"], name=f"again-{weight}"),
        ]
        branches.append(helper.make_graph(nodes, weight, [], [_float("z", "n", 32)]))
    node = helper.make_node("If", ["sure"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1])
    inputs = [_float("x", "n", 32), helper.make_tensor_value_info("sure", TensorProto.BOOL, [])]
    model = make_model([node], inputs, [_float("y", "n", 32)], weights)
    return model, {"x": rng.standard_normal((4, 32)).astype(np.float32), "sure": np.array(True)}


def save(model: Any, path: Path) -> Path:
    onnx.save_model(model, path)
    return path


def static(model: Path, feeds: Feeds, target: Path, **options: Any) -> Path:
    """The QDQ form."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [feeds]

        def get_next(self) -> Feeds | None:
            return self._left.pop() if self._left else None

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(str(model), str(target), Reader(), **{**kinds, **options})
    return target


def dynamic(model: Path, target: Path, **options: Any) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(model), str(target), **options)
    return target
