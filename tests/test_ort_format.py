"""The model in ONNX Runtime's own format: same outputs, same bytes, and the operators it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepipe.artifact import Artifact
from edgepipe.errors import ModelError
from edgepipe.ort_format import ort_files, required_operators
from edgepipe.weights import onnx_component
from tests.onnx_models import bag_of_words

PROGRAM = {"kind": "single", "component": "model", "preprocess": {"kind": "tensors"}}
FEEDS = {"input_ids": np.array([[3, 5, 7, 0]]), "attention_mask": np.array([[1, 1, 1, 0]])}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    onnx.save_model(bag_of_words(), tmp_path / "model.onnx")
    return Artifact({"model": onnx_component(tmp_path)}, (), PROGRAM)


def outputs(path: Path, **entries: str) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, FEEDS)[0])


def test_same_outputs_as_the_onnx_file(artifact: Artifact, tmp_path: Path) -> None:
    files = ort_files(artifact, tmp_path)

    assert list(files) == ["ort/model.ort", "ort/required_operators.config"]
    np.testing.assert_array_equal(outputs(files["ort/model.ort"]), outputs(artifact.model.main_file))


def test_file_can_be_mapped(artifact: Artifact, tmp_path: Path) -> None:
    path = ort_files(artifact, tmp_path)["ort/model.ort"]

    mapped = outputs(path, use_memory_mapped_ort_model="1", use_ort_model_bytes_for_initializers="1")

    np.testing.assert_array_equal(mapped, outputs(path))


def test_same_bytes_every_time(artifact: Artifact, tmp_path: Path) -> None:
    made = set()
    for number in range(12):  # the runtime's own files differ each time, in length too in one of six
        folder = tmp_path / str(number)
        folder.mkdir()
        made.add(tuple(path.read_bytes() for path in ort_files(artifact, folder).values()))

    assert len(made) == 1


def test_weights_in_a_file_of_their_own_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save_model(bag_of_words(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    artifact = Artifact({"model": onnx_component(tmp_path, path.name)}, (), PROGRAM)

    files = ort_files(artifact, tmp_path)

    np.testing.assert_array_equal(outputs(files["ort/model.ort"]), outputs(path))


def test_configuration_names_every_operator_and_no_path(artifact: Artifact, tmp_path: Path) -> None:
    from onnxruntime.tools.reduced_build_config_parser import parse_config

    files = ort_files(artifact, tmp_path)
    config = files["ort/required_operators.config"]

    listed, _ = parse_config(str(config))
    assert listed == required_operators([files["ort/model.ort"]])
    assert {"Gather", "ReduceSum"} <= listed["ai.onnx"][13]
    assert str(tmp_path) not in config.read_text()


def test_optimisers_that_the_session_leaves_out_are_left_out(tmp_path: Path) -> None:
    onnx.save_model(bag_of_words(), tmp_path / "model.onnx")
    artifact = Artifact({"model": onnx_component(tmp_path)}, (), PROGRAM)
    without = artifact.with_program(session={"disabled_optimizers": ["MatMulAddFusion"]})

    fused = required_operators([ort_files(artifact, tmp_path)["ort/model.ort"]])
    apart = required_operators([ort_files(without, tmp_path)["ort/model.ort"]])

    assert "Gemm" in fused["ai.onnx"][13]
    assert "MatMul" in apart["ai.onnx"][13]


def test_model_that_the_runtime_cannot_load_is_an_error(tmp_path: Path) -> None:
    onnx.save_model(bag_of_words(), tmp_path / "model.onnx")
    component = onnx_component(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"rubbish")

    with pytest.raises(ModelError, match="own format"):
        ort_files(Artifact({"model": component}, (), PROGRAM), tmp_path)


def test_model_over_two_gigabytes_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    large = replace(artifact.model, files=(replace(artifact.model.files[0], bytes=3_000_000_000),))

    with pytest.raises(ModelError, match=r"3\.0 GB does not fit"):
        ort_files(artifact.with_component("model", large), tmp_path)


def test_artifact_without_onnx_gives_no_files(artifact: Artifact, tmp_path: Path) -> None:
    assert ort_files(artifact.with_component("model", replace(artifact.model, format="torch")), tmp_path) == {}
