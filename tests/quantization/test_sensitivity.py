"""What one quantized layer does to a model's outputs: as if the model had been written with that layer rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.errors import DataError, PassError, UsageError
from edgepipe.quantization.sensitivity import Divergence, Probe, sensitivities
from tests.onnx_models import HIDDEN, make_model, write_external

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((8, 8)).astype(np.float32) for name in ("a", "b", "c")}
FEEDS = [{"x": RNG.standard_normal((1, length, 8)).astype(np.float32)} for length in (1, 5, 9)]


def chain(*, opset: int = 17, constant_node: bool = False) -> Any:
    """x [1, length, 8] → three products with a Relu between."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["ha"], name="first"),
        helper.make_node("Relu", ["ha"], ["ra"]),
        helper.make_node("MatMul", ["ra", "b"], ["hb"], name="second"),
        helper.make_node("Relu", ["hb"], ["rb"]),
        helper.make_node("MatMul", ["rb", "c"], ["y"]),
    ]
    weights = dict(WEIGHTS)
    if constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(weights.pop("b"), "b")))
    values = [helper.make_tensor_value_info(name, FLOAT, [1, "length", 8]) for name in "xy"]
    return make_model(nodes, values[:1], values[1:], weights, opset=opset)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(chain(), tmp_path)


def saved(model: Any, folder: Path) -> Path:
    onnx.save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def forward(x: np.ndarray, weights: dict[str, np.ndarray], rounds: dict[str, Any] | None = None) -> np.ndarray:
    for name in "abc":
        x = (rounds or {}).get(name, lambda value: value)(x)
        x = x @ weights[name]
        x = np.maximum(x, 0) if name != "c" else x
    return x


def coarse(name: str, step: float = 0.5) -> np.ndarray:
    return (np.rint(WEIGHTS[name] / step) * step).astype(np.float32)


def to_uint8(low: float, high: float) -> Any:
    def rounded(values: np.ndarray) -> np.ndarray:
        step = (high - low) / 255
        zero = np.rint(-low / step)
        return ((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step).astype(np.float32)

    return rounded


def by_hand(changed: dict[str, np.ndarray], rounds: dict[str, Any] | None = None) -> Divergence:
    gaps = []
    for feed in FEEDS:
        a, b = forward(feed["x"], WEIGHTS).ravel(), forward(feed["x"], {**WEIGHTS, **changed}, rounds).ravel()
        gaps.append((1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), float(((a - b) ** 2).sum() / (a**2).sum())))
    cosines, errors = zip(*gaps, strict=True)
    return Divergence(float(np.mean(cosines)), float(np.mean(errors)), max(cosines), len(FEEDS))


def close(found: Divergence, wanted: Divergence) -> None:
    for field in ("cosine", "normalised_mse", "worst_cosine"):
        assert getattr(found, field) == pytest.approx(getattr(wanted, field), rel=0.02, abs=1e-6)
    assert found.samples == wanted.samples


def test_each_layer_is_rounded_alone(model: Path) -> None:
    probes = [
        Probe("first", "a", lambda: coarse("a")),
        Probe("second", "b", lambda: coarse("b", 0.1)),
        Probe("MatMul:y", "c", lambda: coarse("c")),
    ]

    found = sensitivities(model, probes, FEEDS)

    assert list(found) == ["first", "second", "MatMul:y"]
    close(found["first"], by_hand({"a": coarse("a")}))
    close(found["second"], by_hand({"b": coarse("b", 0.1)}))
    close(found["MatMul:y"], by_hand({"c": coarse("c")}))
    assert found["second"].normalised_mse < found["first"].normalised_mse


def test_a_layer_whose_weight_stays_moves_nothing(model: Path) -> None:
    found = sensitivities(model, [Probe("first", "a", lambda: WEIGHTS["a"])], FEEDS)

    assert found["first"] == Divergence(0.0, 0.0, 0.0, 3) or found["first"].normalised_mse < 1e-12


def test_an_activation_is_rounded_in_the_range_it_is_given(model: Path) -> None:
    found = sensitivities(model, [Probe("second", "b", lambda: WEIGHTS["b"], "ra", (0.0, 1.5))], FEEDS)

    close(found["second"], by_hand({}, {"b": to_uint8(0.0, 1.5)}))


def test_an_activation_is_rounded_in_each_samples_own_range(model: Path) -> None:
    def own(values: np.ndarray) -> np.ndarray:
        return to_uint8(min(values.min(), 0), max(values.max(), 0))(values)

    found = sensitivities(model, [Probe("first", "a", lambda: WEIGHTS["a"], "x", "dynamic")], FEEDS)

    close(found["first"], by_hand({}, {"a": own}))


def test_layers_that_share_an_activation_are_rounded_one_at_a_time(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=name) for name in "ab"]
    values = [helper.make_tensor_value_info(name, FLOAT, [1, "length", 8]) for name in ("x", "y_a", "y_b")]
    path = saved(make_model(nodes, values[:1], values[1:], {name: WEIGHTS[name] for name in "ab"}), tmp_path)

    found = sensitivities(
        path, [Probe("a", "a", lambda: WEIGHTS["a"], "x", (-0.1, 0.1)), Probe("b", "b", lambda: WEIGHTS["b"], "x", (-9.0, 9.0))], FEEDS
    )

    assert found["a"].normalised_mse > 0.5
    assert found["b"].normalised_mse < 0.01


def test_weights_in_constant_nodes_and_in_files_are_weights_too(tmp_path: Path) -> None:
    found = sensitivities(saved(chain(constant_node=True), tmp_path), [Probe("second", "b", lambda: coarse("b"))], FEEDS)

    close(found["second"], by_hand({"b": coarse("b")}))

    external = write_external(tmp_path / "external")
    feeds = [{"input_ids": np.arange(5)[None], "attention_mask": np.ones((1, 5), np.int64)}]
    assert (
        sensitivities(external, [Probe("classify", "classifier.weight", lambda: np.zeros((HIDDEN, 2), np.float32))], feeds)[
            "classify"
        ].cosine
        > 0
    )


def test_one_rounded_weight_is_held_at_a_time(model: Path) -> None:
    asked: list[str] = []
    said: list[int] = []

    def weight(name: str) -> Any:
        def dequantized() -> np.ndarray:
            asked.append(name)
            return coarse(name)

        return dequantized

    def progress(_: str, done: int, total: int) -> None:
        assert (len(asked), total) == (done, 2)
        said.append(done)

    sensitivities(model, [Probe("first", "a", weight("a")), Probe("second", "b", weight("b"))], FEEDS, progress=progress)

    assert (asked, said) == (["a", "b"], [0, 1])


def test_convolutions_are_layers_too(tmp_path: Path) -> None:
    kernel = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, FLOAT, [1, channels, "h", "w"]) for name, channels in (("x", 3), ("y", 4))]
    path = saved(make_model([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], values[:1], values[1:], {"w": kernel}), tmp_path)
    feeds = [{"x": RNG.standard_normal((1, 3, size, size)).astype(np.float32)} for size in (8, 12)]

    found = sensitivities(path, [Probe("conv", "w", lambda: (np.rint(kernel * 4) / 4).astype(np.float32), "x", "dynamic")], feeds)

    assert 1e-4 < found["conv"].normalised_mse < 0.1


def test_layers_that_the_main_graph_does_not_have_are_left_out(model: Path) -> None:
    assert sensitivities(model, [Probe("nowhere", "a", lambda: WEIGHTS["a"]), Probe("first", "nothing", lambda: WEIGHTS["a"])], FEEDS) == {}


def test_outputs_that_become_infinite_are_as_far_as_can_be(model: Path) -> None:
    found = sensitivities(model, [Probe("first", "a", lambda: np.full((8, 8), 3e38, np.float32))], FEEDS)

    assert found["first"].normalised_mse == float("inf")
    assert found["first"].cosine == 2.0


def test_a_rounded_weight_of_another_shape_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="shape"):
        sensitivities(model, [Probe("first", "a", lambda: WEIGHTS["a"][:4])], FEEDS)


def test_an_old_opset_is_named(tmp_path: Path) -> None:
    path = saved(chain(opset=9), tmp_path)

    assert "first" in sensitivities(path, [Probe("first", "a", lambda: coarse("a"))], FEEDS)
    with pytest.raises(PassError, match="opset 9"):
        sensitivities(path, [Probe("first", "a", lambda: coarse("a"), "x", "dynamic")], FEEDS)


def test_no_samples_are_an_error(model: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        sensitivities(model, [], [])
