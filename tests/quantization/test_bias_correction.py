"""Biases take back what rounding shifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgepipe.quantization.bias_correction import correct_biases
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.rounding import Grid, quantize
from edgepipe.quantization.sites import find_sites, matrix_of
from tests.onnx_models import make_model
from tests.quantization.graphs import WIDTH, convolutions, graph_of, inputs_of, part, run, statistics, transformer, written


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def quantized_in_place(graph: Graph, bits: int) -> dict[str, np.ndarray]:
    """Every site's rounded weight by node."""
    rounded = {}
    for name, site in find_sites(graph).items():
        weight = matrix_of(graph, graph.producer[site.output], site)
        rounded[name] = quantize("nearest", weight, Grid(bits, True, -1)).dequantized()
    return rounded


@pytest.mark.parametrize("kind", ["images", "text"])
def test_bias_correction_takes_back_the_shift_of_the_means(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    if kind == "images":
        model, axis, tensors = convolutions(rng), 1, ["image", "r1", "p2", "r3", "h4"]
        feeds = {"image": 1 + rng.standard_normal((4, 3, 9, 9)).astype(np.float32)}
    else:
        model, axis, tensors = transformer(residual=False, rng=rng), -1, ["normal", "mixed", "between", "active"]
        feeds = {"x": rng.standard_normal((2, 50, WIDTH)).astype(np.float32)}
    means = part(statistics(model, feeds, tensors, axis), "mean")
    shifts = []
    for corrected in (False, True):
        graph = graph_of(tmp_path / str(corrected), model)
        sites, rounded = find_sites(graph), quantized_in_place(graph, 4)
        if corrected:
            done = correct_biases(graph, means, {name: lambda value=value: value for name, value in rounded.items()})
            assert set(done) == set(sites) - {"down"}  # a MatMul without an Add has no bias
        for name, site in sites.items():
            stored = rounded[name].T if site.kind == "convolution" else rounded[name]
            graph.set_constant(site.weight, np.ascontiguousarray(stored.reshape(site.shape)))
        after = written(graph, tmp_path / str(corrected))
        # The first site's output: nothing before it has moved.
        first = next(iter(sites.values())).output
        before, now = run(model, feeds, (first,))[0], run(after, feeds, (first,))[0]
        inner = (..., slice(1, -1), slice(1, -1)) if kind == "images" else ...
        axes = tuple(i for i in range(before.ndim) if i != axis % before.ndim)
        shifts.append(np.abs((now[inner] - before[inner]).mean(axes)).max())
    assert shifts[1] < 0.3 * shifts[0] if kind == "images" else shifts[1] <= shifts[0]


def test_bias_correction_is_exact_for_products(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = {"w": rng.standard_normal((WIDTH, 4)).astype(np.float32), "b": rng.standard_normal(4).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], name="product"), helper.make_node("Add", ["p", "b"], ["y"], name="add")]
    model = make_model(nodes, [inputs_of("x", (None, WIDTH))], [inputs_of("y", (None, 4))], weights)
    feeds = {"x": (2 + rng.standard_normal((30, WIDTH))).astype(np.float32)}
    graph = graph_of(tmp_path, model)
    rounded = quantized_in_place(graph, 2)["product"]
    assert correct_biases(graph, {"x": feeds["x"].mean(0)}, {"product": lambda: rounded}) == ["product"]
    graph.set_constant("w", rounded)
    assert np.allclose(run(written(graph, tmp_path), feeds)[0].mean(0), run(model, feeds)[0].mean(0), atol=1e-4)
