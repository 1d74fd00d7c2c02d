"""convert-float16: half the size, the same results within what 16 bits hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgepipe.artifact import Artifact
from edgepipe.errors import PassError
from tests.passes.arrays import array_model
from tests.passes.running import operators, outputs, run_done, run_pass, text_feeds
from tests.quantization.models import feed_forward, in_a_branch


def test_weights_are_stored_in_half_and_computed_in_float32(exported: Artifact, tmp_path: Path) -> None:
    done = run_done("convert-float16", exported, tmp_path)

    after = done.value
    feeds = text_feeds(after, 3, 16, padded=True)
    assert after.model.size_bytes < 0.7 * exported.model.size_bytes
    assert np.allclose(outputs(after, feeds), outputs(exported, feeds), rtol=0.01, atol=0.01)
    assert all(check["held"] for check in done.checks)
    assert outputs(after, feeds).dtype == np.float32


def test_whole_graph_can_be_made_half(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((8, 6, 32)).astype(np.float32)
    artifact, _ = array_model(tmp_path / "encoder", feed_forward()[0], {"x": x})

    after = run_pass("convert-float16", artifact, tmp_path, compute=True)

    assert "Cast" in operators(after)
    types = {t.data_type for t in onnx.load(after.model.main_file).graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert np.allclose(outputs(after, {"x": x[:2]}), outputs(artifact, {"x": x[:2]}), atol=0.05)


def test_weights_that_16_bits_cannot_hold_stay(tmp_path: Path) -> None:
    model, _ = feed_forward()
    weight = next(t for t in model.graph.initializer if t.name == "up0")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1e5, "up0"))
    x = np.random.default_rng(0).standard_normal((8, 6, 32)).astype(np.float32)
    artifact, _ = array_model(tmp_path / "encoder", model, {"x": x})

    after = run_pass("convert-float16", artifact, tmp_path)

    kept = {t.name: t.data_type for t in onnx.load(after.model.main_file).graph.initializer}
    assert kept["up0"] == TensorProto.FLOAT
    assert np.allclose(outputs(after, {"x": x[:2]}), outputs(artifact, {"x": x[:2]}), atol=0.02)


def test_weights_that_branches_read_are_widened_for_both(tmp_path: Path) -> None:
    model, _ = in_a_branch()
    samples = {"x": np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)}
    onnx.checker.check_model(model)
    artifact, _ = array_model(tmp_path / "branch", model, {**samples, "sure": np.array([True, False] * 4)})

    after = run_pass("convert-float16", artifact, tmp_path)

    onnx.checker.check_model(onnx.load(after.model.main_file))
    for sure in (True, False):
        feeds = {"x": samples["x"], "sure": np.array(sure)}
        exact = outputs(artifact, feeds)
        assert np.abs(outputs(after, feeds) - exact).max() < 0.01 * np.abs(exact).max()


def test_model_without_weights_says_so(tmp_path: Path) -> None:
    model, _ = feed_forward()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1e8), tensor.name))
    artifact, _ = array_model(tmp_path / "encoder", model, {"x": np.ones((4, 6, 32), np.float32)})

    with pytest.raises(PassError, match="no float32 weights that float16 can hold"):
        run_pass("convert-float16", artifact, tmp_path)
