"""Large values stay in the file they are in, and are copied from file to file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgepipe import onnx_file
from edgepipe.errors import ModelError
from edgepipe.onnx_file import load_structure, write_with_values
from edgepipe.quantization import graph as graphs
from edgepipe.quantization.graph import Graph
from edgepipe.weights import load_onnx, onnx_component
from tests.onnx_models import make_model


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(onnx_file, "LARGE_BYTES", 64)


def value(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def model_of(*widths: int) -> Any:
    """Products one after the other; every second weight is a Constant node's, the last lies in the branches of an If."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(pair).astype(np.float32) for pair in itertools.pairwise(widths)]
    nodes: list[Any] = []
    for number, weight in enumerate(weights[:-1]):
        if number % 2:
            nodes.append(helper.make_node("Constant", [], [f"w{number}"], value=numpy_helper.from_array(weight, "value")))
        nodes.append(helper.make_node("MatMul", [f"h{number}", f"w{number}"], [f"h{number + 1}"]))
    last = f"h{len(weights) - 1}"

    def branch(sign: float) -> Any:
        inner = numpy_helper.from_array(weights[-1] * np.float32(sign), "inner")
        return helper.make_graph(
            [helper.make_node("MatMul", [last, "inner"], ["out"])], "branch", [], [value("out", "n", widths[-1])], [inner]
        )

    nodes.append(helper.make_node("If", ["positive"], ["y"], then_branch=branch(1.0), else_branch=branch(-1.0)))
    held = {f"w{number}": weight for number, weight in enumerate(weights[:-1]) if not number % 2}
    model = make_model(nodes, [value("h0", "n", widths[0])], [value("y", "n", widths[-1])], {**held, "positive": np.array(True)})
    model.metadata_props.add(key="characters", value="abc" * 50)
    return model


def tensors(model: Any, folder: Path) -> list[np.ndarray]:
    from edgepipe.weights import all_tensors

    return [numpy_helper.to_array(tensor, base_dir=str(folder)) for tensor in all_tensors(model)]


@given(widths=st.lists(st.integers(1, 40), min_size=3, max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_structure_tells_where_every_value_lies(widths: list[int], tmp_path: Path) -> None:
    model = model_of(*widths)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    found = load_structure(tmp_path / "model.onnx")

    assert all(np.array_equal(a, b) for a, b in zip(tensors(found, tmp_path), tensors(model, tmp_path), strict=True))
    if max(a * b for a, b in itertools.pairwise(widths)) > 100:
        assert found.ByteSize() < model.ByteSize()
    assert found.metadata_props == model.metadata_props


def test_a_graph_of_one_file_holds_no_large_values_and_writes_them_all(tmp_path: Path) -> None:
    model = model_of(50, 60, 70, 40)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    graph = Graph(tmp_path / "model.onnx", tmp_path)
    assert graph.model.ByteSize() < 6000
    assert np.array_equal(graph.array("w0"), numpy_helper.to_array(model.graph.initializer[0]))

    (tmp_path / "out").mkdir()
    graph.write(tmp_path / "out")
    (tmp_path / "apart").mkdir()
    graph.write(tmp_path / "apart", inline_bytes=0)

    x = np.ones((2, 50), np.float32)
    expected = run(tmp_path, x)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert (tmp_path / "apart" / graphs.DATA).is_file()
    assert np.array_equal(run(tmp_path / "out", x), expected)
    assert np.array_equal(run(tmp_path / "apart", x), expected)
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))


def run(folder: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    found: np.ndarray = onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, {"h0": x})[0]
    return found


def test_component_of_one_large_file_is_that_file(tmp_path: Path) -> None:
    model = model_of(50, 60, 70)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    component = onnx_component(tmp_path)

    assert [ref.path for ref in component.files] == ["model.onnx"]
    assert component.parameters == 50 * 60 + 2 * 60 * 70


def test_same_values_make_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "values").write_bytes(np.arange(100, dtype=np.float32).tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[10, 10])
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", "n", 10)], [value("y", "n", 10)], {})
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as out:
            write_with_values(model, [(tensor, tmp_path / "values", 0, 400)], out)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    written = onnx.load(str(tmp_path / "a"))
    assert numpy_helper.to_array(written.graph.initializer[0])[9, 9] == 99
    assert written.opset_import == model.opset_import


@pytest.mark.parametrize("kept", [0, 1, 100, 5000])
def test_a_truncated_file_is_an_error_of_the_model(kept: int, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model_of(50, 60, 70).SerializeToString()[:kept])

    with pytest.raises(ModelError, match="ONNX file"):
        load_onnx(tmp_path / "model.onnx", structure=True)


def test_what_is_no_protobuf_is_an_error_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0f" * 4096)

    with pytest.raises(ModelError, match="ONNX file"):
        load_onnx(tmp_path / "model.onnx", structure=True)
