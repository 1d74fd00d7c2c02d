"""fix-inputs: what never changes is decided once, and what it decides leaves the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.config import Data
from edgepipe.errors import PassError
from edgepipe.weights import all_nodes, load_onnx
from tests.onnx_models import make_model
from tests.passes.running import artifact_of, run_done

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact


def branch(name: str, operator: str) -> Any:
    """A graph that multiplies x with a matrix of its own."""
    weight = onnx.numpy_helper.from_array(np.full((40, 4), 0.5 if name == "slow" else 2.0, np.float32), f"{name}_w")
    nodes = [helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_xw"]), helper.make_node(operator, [f"{name}_xw"], [f"{name}_y"])]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)], [weight])


def two_rates() -> Any:
    """x [?, 40], rate [] → y [?, 4] by one matrix at rate 16 and another at every other rate."""
    nodes = [
        helper.make_node("Equal", ["rate", "fast"], ["is_fast"]),
        helper.make_node("If", ["is_fast"], ["y"], then_branch=branch("fast_one", "Tanh"), else_branch=branch("slow", "Relu")),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    return make_model(nodes, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])], {"fast": np.array(16)})


@pytest.fixture
def given(tmp_path: Path) -> tuple[Artifact, Data]:
    """The model, and samples at rate 16."""
    onnx.save_model(two_rates(), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "samples.npz", x=rng.standard_normal((6, 1, 40)).astype(np.float32), rate=np.full(6, 16))
    return artifact_of(tmp_path / "model.onnx", "fidelity"), Data(calibration=str(tmp_path / "samples.npz"))


def test_branch_that_is_never_taken_leaves_the_file(given: tuple[Artifact, Data], tmp_path: Path) -> None:
    before, data = given

    done = run_done("fix-inputs", before, tmp_path, data=data, values={"rate": 16})

    after = done.value
    assert [node.op_type for node in all_nodes(load_onnx(after.model.main_file).graph)] == ["MatMul", "Tanh"]
    assert [entry["name"] for entry in after.model.signature["inputs"]] == ["x"]
    assert after.model.parameters == 160 and before.model.parameters == 320
    assert [(check["name"], check["held"]) for check in done.checks] == [("equal-outputs", True)]


def test_shape_that_never_changes_is_fixed(given: tuple[Artifact, Data], tmp_path: Path) -> None:
    before, data = given

    after = run_done("fix-inputs", before, tmp_path, data=data, values={"rate": 16}, shapes={"x": [1, 40]}).value

    assert after.model.signature["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 40]}]


def test_value_that_samples_do_not_have_is_found_out(given: tuple[Artifact, Data], tmp_path: Path) -> None:
    before, data = given

    with pytest.raises(PassError, match="equal-outputs failed"):
        run_done("fix-inputs", before, tmp_path, data=data, values={"rate": 8})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"values": {"rat": 16}}, 'no input "rat"'),
        ({"shapes": {"x": [1, 41]}}, "cannot have the shape"),
        ({"shapes": {"x": [40]}}, "cannot have the shape"),
        ({}, "nothing"),
    ],
)
def test_what_cannot_be_fixed_fails(given: tuple[Artifact, Data], tmp_path: Path, options: dict[str, Any], says: str) -> None:
    before, data = given

    with pytest.raises(PassError, match=says):
        run_done("fix-inputs", before, tmp_path, data=data, **options)
