"""quantize-dynamic on graphs of other kinds than encoders: recurrent layers, convolutions, shared weights, old opsets, branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact
from edgepipe.config import Data
from edgepipe.errors import DataError
from tests.onnx_models import make_model
from tests.passes.arrays import array_model
from tests.passes.running import operators, outputs, run_pass
from tests.quantization.graphs import inputs_of
from tests.quantization.models import feed_forward, in_a_branch
from tests.quantization.test_qdq import Net, residual


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def share_off(before: Artifact, after: Artifact, feeds: dict[str, np.ndarray]) -> float:
    exact = outputs(before, feeds)
    return float(np.linalg.norm(outputs(after, feeds) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_recurrent_layers(direction: str, per_channel: bool, tmp_path: Path) -> None:
    ways = 2 if direction == "bidirectional" else 1
    weights = {"w": rows(ways, 64, 32) / 4, "r": rows(ways, 64, 16, seed=1) / 4, "b": rows(ways, 128, seed=2)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["by.time"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["by.time", "w", "r", "b"], ["", "y"], name="lstm", hidden_size=16, direction=direction),
    ]
    model = make_model(nodes, [inputs_of("x", ("batch", "time", 32))], [inputs_of("y", (ways, None, 16))], weights)
    artifact, _ = array_model(tmp_path / "lstm", model, {"x": rows(4, 9, 32)})

    after = run_pass("quantize-dynamic", artifact, tmp_path, per_channel=per_channel)

    assert operators(after) == ["Transpose", "DynamicQuantizeLSTM"]
    assert share_off(artifact, after, {"x": rows(3, 9, 32, seed=3)}) < 0.05


@pytest.mark.parametrize("symmetric", [True, False])
def test_convolutions_when_they_are_asked_for(symmetric: bool, tmp_path: Path) -> None:
    net = Net()
    artifact, _ = array_model(tmp_path / "net", net.model(*residual(net)), {"x": rows(8, 3, 12, 12)})

    after = run_pass("quantize-dynamic", artifact, tmp_path, operators=["Conv"], symmetric=symmetric)

    assert operators(after).count("ConvInteger") == 4
    assert share_off(artifact, after, {"x": rows(2, 3, 12, 12, seed=1)}) < 0.05


@pytest.mark.parametrize("options", [{"symmetric": False}, {"stored_bits": 4, "method": "mse"}, {"method": "gptq"}], ids=str)
def test_other_ways_of_rounding(options: dict[str, Any], tmp_path: Path) -> None:
    artifact, data = array_model(tmp_path / "encoder", feed_forward()[0], {"x": rows(12, 6, 32)})

    after = run_pass("quantize-dynamic", artifact, tmp_path, data=data, **options)

    assert share_off(artifact, after, {"x": rows(3, 6, 32, seed=1)}) < (0.4 if "stored_bits" in options else 0.06)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_fused_attention_with_zero_points(symmetric: bool, per_channel: bool, optimised: Artifact, tmp_path: Path) -> None:
    from tests.passes.running import text_feeds

    after = run_pass("quantize-dynamic", optimised, tmp_path, symmetric=symmetric, per_channel=per_channel)

    assert "QAttention" in operators(after)
    assert share_off(optimised, after, text_feeds(after, 3, 16, padded=True)) < 0.15


def test_rounding_that_needs_data_says_so(tmp_path: Path) -> None:
    artifact, _ = array_model(tmp_path / "encoder", feed_forward()[0], {"x": rows(12, 6, 32)})

    with pytest.raises(DataError, match="needs calibration data"):
        run_pass("quantize-dynamic", artifact, tmp_path, data=Data(), method="gptq")


@pytest.mark.parametrize("stored_bits", [8, 4])
def test_weights_that_layers_share_are_written_once(stored_bits: int, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"], name=f"n{i}") for i in range(6)]
    model = make_model(nodes, [inputs_of("h0", ("batch", 128))], [inputs_of("h6", (None, 128))], {"w": rows(128, 128) / 11})
    artifact, _ = array_model(tmp_path / "shared", model, {"h0": rows(8, 128)})

    after = run_pass("quantize-dynamic", artifact, tmp_path, stored_bits=stored_bits)

    assert after.model.size_bytes < artifact.model.size_bytes * stored_bits / 32 + 15_000
    assert share_off(artifact, after, {"h0": rows(2, 128, seed=1)}) < (0.05 if stored_bits == 8 else 0.6)


def test_products_in_branches(tmp_path: Path) -> None:
    samples = {"x": rows(8, 32), "sure": np.array([True, False] * 4)}
    model, _ = in_a_branch()
    artifact, _ = array_model(tmp_path / "branch", model, samples)

    after = run_pass("quantize-dynamic", artifact, tmp_path)

    onnx.checker.check_model(onnx.load(after.model.main_file))
    for sure in (True, False):
        assert share_off(artifact, after, {"x": rows(3, 32, seed=1), "sure": np.array(sure)}) < 0.05


def test_weights_that_are_nodes_are_gone_from_the_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(rows(128, 64), "w")),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    artifact, _ = array_model(
        tmp_path / "node", make_model(nodes, [inputs_of("x", ("n", 128))], [inputs_of("y", (None, 64))], {}), {"x": rows(8, 128)}
    )

    after = run_pass("quantize-dynamic", artifact, tmp_path)

    assert after.model.size_bytes < 0.35 * artifact.model.size_bytes


@pytest.mark.parametrize("opset", [11, 12, 23])
def test_any_opset(opset: int, tmp_path: Path) -> None:
    weights = {"table": rows(256, 32), "w": rows(32, 8)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("MatMul", ["words", "w"], ["y"], name="product"),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])]
    ids = np.random.default_rng(0).integers(0, 256, (8, 5))
    artifact, _ = array_model(
        tmp_path / "old", make_model(nodes, inputs, [inputs_of("y", (None, None, 8))], weights, opset=opset), {"ids": ids}
    )

    after = run_pass("quantize-dynamic", artifact, tmp_path)

    assert {"DequantizeLinear", "MatMulInteger"} <= set(operators(after))
    assert share_off(artifact, after, {"ids": ids}) < 0.05


def test_attention_with_a_past_stays_float32_and_is_told(tmp_path: Path) -> None:
    weights = {"w": rows(16, 48), "b": rows(48), "v": rows(16, 16, seed=1)}
    nodes = [
        helper.make_node("Attention", ["x", "w", "b", "", "past"], ["h", "present"], name="attention", domain="com.microsoft", num_heads=2),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="product"),
    ]
    inputs = [inputs_of("x", ("batch", "tokens", 16)), inputs_of("past", (2, "batch", 2, "before", 8))]
    ends = [inputs_of("y", (None, None, 16)), inputs_of("present", (2, None, 2, None, 8))]
    model = make_model(nodes, inputs, ends, weights)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (tmp_path / "past").mkdir()
    onnx.save_model(model, tmp_path / "past" / "model.onnx")
    np.savez(tmp_path / "past.npz", x=rows(6, 1, 3, 16), past=rows(6, 2, 1, 2, 4, 8))
    from tests.passes.running import artifact_of

    data = Data(calibration=str(tmp_path / "past.npz"))
    artifact = artifact_of(tmp_path / "past", "fidelity", data=data)
    feeds = {"x": rows(1, 3, 16, seed=2), "past": rows(2, 1, 2, 4, 8, seed=3)}

    for name in ("quantize-dynamic", "quantize-static", "quantize-weights"):
        after = run_pass(name, artifact, tmp_path, data=data)

        assert "Attention" in operators(after)
        assert share_off(artifact, after, feeds) < 0.3
        if name != "quantize-weights":
            assert list(after.program["left_in_float32"]) == ["attention"]


@pytest.mark.parametrize("name", ["quantize-dynamic", "quantize-static", "quantize-weights"])
def test_shared_weights_are_rounded_once_for_all_who_read_them(name: str, tmp_path: Path) -> None:
    """GPTQ rounds by what a layer reads, which differs from layer to layer."""
    nodes = [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"], name=f"n{i}") for i in range(4)]
    model = make_model(nodes, [inputs_of("h0", ("batch", 128))], [inputs_of("h4", (None, 128))], {"w": rows(128, 128) / 11})
    artifact, data = array_model(tmp_path / "shared", model, {"h0": rows(40, 128)})

    after = run_pass(name, artifact, tmp_path, data=data, method="gptq")

    assert after.model.size_bytes < 0.25 * artifact.model.size_bytes + 10_000
    assert share_off(artifact, after, {"h0": rows(2, 128, seed=1)}) < (0.5 if name == "quantize-weights" else 0.05)
