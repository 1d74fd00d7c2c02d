"""quantize-static: scales are the data's, the same for every sample, and what has none says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.artifact import Artifact
from edgepipe.config import Data, Task
from edgepipe.errors import EdgepipeError, PassError, UsageError
from edgepipe.profile import host_profile
from edgepipe.request import Request, planned
from tests.onnx_models import make_model
from tests.passes.arrays import array_model
from tests.passes.running import operators, outputs, run_done, run_pass, text_feeds
from tests.quantization.graphs import inputs_of
from tests.quantization.models import feed_forward
from tests.quantization.test_qdq import Net, relu_chain, residual, squeeze_and_excite

NEAR = 0.08 if host_profile().cpu.int8_saturates else 0.05  # layers whose sums saturate get 7 bits


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def share_off(before: Artifact, after: Artifact, feeds: dict[str, np.ndarray]) -> float:
    exact = outputs(before, feeds)
    return float(np.linalg.norm(outputs(after, feeds) - exact) / np.linalg.norm(exact))


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Artifact, Data]:
    """x [batch, tokens, 32]: two feed-forward blocks."""
    return array_model(tmp_path / "encoder", feed_forward()[0], {"x": rows(12, 6, 32)})


@pytest.fixture
def net(tmp_path: Path) -> tuple[Artifact, Data]:
    """x [batch, 3, 12, 12]: convolutions with a residual Add."""
    built = Net()
    return array_model(tmp_path / "net", built.model(*residual(built)), {"x": rows(8, 3, 12, 12)})


def alone_and_together(artifact: Artifact, x: np.ndarray) -> bool:
    together = outputs(artifact, {"x": x})
    return all(np.array_equal(outputs(artifact, {"x": x[i : i + 1]})[0], together[i]) for i in range(len(x)))


def test_products_are_near_and_a_sample_alone_gives_what_it_gives_in_a_batch(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = encoder

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    assert operators(after).count("MatMulIntegerToFloat") == 4
    assert "MatMul" not in operators(after)
    assert "Add" not in operators(after)  # biases went into the products
    assert share_off(artifact, after, {"x": rows(3, 6, 32, seed=1)}) < NEAR
    assert alone_and_together(after, rows(5, 6, 32, seed=2))


def test_convolutions_are_near_and_a_sample_alone_gives_what_it_gives_in_a_batch(net: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = net

    done = run_done("quantize-static", artifact, tmp_path, data=data)

    assert share_off(artifact, done.value, {"x": rows(3, 3, 12, 12, seed=1)}) < 0.05
    assert alone_and_together(done.value, rows(4, 3, 12, 12, seed=2))
    assert all(check["held"] for check in done.checks)
    assert "left_in_float32" not in done.value.program


@pytest.mark.parametrize(
    "options",
    [
        {"calibrator": "min-max"}, {"calibrator": "entropy"}, {"calibrator": "mse"}, {"symmetric_activations": True}, {"per_channel": False},
        {"method": "mse"}, {"method": "gptq"}, {"method": "adaround"}, {"smooth": 0.5}, {"equalize": True}, {"correct_bias": True},
        {"stored_bits": 4, "method": "mse"}, {"reduce_range": True}, {"selection": "importance", "samples": 4}, {"selection": "length", "samples": 4},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_gives_a_model_that_is_near(options: dict[str, Any], encoder: tuple[Artifact, Data], net: tuple[Artifact, Data], tmp_path: Path) -> None:  # fmt: skip
    for artifact, data, shape in ((*encoder, (6, 32)), (*net, (3, 12, 12))):
        after = run_pass("quantize-static", artifact, tmp_path, data=data, **options)

        limit = 0.35 if "stored_bits" in options else 0.25 if options.get("calibrator") == "entropy" else 0.1  # which cuts outliers off
        assert share_off(artifact, after, {"x": rows(3, *shape, seed=1)}) < limit


def test_seven_bits_and_four_stored_bits_are_in_the_file(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = encoder
    whole, seven, four = (
        run_pass("quantize-static", artifact, tmp_path, data=data, **options)
        for options in ({"reduce_range": False}, {"reduce_range": True}, {"stored_bits": 4})
    )

    def codes(one: Artifact) -> list[int]:
        tensors = onnx.load(one.model.main_file).graph.initializer
        return [
            int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max())
            for t in tensors
            if t.data_type == TensorProto.INT8 and len(t.dims) == 2
        ]

    assert max(codes(whole)) == 127
    assert max(codes(seven)) == 64
    assert {32 * 64 // 2} == {
        len(t.raw_data)
        for t in onnx.load(four.model.main_file).graph.initializer
        if t.data_type == TensorProto.UINT8 and len(t.raw_data) > 100
    }


def test_text_classifier_with_fused_attention(optimised: Artifact, reviews: Data, tmp_path: Path) -> None:
    done = run_done("quantize-static", optimised, tmp_path, data=reviews)

    after = done.value
    assert {"QAttention", "MatMulIntegerToFloat"} <= set(operators(after))
    assert share_off(optimised, after, text_feeds(after, 3, 16, padded=True)) < 0.15
    checks = {check["name"]: check for check in done.checks}
    assert checks["batch-invariant"]["value"] < 1e-4


def test_no_calibration_data_is_an_error_before_anything_runs(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[step]]\npass = "quantize-static"\n', encoding="utf-8")
    request = Request(
        str(encoder[0].model.main_file), ("host",), task=Task(name="fidelity"), recipe=str(recipe),
        data=Data(test=encoder[1].calibration), out=tmp_path / "out",
    )  # fmt: skip

    with pytest.raises(EdgepipeError, match="calibration") as caught:
        planned(request)

    assert caught.value.exit_code in (2, 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("opset", [11, 12])
def test_old_opsets_are_converted(opset: int, tmp_path: Path) -> None:
    built = Net()
    artifact, data = array_model(tmp_path / "old", built.model(*squeeze_and_excite(built), opset=opset), {"x": rows(8, 3, 12, 12)})

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    assert next(entry.version for entry in onnx.load(after.model.main_file).opset_import if not entry.domain) == 13
    assert share_off(artifact, after, {"x": rows(2, 3, 12, 12, seed=1)}) < 0.1


def test_quantized_model_is_not_quantized_again_and_a_part_gets_the_rest(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    artifact, data = encoder
    part = run_pass("quantize-static", artifact, tmp_path, data=data, include=["up-0", "down-1"])

    after = run_pass("quantize-static", part, tmp_path, data=data)

    assert operators(part).count("MatMul") == 2
    assert operators(after).count("MatMulIntegerToFloat") == 4
    assert share_off(artifact, after, {"x": rows(3, 6, 32, seed=1)}) < NEAR
    with pytest.raises(PassError, match="already quantized") as caught:
        run_pass("quantize-static", after, tmp_path, data=data)
    assert caught.value.exit_code == 4


def test_node_that_is_not_there_names_the_nearest(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no node "up-9"') as caught:
        run_pass("quantize-static", encoder[0], tmp_path, data=encoder[1], include=["up-9"])

    assert "up-" in str(caught.value.fix)


def test_excluded_nodes_stay_as_they_are(encoder: tuple[Artifact, Data], tmp_path: Path) -> None:
    after = run_pass("quantize-static", encoder[0], tmp_path, data=encoder[1], exclude=["up-0"])

    assert operators(after).count("MatMul") == 1
    assert operators(after).count("Add") == 1


# --- data that does not reach everything


def branching(folder: Path) -> tuple[Artifact, Data]:
    """x [n, 32] through a product, then a branch with a product of its own, by the sign of the mean, which is above zero."""
    weights = {name: rows(32, 32, seed=i) for i, name in enumerate(("w", "yes", "no"))} | {"zero": np.array(0, np.float32)}
    bodies = [
        helper.make_graph(
            [helper.make_node("Tanh", ["h"], [f"t.{name}"], name=f"tanh.{name}"), helper.make_node("MatMul", [f"t.{name}", name], [f"z.{name}"], name=f"product.{name}")],
            name, [], [inputs_of(f"z.{name}", ("n", 32))],
        )
        for name in ("yes", "no")
    ]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["above"]),
        helper.make_node("If", ["above"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    model = make_model(nodes, [inputs_of("x", ("n", 32))], [inputs_of("y", ("n", 32))], weights)
    return array_model(folder, model, {"x": rows(12, 32) + 1})


def test_node_that_no_sample_reached_stays_float32_and_is_told(tmp_path: Path) -> None:
    artifact, data = branching(tmp_path / "branch")

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    assert list(after.program["left_in_float32"]) == ["product.no"]
    assert after.program["left_in_float32"]["product.no"]
    for offset in (1, -0.5):
        assert share_off(artifact, after, {"x": rows(1, 32, seed=3) + np.float32(offset)}) < 0.1


@pytest.mark.parametrize("convolution", [False, True])
def test_layer_with_infinite_activations_stays_float32_and_is_told(convolution: bool, tmp_path: Path) -> None:
    if convolution:
        built = Net()
        endless = built.add("Div", built.add("Exp", built.conv("x", into=3)), built.constant(0.0))
        kept = built.conv(built.add("Clip", endless, built.constant(0.0), built.constant(1.0)))
        lost = built.conv(endless)
        built.weights = {name: np.abs(values) for name, values in built.weights.items()}
        model = built.model(kept, built.add("Tanh", lost))
        shape: tuple[int, ...] = (3, 12, 12)
    else:
        weights = {
            "w": np.abs(rows(32, 32)),
            "v": np.abs(rows(32, 32, seed=1)),
            "zero": np.array(0, np.float32),
            "one": np.array(1, np.float32),
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("Div", ["one", "zero"], ["infinite"]),
            helper.make_node("Mul", ["h", "infinite"], ["wild"]),
            helper.make_node("MatMul", ["wild", "v"], ["z"], name="second"),
            helper.make_node("Tanh", ["z"], ["y"]),
        ]
        model = make_model(nodes, [inputs_of("x", ("n", 32))], [inputs_of("h", ("n", 32)), inputs_of("y", ("n", 32))], weights)
        shape = (32,)
    artifact, data = array_model(tmp_path / "infinite", model, {"x": np.abs(rows(8, *shape))})

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    assert len(after.program["left_in_float32"]) == 1
    assert all(after.program["left_in_float32"].values())


def test_gemm_that_adds_no_vector_stays_float32_and_is_told(tmp_path: Path) -> None:
    weights = {"w": rows(32, 8), "c": rows(1, 1), "v": rows(8, 8, seed=1)}
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["h"], name="gemm"), helper.make_node("MatMul", ["h", "v"], ["y"], name="product")]
    model = make_model(nodes, [inputs_of("x", ("n", 32))], [inputs_of("y", (None, 8))], weights)
    artifact, data = array_model(tmp_path / "gemm", model, {"x": rows(8, 32)})

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    assert list(after.program["left_in_float32"]) == ["gemm"]
    assert "MatMulIntegerToFloat" in operators(after)


def test_value_that_a_product_and_a_convolution_read_is_made_before_both(tmp_path: Path) -> None:
    built = Net()
    value = built.add("Relu", built.conv("x", into=3))
    flat = built.add("MatMul", value, built.constant(rows(12, 5)))
    model = built.model(flat, built.conv(built.add("Relu", built.conv(value))))
    artifact, data = array_model(tmp_path / "both", model, {"x": rows(8, 3, 12, 12)})

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    onnx.checker.check_model(onnx.load(after.model.main_file))
    assert share_off(artifact, after, {"x": rows(2, 3, 12, 12, seed=1)}) < 0.05


def test_input_that_a_product_reads_before_a_convolution_does(tmp_path: Path) -> None:
    built = Net()
    flat = built.add("MatMul", "x", built.constant(rows(12, 5)))
    model = built.model(flat, built.conv("x", into=3))
    artifact, data = array_model(tmp_path / "both", model, {"x": rows(8, 3, 12, 12)})

    after = run_pass("quantize-static", artifact, tmp_path, data=data)

    onnx.checker.check_model(onnx.load(after.model.main_file))
    assert operators(after).count("QuantizeLinear") == 2  # the input, and what the convolution gives


def test_same_data_gives_the_same_bytes(net: tuple[Artifact, Data], tmp_path: Path) -> None:
    first, second = (run_pass("quantize-static", net[0], tmp_path, data=net[1]) for _ in range(2))

    assert first.digest == second.digest


def test_other_data_gives_other_scales(tmp_path: Path) -> None:
    built = Net()
    model = built.model(*relu_chain(built))
    made = []
    for size in (1, 2):
        artifact, data = array_model(tmp_path / str(size), model, {"x": size * rows(8, 3, 12, 12)})
        made.append(run_pass("quantize-static", artifact, tmp_path, data=data))

    assert made[0].digest != made[1].digest
