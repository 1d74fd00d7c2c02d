"""A model run part after part gives what a session of the whole gives."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe import segments, worker_context
from edgepipe.artifact import Artifact
from edgepipe.driver import driver_module
from edgepipe.passes import get_pass
from edgepipe.segments import Segments, can_be_cut
from tests.onnx_models import make_model
from tests.passes.arrays import array_model
from tests.passes.running import job_for, run_done, run_pass
from tests.quantization.models import feed_forward

X = np.random.default_rng(0).standard_normal((3, 6, 32)).astype(np.float32)


def value(name: str, shape: list[int]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def whole(path: Path, feeds: dict[str, np.ndarray], *, optimise: bool = True) -> list[np.ndarray]:
    found: list[np.ndarray] = driver_module().open_session(str(path), 1, (), optimise).run(None, feeds)
    return found


@pytest.fixture
def encoder(tmp_path: Path) -> Artifact:
    return array_model(tmp_path / "encoder", feed_forward()[0], {"x": X})[0]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "PART_BYTES", 1)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantize-weights", {"bits": 4, "kernel": "float32"}),
        ("quantize-weights", {"bits": 4, "kernel": "few-bits", "accuracy_level": 0}),
        ("quantize-dynamic", {}),
        ("quantize-dynamic", {"stored_bits": 4}),
    ],
)
def test_quantized_models_give_the_same_in_parts(
    name: str, options: dict[str, Any], optimise: bool, small_parts: None, encoder: Artifact, tmp_path: Path
) -> None:
    after = run_pass(name, encoder, tmp_path, **options)
    path = after.model.main_file

    parts = Segments(path, threads=1, optimise=optimise)

    assert len(parts._parts) >= 4
    assert np.allclose(next(iter(parts({"x": X}).values())), whole(path, {"x": X}, optimise=optimise)[0], atol=2e-5)


def test_checks_of_a_large_model_hold_part_by_part(
    small_parts: None, monkeypatch: pytest.MonkeyPatch, encoder: Artifact, tmp_path: Path
) -> None:
    limits = (encoder.model.size_bytes - 1, encoder.model.size_bytes)
    job, spec = job_for("quantize-weights", encoder, tmp_path), get_pass("quantize-weights")
    for limit, kind in zip(limits, (True, False), strict=True):
        monkeypatch.setattr(worker_context, "ONE_FILE_LIMIT_BYTES", limit)
        assert isinstance(worker_context.WorkerContext(job, spec, io.BytesIO()).run(encoder), Segments) == kind
    monkeypatch.setattr(worker_context, "ONE_FILE_LIMIT_BYTES", 1)

    done = run_done("quantize-weights", encoder, tmp_path, bits=4, kernel="float32")

    assert all(check["held"] for check in done.checks)


def test_values_used_much_later_and_constant_outputs_are_kept(small_parts: None, tmp_path: Path) -> None:
    weights = {f"w{index}": np.full((4, 4), index + 1, np.float32) for index in range(3)}
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Neg", ["two"], ["minus_two"]),
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Mul", ["d", "minus_two"], ["y"]),
    ]
    model = make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4]), value("minus_two", []), value("x", [2, 4])], weights)
    onnx.save_model(model, tmp_path / "model.onnx")
    x = X[0, :2, :4]

    found = Segments(tmp_path / "model.onnx", threads=1)({"x": x, "unknown": x})

    assert list(found) == ["y", "minus_two", "x"]
    assert found["minus_two"] == -2
    assert np.allclose(found["y"], whole(tmp_path / "model.onnx", {"x": x})[0], rtol=1e-6)


def test_bodies_see_values_of_earlier_parts(small_parts: None, tmp_path: Path) -> None:
    def body(sign: float) -> Any:
        factor = numpy_helper.from_array(np.full((4, 4), sign, np.float32), "f")
        node = helper.make_node("MatMul", ["a", "f"], ["inner"])
        return helper.make_graph([node], "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)], [factor])

    weights = {"w0": np.eye(4, dtype=np.float32) * 3, "w1": np.eye(4, dtype=np.float32), "zero": np.float32(0)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], then_branch=body(1.0), else_branch=body(-1.0)),
        helper.make_node("Add", ["chosen", "b"], ["y"]),
    ]
    model = make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4])], weights)
    onnx.save_model(model, tmp_path / "model.onnx")

    for x in (X[0, :2, :4], -X[0, :2, :4]):
        found = Segments(tmp_path / "model.onnx", threads=1)({"x": x})
        assert np.allclose(found["y"], whole(tmp_path / "model.onnx", {"x": x})[0])


def test_models_with_sequences_stay_whole(tmp_path: Path, encoder: Artifact) -> None:
    nodes = [helper.make_node("SplitToSequence", ["x"], ["s"]), helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)]
    onnx.save_model(make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4])], {}), tmp_path / "model.onnx")

    assert not can_be_cut(tmp_path / "model.onnx")
    assert can_be_cut(encoder.model.main_file)
