"""quantize-dynamic: weights and tables become int8, whatever graph comes in, and what cannot be quantized says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.errors import PassError, UsageError
from edgepipe.quantization.sites import SMALLEST_TABLE
from edgepipe.weights import onnx_component
from tests.models import write_text_model
from tests.passes.running import artifact_of, image_feeds, initializers, operators, outputs, run_done, run_pass, text_feeds

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.config import Data


def eight_bit(artifact: Artifact) -> dict[str, np.ndarray]:
    """Weights in int8 and embedding tables, which ONNX Runtime's quantizer writes as uint8."""
    return {name: value for name, value in initializers(artifact).items() if value.itemsize == 1 and value.ndim == 2}


def int8_weights(artifact: Artifact) -> dict[str, np.ndarray]:
    return {name: value for name, value in eight_bit(artifact).items() if value.dtype == np.int8}


def large_floats(artifact: Artifact) -> list[str]:
    """Matrices that could be quantized; tables of positions and types are too small to be one."""
    floats = {name: value for name, value in initializers(artifact).items() if value.dtype == np.float32 and value.ndim == 2}
    return [name for name, value in floats.items() if value.size > (SMALLEST_TABLE - 1 if "embeddings" in name else 512)]


def weight_bytes(artifact: Artifact) -> int:
    return sum(value.nbytes for value in initializers(artifact).values())


def close(before: Artifact, after: Artifact, feeds: dict[str, np.ndarray], tolerance: float) -> bool:
    expected = outputs(before, feeds)
    return bool(np.abs(outputs(after, feeds) - expected).max() <= tolerance * np.abs(expected).max())


@pytest.mark.parametrize("fused", [True, False])
def test_exported_and_optimised_graphs_are_quantized(fused: bool, exported: Artifact, optimised: Artifact, tmp_path: Path) -> None:
    before = optimised if fused else exported

    after = run_pass("quantize-dynamic", before, tmp_path)

    kinds = operators(after)
    assert ("QAttention" in kinds) is fused
    assert "MatMulInteger" in kinds
    assert len(int8_weights(after)) >= 8
    assert weight_bytes(after) < 0.36 * weight_bytes(before)  # scales and small tables weigh more here than in real models
    for feeds in (text_feeds(after, 1, 9), text_feeds(after, 3, 16, padded=True)):
        assert close(before, after, feeds, 0.1)


def test_weights_and_embedding_table_are_int8_and_no_large_float_is_left(optimised: Artifact, tmp_path: Path) -> None:
    after = run_pass("quantize-dynamic", optimised, tmp_path, reduce_range=False)

    assert large_floats(optimised)
    assert large_floats(after) == []
    assert (128, 32) in {value.shape for value in eight_bit(after).values()}  # the word embeddings
    assert all(np.abs(value.astype(int)).max() > 64 for value in int8_weights(after).values())  # the whole range is used


def scales(artifact: Artifact) -> list[np.ndarray]:
    return [value for name, value in initializers(artifact).items() if name.endswith("_scale") and "embeddings" not in name]


def test_per_channel_gives_a_scale_per_output_channel(exported: Artifact, tmp_path: Path) -> None:
    channel, tensor = (run_pass("quantize-dynamic", exported, tmp_path, per_channel=per_channel) for per_channel in (True, False))

    assert {value.size for value in scales(tensor)} == {1}
    assert {32, 64} <= {value.size for value in scales(channel)}
    assert all(close(exported, after, text_feeds(exported, 3, 16, padded=True), 0.1) for after in (channel, tensor))


@pytest.mark.parametrize("per_channel", [True, False])
def test_reduced_range_keeps_weights_within_seven_bits(per_channel: bool, optimised: Artifact, tmp_path: Path) -> None:
    after = run_pass("quantize-dynamic", optimised, tmp_path, reduce_range=True, per_channel=per_channel)

    largest = [int(np.abs(value.astype(int)).max()) for value in int8_weights(after).values()]
    assert max(largest) <= 64
    assert min(largest) > 32  # seven bits, not fewer
    assert close(optimised, after, text_feeds(after, 3, 16, padded=True), 0.2)


def test_excluded_node_stays_float(exported: Artifact, tmp_path: Path) -> None:
    name = node_name(exported, "layer.0/intermediate/dense/MatMul")

    after = run_pass("quantize-dynamic", exported, tmp_path, exclude=[name])

    whole = run_pass("quantize-dynamic", exported, tmp_path)
    assert name in node_names(after)
    assert name not in node_names(whole)
    assert len(int8_weights(after)) == len(int8_weights(whole)) - 1


def node_names(artifact: Artifact) -> list[str]:
    import onnx

    return [node.name for node in onnx.load(artifact.model.main_file).graph.node]


def node_name(artifact: Artifact, end: str) -> str:
    return next(name for name in node_names(artifact) if name.endswith(end))


def test_excluding_an_unknown_node_names_the_nearest(exported: Artifact, tmp_path: Path) -> None:
    name = node_name(exported, "layer.0/intermediate/dense/MatMul")

    with pytest.raises(UsageError) as caught:
        run_pass("quantize-dynamic", exported, tmp_path, exclude=[name.replace("intermediate", "intermediat")])

    assert name in str(caught.value)


def test_operators_that_are_not_listed_stay_float(exported: Artifact, tmp_path: Path) -> None:
    after = run_pass("quantize-dynamic", exported, tmp_path, operators=["Gather"])

    assert "MatMulInteger" not in operators(after)
    assert {value.shape for value in eight_bit(after).values()} == {(128, 32)}  # words; positions and types are too few to matter


@pytest.mark.parametrize("operators", [["MatMul", "Gemm", "Attention"], ["Gather"]])
def test_partly_quantized_model_gets_the_rest(operators: list[str], optimised: Artifact, tmp_path: Path) -> None:
    part = run_pass("quantize-dynamic", optimised, tmp_path, operators=operators)

    after = run_pass("quantize-dynamic", part, tmp_path)

    assert large_floats(part)
    assert large_floats(after) == []
    assert len(eight_bit(after)) == len(eight_bit(run_pass("quantize-dynamic", optimised, tmp_path)))
    assert close(optimised, after, text_feeds(after, 3, 16, padded=True), 0.1)


def test_quantized_model_is_not_quantized_again(optimised: Artifact, tmp_path: Path) -> None:
    once = run_pass("quantize-dynamic", optimised, tmp_path)

    with pytest.raises(PassError, match="already quantized") as caught:
        run_pass("quantize-dynamic", once, tmp_path)

    assert caught.value.exit_code == 4
    assert caught.value.where == "pass quantize-dynamic"


def graph_of(artifact: Artifact, nodes: list[Any], weights: dict[str, np.ndarray], folder: Path) -> Artifact:
    """An image model of these nodes, from pixel_values to logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx")
    return artifact.with_component("model", onnx_component(folder))


def test_model_without_anything_to_quantize_says_so(resnet: Path, tmp_path: Path) -> None:
    from onnx.helper import make_node

    image = artifact_of(resnet, "image-classification")
    convolution = graph_of(
        image, [make_node("Conv", ["pixel_values", "w"], ["logits"])], {"w": np.ones((3, 3, 1, 1), np.float32)}, tmp_path / "conv"
    )

    with pytest.raises(PassError, match="no MatMul") as caught:
        run_pass("quantize-dynamic", convolution, tmp_path)

    assert caught.value.exit_code == 4


def test_model_whose_products_have_no_constant_weight_says_so(resnet: Path, tmp_path: Path) -> None:
    from onnx.helper import make_node

    image = artifact_of(resnet, "image-classification")
    squared = graph_of(image, [make_node("MatMul", ["pixel_values", "pixel_values"], ["logits"])], {}, tmp_path / "squared")

    with pytest.raises(PassError, match="no MatMul") as caught:
        run_pass("quantize-dynamic", squared, tmp_path)

    assert caught.value.where == "pass quantize-dynamic"


def test_head_of_a_convolutional_model_is_quantized_and_its_convolutions_stay(resnet: Path, tmp_path: Path) -> None:
    before = run_pass("export-onnx", artifact_of(resnet, "image-classification"), tmp_path)

    after = run_pass("quantize-dynamic", before, tmp_path)

    assert "Conv" in operators(after)
    assert len(int8_weights(after)) == 1
    assert close(before, after, image_feeds(3), 0.1)


@pytest.mark.parametrize(
    "architecture", ["DistilBertForSequenceClassification", "RobertaForSequenceClassification", "BertForTokenClassification"]
)
def test_whole_recipe_runs_on_other_architectures(architecture: str, tmp_path: Path) -> None:
    task = "token-classification" if "Token" in architecture else "text-classification"
    exported = run_pass("export-onnx", artifact_of(write_text_model(tmp_path / "model", architecture), task), tmp_path)

    after = run_pass("quantize-dynamic", run_pass("optimize-graph", exported, tmp_path), tmp_path)

    assert large_floats(after) == []
    assert close(exported, after, text_feeds(after, 3, 16, padded=True), 0.15)


def test_pruned_and_optimised_model_is_quantized(reviews: Data, tmp_path: Path) -> None:
    model = artifact_of(write_text_model(tmp_path / "model", "BertForSequenceClassification"))
    exported = run_pass("export-onnx", run_pass("prune-heads", model, tmp_path, data=reviews, ratio=0.375), tmp_path)

    after = run_pass("quantize-dynamic", run_pass("optimize-graph", exported, tmp_path), tmp_path)

    assert "QAttention" in operators(after)
    assert close(exported, after, text_feeds(after, 3, 16, padded=True), 0.15)


def test_weights_beside_the_graph_are_quantized(optimised: Artifact, tmp_path: Path) -> None:
    import onnx

    (tmp_path / "beside").mkdir()
    onnx.save_model(
        onnx.load(optimised.model.main_file),
        tmp_path / "beside" / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=256,
    )
    before = optimised.with_component("model", onnx_component(tmp_path / "beside"))
    assert len(before.model.files) == 2

    after = run_pass("quantize-dynamic", before, tmp_path)

    assert large_floats(after) == []
    assert close(before, after, text_feeds(after), 0.1)


def test_session_settings_of_the_optimiser_travel_on(exported: Artifact, tmp_path: Path) -> None:
    optimised = run_pass("optimize-graph", exported, tmp_path, fusions={"SkipLayerNormalization": False})

    after = run_pass("quantize-dynamic", optimised, tmp_path)

    assert after.program["session"]["disabled_optimizers"] == ["SkipLayerNormFusion"]


def test_same_model_gives_the_same_bytes(optimised: Artifact, tmp_path: Path) -> None:
    first, second = (run_pass("quantize-dynamic", optimised, tmp_path) for _ in range(2))

    assert first.digest == second.digest


def test_checks_tell_what_batching_changes(optimised: Artifact, reviews: Data, tmp_path: Path) -> None:
    done = run_done("quantize-dynamic", optimised, tmp_path, data=reviews)

    checks = {check["name"]: check for check in done.checks}
    assert checks["batch-invariant"]["value"] > 0  # activation scales are taken over the whole batch
    assert checks["batch-invariant"]["limit"] is None
    assert checks["same-as-unoptimised"]["held"]
