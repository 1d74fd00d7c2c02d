"""quantize-weights: what is stored small is what runs, by kernels for few bits or by float32 kernels on expanded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact
from edgepipe.config import Data
from edgepipe.errors import DataError, PassError
from edgepipe.passes.quantize_weights import QuantizeWeights
from tests.onnx_models import make_model
from tests.passes.arrays import array_model
from tests.passes.running import operators, outputs, run_done, run_pass, text_feeds
from tests.quantization.graphs import inputs_of
from tests.quantization.models import feed_forward
from tests.quantization.test_qdq import Net, relu_chain


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def share_off(before: Artifact, after: Artifact, feeds: dict[str, np.ndarray]) -> float:
    exact = outputs(before, feeds)
    return float(np.linalg.norm(outputs(after, feeds) - exact) / np.linalg.norm(exact))


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Artifact, Data]:
    return array_model(tmp_path / "encoder", feed_forward()[0], {"x": rows(12, 6, 32)})


LIMITS = {2: 0.95, 4: 0.4, 8: 0.03}  # four products of random weights, each through a tanh


@pytest.mark.parametrize("kernel", ["few-bits", "float32"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_are_stored_in_few_bits(kernel: str, bits: int, symmetric: bool, encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, _ = encoder

    done = run_done("quantize-weights", artifact, tmp_path, bits=bits, kernel=kernel, symmetric=symmetric, accuracy_level=0)

    kinds = operators(done.value)
    assert kinds.count("MatMulNBits") == (4 if kernel == "few-bits" else 0)
    assert kinds.count("MatMul") == (0 if kernel == "few-bits" else 4)
    assert share_off(artifact, done.value, {"x": rows(3, 6, 32, seed=1)}) < LIMITS[bits]
    assert all(check["held"] for check in done.checks)


def test_both_kernels_compute_with_the_same_weights(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, _ = encoder
    few, plain = (run_pass("quantize-weights", artifact, tmp_path, kernel=kernel, accuracy_level=0) for kernel in ("few-bits", "float32"))

    x = {"x": rows(3, 6, 32, seed=1)}
    assert np.allclose(outputs(few, x), outputs(plain, x), atol=1e-4)


@pytest.mark.parametrize("method", ["nearest", "mse", "hqq", "k-quant", "gptq", "adaround"])
def test_every_method_rounds(method: str, encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = encoder

    after = run_pass("quantize-weights", artifact, tmp_path, data=data, method=method)

    assert share_off(artifact, after, {"x": rows(3, 6, 32, seed=1)}) < LIMITS[4]


def test_activations_that_are_scaled_keep_what_the_model_computes(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = encoder

    after = run_pass("quantize-weights", artifact, tmp_path, data=data, scale_activations=True)

    assert share_off(artifact, after, {"x": rows(3, 6, 32, seed=1)}) < LIMITS[4]


@pytest.mark.parametrize("options", [{"method": "gptq"}, {"scale_activations": True}], ids=str)
def test_what_needs_data_says_so(options: dict[str, Any], encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs calibration data") as caught:
        run_pass("quantize-weights", encoder[0], tmp_path, **options)

    assert (caught.value.exit_code, caught.value.where) == (3, "pass quantize-weights")


@pytest.mark.parametrize("size", [0, 8, 24, 40])
def test_groups_without_a_kernel_are_refused_and_stored_all_the_same(size: int, encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="power of two"):
        QuantizeWeights(group_size=size)

    after = run_pass("quantize-weights", encoder[0], tmp_path, group_size=size, kernel="float32", bits=8)

    assert share_off(encoder[0], after, {"x": rows(3, 6, 32, seed=1)}) < LIMITS[8]


@pytest.mark.parametrize("bits", [4, 8])
def test_convolutions_are_stored_small_and_run_in_float32(bits: int, tmp_path: Path) -> None:
    net = Net()
    weight = net.constant(net.rng.standard_normal((8, 8, 2, 2)) / 4)
    value = net.add("ConvTranspose", net.add("Relu", relu_chain(net)[0]), weight, strides=[2, 2])
    artifact, _ = array_model(tmp_path / "net", net.model(value), {"x": rows(8, 3, 12, 12)})

    after = run_pass("quantize-weights", artifact, tmp_path, bits=bits, kernel="float32")

    assert operators(after).count("Conv") == 3
    assert share_off(artifact, after, {"x": rows(2, 3, 12, 12, seed=1)}) < LIMITS[bits]
    floats = [t for t in onnx.load(after.model.main_file).graph.initializer if t.data_type == TensorProto.FLOAT]
    assert max(int(np.prod(t.dims)) for t in floats) < 8 * 8 * 9


def table_model(width: int, opset: int = 17) -> Any:
    weights = {"table": rows(300, width), "w": rows(width, 8)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("MatMul", ["words", "w"], ["y"], name="product"),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])]
    return make_model(nodes, inputs, [inputs_of("y", (None, None, 8))], weights, opset=opset)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [16, 40, 64, 100])
def test_tables_stay_small_at_run_time(bits: int, symmetric: bool, width: int, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 300, (8, 5))
    artifact, _ = array_model(tmp_path / "table", table_model(width), {"ids": ids})

    after = run_pass("quantize-weights", artifact, tmp_path, operators=["Gather"], bits=bits, symmetric=symmetric)

    assert operators(after) == ["GatherBlockQuantized", "MatMul"]
    assert share_off(artifact, after, {"ids": ids}) < LIMITS[bits]


def test_old_opset_is_enough_for_tables_and_stored_weights(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 300, (8, 5))
    artifact, _ = array_model(tmp_path / "table", table_model(64, 11), {"ids": ids})

    for kernel in ("few-bits", "float32"):
        after = run_pass("quantize-weights", artifact, tmp_path, kernel=kernel)

        assert share_off(artifact, after, {"ids": ids}) < 0.2


def test_text_classifier_with_fused_attention_is_taken_apart(optimised: Artifact, tmp_path: Path) -> None:
    few, plain = (
        run_pass("quantize-weights", optimised, tmp_path, bits=8, kernel=kernel, accuracy_level=0) for kernel in ("few-bits", "float32")
    )

    feeds = text_feeds(optimised, 3, 16, padded=True)
    assert {"MultiHeadAttention", "MatMulNBits", "GatherBlockQuantized"} <= set(operators(few))
    assert "Attention" in operators(plain)
    assert share_off(optimised, few, feeds) < 0.05
    assert share_off(optimised, plain, feeds) < 0.05


def test_quantized_model_is_not_quantized_again(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    once = run_pass("quantize-weights", encoder[0], tmp_path)

    with pytest.raises(PassError, match="already quantized"):
        run_pass("quantize-weights", once, tmp_path)


def test_schemes_can_follow_each_other(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = encoder
    static = run_pass("quantize-static", artifact, tmp_path, data=data, include=["up-0"])
    dynamic = run_pass("quantize-dynamic", static, tmp_path, include=["down-0"])
    stored = run_pass("quantize-weights", dynamic, tmp_path, include=["up-1"], bits=8, kernel="float32")
    after = run_pass("quantize-weights", stored, tmp_path, include=["down-1"], bits=4)

    assert {"MatMulIntegerToFloat", "MatMulInteger", "MatMul", "MatMulNBits"} <= set(operators(after))
    assert share_off(artifact, after, {"x": rows(3, 6, 32, seed=1)}) < LIMITS[4]
