"""A position that is picked at the end is picked before the row-wise nodes in front of it, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgepipe.artifact import Artifact
from edgepipe.rewrites.row_selection import pick_rows_early
from tests.models import write_sentence_encoder, write_text_model
from tests.onnx_models import make_model
from tests.passes.running import artifact_of, outputs, run_pass, text_feeds
from tests.quantization.graphs import graph_of, inputs_of, run, written

WIDTH, TOKENS = 8, 6


def moved(model: Any, folder: Path) -> tuple[int, Any]:
    graph = graph_of(folder, model)
    count = pick_rows_early(graph)
    after = written(graph, folder)
    onnx.checker.check_model(after)
    return count, after


def head(
    nodes: list[Any], weights: dict[str, np.ndarray], value: str, *, index: Any = 0, others: tuple[str, ...] = (), inputs: Any = ()
) -> Any:
    rng = np.random.default_rng(0)
    weights = {
        "up": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32), "bias": rng.standard_normal(WIDTH).astype(np.float32),
        "gamma": rng.standard_normal(WIDTH).astype(np.float32), "index": np.array(index), **weights,
    }  # fmt: skip
    nodes = [
        *nodes,
        helper.make_node("Gather", [value, "index"], ["picked"], name="pick", axis=1),
        helper.make_node("Tanh", ["picked"], ["y"]),
    ]
    rank = 2 if np.ndim(index) == 0 else 3
    ends = [inputs_of("y", (None,) * rank), *(inputs_of(name, (None,) * 3) for name in others)]
    return make_model(nodes, [inputs_of("x", ("batch", TOKENS, WIDTH)), *inputs], ends, weights)


def block() -> list[Any]:
    """A product, a bias, a ReLU, the residual and a normalization, of x [batch, tokens, 8]."""
    return [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="up"),
        helper.make_node("Add", ["h", "bias"], ["b"], name="bias"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "x"], ["s"], name="residual"),
        helper.make_node("LayerNormalization", ["s", "gamma"], ["n"], name="norm"),
    ]


def feeds(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((3, TOKENS, WIDTH)).astype(np.float32), **more}


def same(before: Any, after: Any, inputs: dict[str, np.ndarray]) -> bool:
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(run(after, inputs), run(before, inputs), strict=True))


@pytest.mark.parametrize("index", [0, 3, -1])
def test_row_wise_nodes_work_on_the_picked_position_only(index: int, tmp_path: Path) -> None:
    before = head(block(), {}, "n", index=index)

    count, after = moved(before, tmp_path)

    assert count == 5
    assert same(before, after, feeds())
    assert run(after, feeds(), ("n",))[0].shape == (3, WIDTH)


def test_what_others_read_stays_whole(tmp_path: Path) -> None:
    before = head(block(), {}, "n", others=("r",))

    count, after = moved(before, tmp_path)

    assert count == 2  # the residual and the normalization
    assert same(before, after, feeds())


def test_several_positions_are_not_one(tmp_path: Path) -> None:
    assert moved(head(block(), {}, "n", index=[0, 1]), tmp_path)[0] == 0


def test_what_mixes_positions_is_where_it_stops(tmp_path: Path) -> None:
    nodes = [*block(), helper.make_node("Softmax", ["n"], ["p"], name="mix", axis=1), helper.make_node("Relu", ["p"], ["q"], name="last")]
    before = head(nodes, {}, "q")

    count, after = moved(before, tmp_path)

    assert count == 1
    assert same(before, after, feeds())


def test_normalization_over_positions_too_is_left(tmp_path: Path) -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "both"], ["n"], name="norm", axis=1)]
    before = head(nodes, {"both": np.ones((TOKENS, WIDTH), np.float32)}, "n")

    assert moved(before, tmp_path)[0] == 0


def test_constant_for_each_position_is_left(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "positions"], ["n"], name="add")]
    before = head(nodes, {"positions": np.random.default_rng(2).standard_normal((TOKENS, WIDTH)).astype(np.float32)}, "n", index=2)

    count, after = moved(before, tmp_path)

    assert count == 0
    assert same(before, after, feeds())


@pytest.mark.parametrize("shape", [(TOKENS, WIDTH), (1, 1, WIDTH), (WIDTH,)])
def test_activation_of_another_shape_is_left(shape: tuple[int, ...], tmp_path: Path) -> None:
    """A value for each position without a batch, as position embeddings are: its second axis is no position."""
    nodes = [helper.make_node("Add", ["x", "p"], ["n"], name="add")]
    before = head(nodes, {}, "n", index=2, inputs=[inputs_of("p", shape)])

    count, after = moved(before, tmp_path)

    assert count == 0
    assert same(before, after, feeds(p=np.random.default_rng(3).standard_normal(shape).astype(np.float32)))


def test_position_that_is_computed_is_left(tmp_path: Path) -> None:
    before = head(block(), {}, "n")
    del before.graph.initializer[[t.name for t in before.graph.initializer].index("index")]
    before.graph.input.append(helper.make_tensor_value_info("index", 7, []))

    count, after = moved(before, tmp_path)

    assert count == 0
    assert same(before, after, feeds(index=np.array(1)))


def picks_before_last_product(artifact: Artifact) -> bool:
    """Whether fewer than all positions go through the last layer's second product."""
    model = onnx.load(artifact.model.main_file)
    names = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    found = run(model, text_feeds(artifact, 2, 9), tuple(names[-4:]))
    return any(
        values.ndim == 2 and "classifier" not in name and "pooler" not in name for name, values in zip(names[-4:], found, strict=True)
    )


@pytest.mark.parametrize("fused", [True, False])
def test_text_classifier_reads_its_first_token_only(fused: bool, classifier: Path, tmp_path: Path) -> None:
    exported = run_pass("export-onnx", artifact_of(classifier), tmp_path)

    after = run_pass("optimize-graph", exported, tmp_path, fusions={"SkipLayerNormalization": fused})

    assert picks_before_last_product(after)
    assert not picks_before_last_product(exported)
    for inputs in (text_feeds(after, 1, 9), text_feeds(after, 3, 16, padded=True)):
        assert np.allclose(outputs(after, inputs), outputs(exported, inputs), atol=1e-4)


def test_mean_over_all_tokens_keeps_all(tmp_path: Path) -> None:
    model = write_sentence_encoder(tmp_path / "model")
    before = run_pass("export-onnx", artifact_of(model, "sentence-similarity"), tmp_path)

    after = run_pass("optimize-graph", before, tmp_path)

    assert not picks_before_last_product(after)
    inputs = text_feeds(after, 3, 16, padded=True)
    assert np.allclose(outputs(after, inputs), outputs(before, inputs), atol=1e-4)


def test_labels_for_every_token_keep_all(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model", "BertForTokenClassification")
    before = run_pass("export-onnx", artifact_of(model, "token-classification"), tmp_path)

    after = run_pass("optimize-graph", before, tmp_path)

    assert not picks_before_last_product(after)
