"""Scaling channels: outputs stay, ranges move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgepipe.quantization.awq import scale_by_activations
from edgepipe.quantization.equalization import equalize
from edgepipe.quantization.rounding import Grid, quantize
from edgepipe.quantization.scaling import Scaling
from edgepipe.quantization.smooth import smooth, smoothing_factors
from tests.quantization.graphs import WIDTH, close, convolutions, graph_of, images, part, run, statistics, transformer, written

GRID = Grid(4, True, 4)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def feeds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((2, 5, WIDTH)).astype(np.float32)}


def test_smoothing_keeps_outputs_and_tames_the_wild_channel(tmp_path: Path, rng: np.random.Generator, feeds: dict[str, np.ndarray]) -> None:
    model = transformer(residual=False, rng=rng)
    graph = graph_of(tmp_path, model)
    known = statistics(model, feeds, ["normal", "mixed", "between", "active"], -1)
    changed = smooth(graph, part(known, "max"))
    after = written(graph, tmp_path)
    assert close(run(after, feeds), run(model, feeds))
    # What the residual Add gives has no place for a factor; the others have.
    assert {one.tensor: one.folded_into for one in changed} == {"normal": "norm", "mixed": "attention", "active": "up"}
    ours = statistics(after, feeds, ["normal"], -1)["normal"]["max"]
    assert ours.max() / np.median(ours) < 0.5 * known["normal"]["max"].max() / np.median(known["normal"]["max"])
    assert np.allclose(ours, known["normal"]["max"] / changed[0].factors, rtol=1e-4)
    assert len(after.graph.node) == len(model.graph.node)


def test_what_a_residual_reads_is_left_or_gets_a_mul(tmp_path: Path, rng: np.random.Generator, feeds: dict[str, np.ndarray]) -> None:
    model = transformer(residual=True, rng=rng)
    known = statistics(model, feeds, ["normal", "between"], -1)
    left = smooth(graph_of(tmp_path / "left", model), part(known, "max"))
    assert left == []
    graph = graph_of(tmp_path / "put", model)
    put = smooth(graph, part(known, "max"), insert=True)
    after = written(graph, tmp_path)
    assert [one.folded_into for one in put] == ["", ""] and {one.tensor for one in put} == {"normal", "between"}
    assert close(run(after, feeds), run(model, feeds))
    read = statistics(after, feeds, [put[0].read_as], -1)[put[0].read_as]["max"]
    assert np.allclose(read, known["normal"]["max"] / put[0].factors, rtol=1e-4)


def test_only_named_nodes_are_smoothed(tmp_path: Path, rng: np.random.Generator, feeds: dict[str, np.ndarray]) -> None:
    model = transformer(residual=False, rng=rng)
    changed = smooth(graph_of(tmp_path, model), part(statistics(model, feeds, ["normal", "active"], -1), "max"), nodes=["down"])
    assert [one.sites for one in changed] == [("down",)]


def test_a_vector_that_layers_share_is_scaled_for_one_only(tmp_path: Path, rng: np.random.Generator, feeds: dict[str, np.ndarray]) -> None:
    model = transformer(residual=False, rng=rng)
    graph = graph_of(tmp_path, model)
    before = graph.array("shared").copy()
    smooth(graph, part(statistics(model, feeds, ["normal"], -1), "max"))
    assert np.array_equal(graph.array("shared"), before)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_factors_follow_the_paper_and_skip_dead_channels(alpha: float) -> None:
    factors = smoothing_factors(np.array([4.0, 0.0, 1.0]), np.array([1.0, 2.0, 0.0]), alpha)
    assert factors.tolist() == [4.0**alpha, 1.0, 1.0]


@pytest.mark.parametrize("with_hessian", [True, False])
def test_awq_keeps_outputs_and_loses_less_of_them_at_four_bits(
    tmp_path: Path, rng: np.random.Generator, feeds: dict[str, np.ndarray], with_hessian: bool
) -> None:
    model = transformer(residual=False, rng=rng)
    known = statistics(model, feeds, ["normal", "mixed", "active"], -1)
    graph = graph_of(tmp_path, model)
    changed = scale_by_activations(graph, part(known, "magnitude"), GRID, part(known, "hessian") if with_hessian else None)
    after = written(graph, tmp_path)
    assert close(run(after, feeds), run(model, feeds))
    assert "normal" in {one.tensor for one in changed}
    errors = []
    for candidate in (model, after):
        weight = next(onnx.numpy_helper.to_array(t) for t in candidate.graph.initializer if t.name == "qkv")
        inputs = run(candidate, feeds, ("normal",))[0]
        errors.append(np.abs(inputs @ (quantize("nearest", weight, GRID).dequantized() - weight)).mean())
    assert errors[1] < 0.8 * errors[0]


def test_awq_with_a_mul_keeps_outputs(tmp_path: Path, rng: np.random.Generator, feeds: dict[str, np.ndarray]) -> None:
    model = transformer(residual=True, rng=rng)
    graph = graph_of(tmp_path, model)
    changed = scale_by_activations(graph, part(statistics(model, feeds, ["normal"], -1), "magnitude"), GRID, insert=True)
    assert [one.tensor for one in changed] == ["normal"] and changed[0].folded_into == ""
    assert close(run(written(graph, tmp_path), feeds), run(model, feeds))


def test_equalization_keeps_outputs_and_evens_out_ranges(tmp_path: Path, rng: np.random.Generator) -> None:
    model, feeds = convolutions(rng), images(rng)
    graph = graph_of(tmp_path, model)
    changed = equalize(graph)
    after = written(graph, tmp_path)
    assert close(run(after, feeds), run(model, feeds))
    # Not across the HardSwish: it is not proportional to what goes in.
    assert [(one.folded_into, *one.sites) for one in changed] == [
        ("plain", "depthwise"),
        ("depthwise", "grouped"),
        ("grouped", "pointwise"),
    ]
    spreads = []
    for candidate in (model, after):
        ranges = np.abs(next(onnx.numpy_helper.to_array(t) for t in candidate.graph.initializer if t.name == "w2")).max((1, 2, 3))
        spreads.append(ranges.max() / ranges.min())
    assert spreads[1] < 0.5 * spreads[0]


def test_equalized_neighbours_have_equal_ranges(tmp_path: Path, rng: np.random.Generator) -> None:
    graph = graph_of(tmp_path, convolutions(rng))
    equalize(graph)
    scaling = Scaling(graph)
    for sites in [sites for tensor, sites in scaling.activations().items() if tensor in ("r1", "p2", "r3")]:
        fold = scaling.fold_of(sites[0].data, sites)
        assert fold is not None
        assert np.allclose(scaling.output_peaks(fold), scaling.input_peaks(sites), rtol=0.05)


def test_dead_channels_survive_equalization(tmp_path: Path, rng: np.random.Generator) -> None:
    model, feeds = convolutions(rng), images(rng)
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "w3"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[1] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    graph = graph_of(tmp_path, model)
    changed = equalize(graph)
    assert all(np.isfinite(one.factors).all() for one in changed)
    assert close(run(written(graph, tmp_path), feeds), run(model, feeds))


def test_smoothing_of_convolutions_keeps_outputs(tmp_path: Path, rng: np.random.Generator) -> None:
    model, feeds = convolutions(rng), images(rng)
    graph = graph_of(tmp_path, model)
    changed = smooth(graph, part(statistics(model, feeds, ["image", "r1", "p2", "r3", "h4"], 1), "max"), insert=True)
    assert {one.tensor: bool(one.folded_into) for one in changed} == {"image": False, "r1": True, "p2": True, "r3": True, "h4": False}
    assert close(run(written(graph, tmp_path), feeds), run(model, feeds))
