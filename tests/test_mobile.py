"""What phones' accelerators take of a model, by tables made from the runtime, grouped as the runtime groups it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe.accelerators import NO_KERNEL
from edgepipe.artifact import Artifact
from edgepipe.mobile import Usability, accelerators_of, mobile_usability, rows
from edgepipe.profile import load_profile
from edgepipe.resources import resource
from edgepipe.weights import onnx_component
from tests.onnx_models import bag_of_words, make_model

ANDROID, IPHONE = load_profile("android-current"), load_profile("iphone-current")


def artifact_of(folder: Path, model: Any) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, folder / "model.onnx")
    return Artifact({"model": onnx_component(folder)}, (), {"kind": "single", "component": "model", "preprocess": {"kind": "tensors"}})


def convolutional(*, batch: str | int = "batch", middle: str = "Relu") -> Any:
    """x [batch, 3, 16, 16] → Conv → `middle` → Conv → GlobalAveragePool → Flatten → Gemm → y [batch, 5]."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "w3": rng.standard_normal((8, 5)).astype(np.float32),
        "b3": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node(middle, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])]
    return make_model(nodes, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])], weights)


def found(artifact: Artifact, accelerator: str) -> Usability:
    profile = IPHONE if accelerator == "coreml" else ANDROID
    return next(entry for entry in mobile_usability(artifact, profile) if entry.accelerator == accelerator)


def test_tables_are_what_the_wheel_and_make_mobile_give(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_mobile", resource("export") / "operators" / "make_mobile.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = {name: (resource("export") / "operators" / f"{name}.json").read_text(encoding="utf-8") for name in module.HEADS}
    module.__file__ = str(tmp_path / "make_mobile.py")

    module.main()

    import onnxruntime

    for name, text in committed.items():
        if json.loads(text)["version"] == onnxruntime.__version__:
            assert (tmp_path / f"{name}.json").read_text(encoding="utf-8") == text


def test_make_mobile_stops_at_a_note_it_does_not_know(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_mobile", resource("export") / "operators" / "make_mobile.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "ops.md").write_text("|ai.onnx:Add|Only on Tuesdays.|\n")

    with pytest.raises(SystemExit, match="Only on Tuesdays"):
        module.listed(tmp_path / "ops.md")


def test_phones_have_accelerators_and_boards_have_none() -> None:
    assert accelerators_of(ANDROID) == ("nnapi", "xnnpack")
    assert accelerators_of(load_profile("android-older")) == ("nnapi", "xnnpack")
    assert accelerators_of(IPHONE) == ("coreml", "xnnpack")
    assert accelerators_of(load_profile("rpi4")) == ()


def test_board_gets_no_rows(tmp_path: Path) -> None:
    assert mobile_usability(artifact_of(tmp_path, convolutional()), load_profile("rpi4")) == []


@pytest.mark.parametrize("accelerator", ["coreml", "nnapi"])
def test_convolutional_model_of_fixed_shape_is_taken_whole(tmp_path: Path, accelerator: str) -> None:
    entry = found(artifact_of(tmp_path, convolutional(batch=1)), accelerator)

    assert entry.fixed is None
    missing = {refused.operator for refused in entry.as_is.refused}
    assert missing == ({"Flatten"} if accelerator == "coreml" else set())  # ML Program's list has none
    assert entry.as_is.arithmetic_share == 1.0
    assert entry.as_is.helps == ("maybe" if accelerator == "coreml" else "yes")


def test_counts_are_those_of_the_runtimes_own_checker_where_its_rules_are_ours(tmp_path: Path) -> None:
    from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions, check_nnapi_partitions
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

    artifact = artifact_of(tmp_path, convolutional(batch=1, middle="Tanh"))
    optimize_model(artifact.model.main_file, tmp_path / "basic.onnx")
    model = ModelProtoWithShapeInfo(tmp_path / "basic.onnx").model_with_shape_info

    nnapi, coreml = check_nnapi_partitions(model, True), check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md")

    for theirs, ours in ((nnapi, found(artifact, "nnapi").as_is), (coreml, found(artifact, "coreml").as_is)):
        assert (theirs.num_nodes, theirs.num_supported_nodes) == (ours.nodes, ours.taken)
        assert tuple(map(len, theirs.supported_groups)) == ours.partition_sizes


def test_we_never_promise_more_than_the_runtimes_own_checker(onnx_artifact_bert: Artifact, tmp_path: Path) -> None:
    from onnxruntime.tools.mobile_helpers.usability_checker import check_nnapi_partitions
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

    optimize_model(onnx_artifact_bert.model.main_file, tmp_path / "basic.onnx")
    model = ModelProtoWithShapeInfo(tmp_path / "basic.onnx").model_with_shape_info

    ours = found(onnx_artifact_bert, "nnapi")

    assert ours.as_is.taken <= check_nnapi_partitions(model, False).num_supported_nodes


@pytest.fixture
def onnx_artifact_bert(tmp_path: Path) -> Artifact:
    """The shape of a transformer's layer: 3-D by 2-D products, LayerNormalization, int64 Gather."""
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((128, 16)).astype(np.float32), "w": rng.standard_normal((16, 16)).astype(np.float32)}
    weights |= {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Softmax", ["b"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("LayerNormalization", ["d", "scale", "bias"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 16])]
    return artifact_of(tmp_path / "bert", make_model(nodes, inputs, outputs, weights))


def test_fixed_shapes_are_named_as_the_first_change(onnx_artifact_bert: Artifact) -> None:
    entry = found(onnx_artifact_bert, "coreml")

    assert entry.fixed is not None
    assert entry.as_is.taken == 0 < entry.fixed.taken
    assert "fix the input shapes (input_ids 1 × 8" in entry.changes[0]
    assert entry.fixed.arithmetic_share == 1.0


def test_nnapi_leaves_products_of_three_by_two_dimensions_to_the_cpu(onnx_artifact_bert: Artifact) -> None:
    entry = found(onnx_artifact_bert, "nnapi")

    reasons = {(refused.operator, refused.reason) for refused in entry.best.refused}
    assert ("MatMul", "it takes 2-D by 2-D, or equal batches, not 3-D by 2-D") in reasons
    assert ("LayerNormalization", NO_KERNEL) in reasons
    assert ("Gather", "input 1 is int64, it takes int32") in reasons
    assert entry.best.helps == "no"
    assert any("reshape the first operand of 2 MatMul" in change for change in entry.changes)


def test_xnnpack_takes_softmax_only_when_its_last_dimension_is_known(onnx_artifact_bert: Artifact) -> None:
    entry = found(onnx_artifact_bert, "xnnpack")

    assert entry.as_is.taken == 1  # the 16 of the weight is known though the sequence is not
    assert entry.best.taken == 1
    assert not entry.copies


def test_activation_goes_to_xnnpack_behind_a_convolution_only(tmp_path: Path) -> None:
    behind = found(artifact_of(tmp_path / "a", convolutional(batch=1)), "xnnpack").as_is
    elsewhere = found(artifact_of(tmp_path / "b", convolutional(batch=1, middle="Tanh")), "xnnpack").as_is

    assert behind.taken == elsewhere.taken + 1
    assert behind.helps == "yes"


def test_operator_that_breaks_the_graph_is_named_with_what_leaving_it_out_gives(tmp_path: Path) -> None:
    entry = found(artifact_of(tmp_path, convolutional(batch=1, middle="Softsign")), "nnapi")

    assert entry.as_is.partition_sizes == (1, 4)
    assert entry.changes == (f"Softsign breaks the graph up (1 of them; {NO_KERNEL}): 1 partition without it",)


def test_weights_in_a_file_of_their_own_keep_nnapi_out(tmp_path: Path) -> None:
    model = convolutional(batch=1)
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=1024)
    artifact = Artifact({"model": onnx_component(tmp_path)}, (), {"kind": "single", "preprocess": {"kind": "tensors"}})

    reasons = {(refused.operator, refused.reason) for refused in found(artifact, "nnapi").best.refused}

    assert reasons == {("Conv", "its weights lie in a file of their own")}
    assert found(artifact, "xnnpack").best.arithmetic_share == 1.0


def test_rows_are_informative_and_say_what_to_change(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, bag_of_words())

    results = rows(IPHONE, mobile_usability(artifact, IPHONE))

    assert [result.metric for result in results] == ["CoreML share of arithmetic"] * 2 + ["XNNPACK share of arithmetic"] * 2
    assert {result.verdict for result in results} == {None}
    assert {result.provenance for result in results} == {"predicted"}
    assert "fix the input shapes" in results[1].reason
    assert json.dumps([result.to_json() for result in results])
