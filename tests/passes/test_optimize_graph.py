"""optimize-graph: fewer, fused operators that compute the same; which ones is decided by cost, or by the user."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepipe.errors import UsageError
from tests.models import write_text_model
from tests.passes.running import artifact_of, image_feeds, operators, outputs, run_done, run_pass, text_feeds

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.artifact import Artifact
    from edgepipe.config import Data

OPTIMIZERS = {"Attention": "AttentionFusion", "SkipLayerNormalization": "SkipLayerNormFusion", "BiasGelu": "BiasGeluFusion"}
PER_LAYER = {"Attention": 1, "SkipLayerNormalization": 2, "BiasGelu": 1}


def assert_same_numbers(before: Artifact, after: Artifact) -> None:
    for feeds in (text_feeds(before, 1, 1), text_feeds(before, 1, 40), text_feeds(before, 4, 12, padded=True)):
        expected = outputs(before, feeds, optimise=False)
        np.testing.assert_allclose(outputs(after, feeds), expected, atol=1e-5)
        np.testing.assert_allclose(outputs(after, feeds, optimise=False), expected, atol=1e-5)


def test_every_fusion_is_taken_where_nothing_was_measured(exported: Artifact, optimised: Artifact) -> None:
    kinds = operators(optimised)

    assert {name: kinds.count(name) for name in PER_LAYER} == {name: 2 * count for name, count in PER_LAYER.items()}
    assert len(kinds) < len(operators(exported)) / 2
    assert optimised.program["session"]["disabled_optimizers"] == []
    assert_same_numbers(exported, optimised)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fusion_forced_off_is_gone_and_stays_gone_when_the_session_loads(name: str, exported: Artifact, tmp_path: Path) -> None:
    after = run_pass("optimize-graph", exported, tmp_path, fusions={name: False})

    kinds = operators(after)
    assert name not in kinds
    assert all(other in kinds for other in OPTIMIZERS if other != name)
    assert after.program["session"]["disabled_optimizers"] == [OPTIMIZERS[name]]
    assert name not in loaded_operators(after, tmp_path)
    assert_same_numbers(exported, after)


def loaded_operators(artifact: Artifact, workdir: Path) -> list[str]:
    """What a session made with the artifact's own settings really runs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(workdir / "loaded.onnx")
    options.log_severity_level = 3
    disabled = artifact.program["session"]["disabled_optimizers"]
    onnxruntime.InferenceSession(str(artifact.model.main_file), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    return [node.op_type for node in onnx.load(workdir / "loaded.onnx").graph.node]


def test_fusion_left_apart_without_the_setting_would_be_fused_again(exported: Artifact, tmp_path: Path) -> None:
    after = run_pass("optimize-graph", exported, tmp_path, fusions={"BiasGelu": False}).with_program(session={"disabled_optimizers": []})

    assert "BiasGelu" not in operators(after)
    assert "BiasGelu" in loaded_operators(after, tmp_path)


def test_all_fusions_off_still_folds_constants(exported: Artifact, tmp_path: Path) -> None:
    after = run_pass("optimize-graph", exported, tmp_path, fusions=dict.fromkeys(OPTIMIZERS, False))

    assert not set(OPTIMIZERS) & set(operators(after))
    assert len(operators(after)) < len(operators(exported))
    assert_same_numbers(exported, after)


@pytest.mark.parametrize(("cost", "fused"), [(2.5, False), (0.8, True)])
def test_measured_cost_decides(cost: float, fused: bool, exported: Artifact, tmp_path: Path) -> None:
    after = run_pass("optimize-graph", exported, tmp_path, costs={"SkipLayerNormalization": cost})

    assert ("SkipLayerNormalization" in operators(after)) is fused
    assert ("SkipLayerNormFusion" not in after.program["session"]["disabled_optimizers"]) is fused


def test_the_user_overrules_the_measured_cost(exported: Artifact, tmp_path: Path) -> None:
    after = run_pass(
        "optimize-graph", exported, tmp_path, costs={"BiasGelu": 9.0, "Attention": 0.1}, fusions={"BiasGelu": True, "Attention": False}
    )

    assert "BiasGelu" in operators(after)
    assert "Attention" not in operators(after)


def test_unknown_fusion_names_the_nearest(exported: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SkipLayerNormalisation") as caught:
        run_pass("optimize-graph", exported, tmp_path, fusions={"SkipLayerNormalisation": False})

    assert caught.value.exit_code == 2
    assert 'did you mean "SkipLayerNormalization"?' in str(caught.value)


def test_convolutional_model_has_its_batch_normalisation_folded(resnet: Path, tmp_path: Path) -> None:
    import onnxruntime  # the exporter folds what it can, so the batch normalisation is put behind a fresh convolution

    before = conv_and_batch_norm(run_pass("export-onnx", artifact_of(resnet, "image-classification"), tmp_path), tmp_path)
    assert "BatchNormalization" in operators(before)

    after = run_pass("optimize-graph", before, tmp_path)

    assert "BatchNormalization" not in operators(after)
    assert "Conv" in operators(after)
    assert "SkipLayerNormalization" not in operators(after)
    plain = onnxruntime.InferenceSession(str(before.model.main_file)).run(None, image_feeds(3))[0]
    np.testing.assert_allclose(outputs(after, image_feeds(3)), plain, atol=1e-5)


def conv_and_batch_norm(artifact: Artifact, workdir: Path) -> Artifact:
    """The same model with a batch normalisation behind its first convolution."""
    import onnx

    from edgepipe.weights import onnx_component

    folder = workdir / "with-batch-norm"
    folder.mkdir()
    model = onnx.load(artifact.model.main_file)
    at = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Conv")
    conv = model.graph.node[at]
    channels = next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == conv.input[1])
    rng = np.random.default_rng(0)
    for name in ("gamma", "beta", "mean", "variance"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.uniform(0.5, 1.5, channels).astype(np.float32), name))
    output = conv.output[0]
    conv.output[0] = "raw"
    model.graph.node.insert(at + 1, onnx.helper.make_node("BatchNormalization", ["raw", "gamma", "beta", "mean", "variance"], [output]))
    onnx.save(model, folder / "model.onnx")
    return artifact.with_component("model", onnx_component(folder))


def test_vision_transformer_stays_equal(vit: Path, tmp_path: Path) -> None:
    before = run_pass("export-onnx", artifact_of(vit, "image-classification"), tmp_path)

    after = run_pass("optimize-graph", before, tmp_path)

    assert len(operators(after)) < len(operators(before))
    for batch in (1, 5):
        np.testing.assert_allclose(outputs(after, image_feeds(batch)), outputs(before, image_feeds(batch), optimise=False), atol=1e-5)


def beside(artifact: Artifact, folder: Path) -> Artifact:
    """The same model with its weights in a file beside the graph."""
    import onnx

    from edgepipe.weights import onnx_component

    folder.mkdir()
    model = onnx.load(artifact.model.main_file)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=256)
    return artifact.with_component("model", onnx_component(folder))


def test_weights_beside_the_graph_of_a_transformer_come_along(exported: Artifact, tmp_path: Path) -> None:
    before = beside(exported, tmp_path / "beside")
    assert len(before.model.files) == 2

    after = run_pass("optimize-graph", before, tmp_path)

    assert_same_numbers(before, after)
    assert_same_numbers(before, moved(after, tmp_path / "elsewhere"))


def test_weights_beside_the_graph_of_a_convolutional_model_come_along(resnet: Path, tmp_path: Path) -> None:
    before = beside(run_pass("export-onnx", artifact_of(resnet, "image-classification"), tmp_path), tmp_path / "beside")

    after = moved(run_pass("optimize-graph", before, tmp_path), tmp_path / "elsewhere")

    np.testing.assert_allclose(outputs(after, image_feeds()), outputs(before, image_feeds()), atol=1e-5)


def moved(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact's own files alone, in another place."""
    from edgepipe.weights import onnx_component

    folder.mkdir()
    for ref in artifact.model.files:
        shutil.copy(ref.location, folder / ref.path)
    return artifact.with_component("model", onnx_component(folder))


def test_pruned_model_with_unlike_layers_is_fused_and_stays_equal(reviews: Data, tmp_path: Path) -> None:
    model = artifact_of(write_text_model(tmp_path / "model", "BertForSequenceClassification"))
    pruned = run_pass("prune-heads", model, tmp_path, data=reviews, ratio=0.375)
    before = run_pass("export-onnx", run_pass("prune-ffn", pruned, tmp_path, data=reviews, ratio=0.25), tmp_path)

    after = run_pass("optimize-graph", before, tmp_path)

    heads = attention_heads(after)
    assert sum(heads) == 5
    assert heads[0] != heads[1]
    assert_same_numbers(before, after)


def attention_heads(artifact: Artifact) -> list[int]:
    import onnx

    nodes = onnx.load(artifact.model.main_file).graph.node
    return [next(a.i for a in node.attribute if a.name == "num_heads") for node in nodes if node.op_type == "Attention"]


@pytest.mark.parametrize(
    "architecture", ["DistilBertForSequenceClassification", "MPNetForSequenceClassification", "DebertaV2ForSequenceClassification"]
)
def test_families_with_attention_of_their_own_stay_equal(architecture: str, tmp_path: Path) -> None:
    before = run_pass("export-onnx", artifact_of(write_text_model(tmp_path / "model", architecture)), tmp_path)

    after = run_pass("optimize-graph", before, tmp_path)

    assert len(operators(after)) < len(operators(before))
    assert_same_numbers(before, after)


def test_sentence_encoder_stays_equal_and_normalised(sentence_encoder: Path, tmp_path: Path) -> None:
    before = run_pass("export-onnx", artifact_of(sentence_encoder, "sentence-similarity"), tmp_path)

    after = run_pass("optimize-graph", before, tmp_path)

    assert "Attention" in operators(after)
    assert_same_numbers(before, after)
    np.testing.assert_allclose(np.linalg.norm(outputs(after, text_feeds(after)), axis=1), 1, atol=1e-5)


def test_embedding_table_stays_where_quantization_finds_it(optimised: Artifact) -> None:
    assert "Gather" in operators(optimised)
    assert "EmbedLayerNormalization" not in operators(optimised)


def test_the_same_graph_gives_the_same_bytes(exported: Artifact, tmp_path: Path) -> None:
    first, second = (run_pass("optimize-graph", exported, tmp_path) for _ in range(2))

    assert first.digest == second.digest


def test_checks_compare_with_the_exported_and_with_the_plain_session(exported: Artifact, tmp_path: Path) -> None:
    checks = {check["name"]: check for check in run_done("optimize-graph", exported, tmp_path).checks}

    assert all(check["held"] for check in checks.values())
    assert {"close-outputs", "same-as-unoptimised", "same-signature"} <= set(checks)
