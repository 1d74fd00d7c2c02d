"""Regions of a quantized model: found, cut out whole, and running as they do in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepipe.driver import driver_module
from edgepipe.quantization.cutting import cut_regions
from edgepipe.quantization.dynamic import DynamicActivations, to_dynamic
from edgepipe.quantization.graph import Graph
from edgepipe.quantization.nested import Nested
from edgepipe.quantization.regions import find_regions
from edgepipe.quantization.site_pairs import cut_sites
from edgepipe.quantization.sites import find_sites
from edgepipe.quantization.weights8 import Rounding
from tests.onnx_models import write_external
from tests.quantization.graphs import spared
from tests.quantization.models import conv_chain, dynamic, feed_forward, in_a_branch, save, static

if TYPE_CHECKING:
    from pathlib import Path


def outputs(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(driver_module().open_session(model.SerializeToString(), optimise=False).run(None, feeds))


def nearly(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() < 0.2 * np.abs(a).max())


def test_dynamic_products_are_regions_with_what_follows_them(tmp_path: Path) -> None:
    model, feeds = feed_forward()
    before = save(model, tmp_path / "float.onnx")
    after = dynamic(before, tmp_path / "int8.onnx")

    cuts = cut_regions(before, after, feeds)

    sites = [region.sites for region in cuts.regions.values()]
    assert sites == [
        ("up-0", "up-bias-0", "tanh-0"), ("down-0", "down-bias-0"), ("up-1", "up-bias-1", "tanh-1"), ("down-1", "down-bias-1"),
    ]  # fmt: skip
    assert not cuts.uncut
    assert set(cuts.graphs) == {f"{name}/{variant}" for name in cuts.regions for variant in ("float32", "quantized")}


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("build", [conv_chain, feed_forward])
def test_twins_take_and_give_the_same(tmp_path: Path, build: Any, kind: str) -> None:
    model, feeds = build()
    before = save(model, tmp_path / "float.onnx")
    after = tmp_path / "int8.onnx"
    static(before, feeds, after) if kind == "static" else dynamic(before, after)

    cuts = cut_regions(before, after, feeds)

    assert cuts.regions
    for name in cuts.regions:
        (ours, given), (theirs, same) = (cuts.graphs[f"{name}/{variant}"] for variant in ("float32", "quantized"))
        assert given.keys() == same.keys()
        assert [value.name for value in ours.graph.output] == [value.name for value in theirs.graph.output]
        assert all(nearly(a, b) for a, b in zip(outputs(ours, given), outputs(theirs, same), strict=True))


def test_every_node_that_differs_is_in_exactly_one_region(tmp_path: Path) -> None:
    model, feeds = conv_chain()
    before = save(model, tmp_path / "float.onnx")
    after = static(before, feeds, tmp_path / "int8.onnx", nodes_to_quantize=["pointwise"])

    (region,) = find_regions(Nested(before), Nested(after))

    assert "pointwise" in region.sites
    assert not {"first", "relu", "depthwise"} & set(region.sites)


def test_model_differs_from_itself_nowhere(tmp_path: Path) -> None:
    model, feeds = in_a_branch()
    path = save(model, tmp_path / "float.onnx")

    assert cut_regions(path, path, feeds).graphs == {}


def test_region_in_a_branch_is_cut_out_of_it_and_one_not_reached_is_named(tmp_path: Path) -> None:
    model, feeds = in_a_branch()
    before = save(model, tmp_path / "float.onnx")
    graph = Graph(before, tmp_path)
    activations = DynamicActivations(graph)
    sites = find_sites(graph)
    for name, site in sites.items():
        to_dynamic(graph, next(node for node in graph.nodes if node.name == name), site, Rounding(reduced=spared(sites)), activations)
    graph.apply()
    (tmp_path / "int8").mkdir()
    graph.write(tmp_path / "int8")

    cuts = cut_regions(before, tmp_path / "int8" / "model.onnx", {**feeds, "sure": np.array(False)})

    assert set(cuts.regions) == {"product-w0", "product-w1", "again-w1"}  # what the first ones read is outside
    assert cuts.uncut == {"again-w0": "the value r is not reached"}
    (ours, given), (theirs, _) = (cuts.graphs[f"product-w1/{variant}"] for variant in ("float32", "quantized"))
    assert [node.op_type for node in ours.graph.node] == ["MatMul", "Relu"]
    assert "MatMulInteger" in [node.op_type for node in theirs.graph.node]
    assert all(nearly(a, b) for a, b in zip(outputs(ours, given), outputs(theirs, given), strict=True))


def test_weights_in_a_file_beside_the_model_come_along(tmp_path: Path) -> None:
    before = write_external(tmp_path / "model")
    after = dynamic(before, tmp_path / "int8.onnx")
    feeds = {name: np.ones((1, 4), np.int64) for name in ("input_ids", "attention_mask")}

    cuts = cut_regions(before, after, feeds)

    assert any("classify" in region.sites for region in cuts.regions.values())
    assert all(np.isfinite(value).all() for model, given in cuts.graphs.values() for value in outputs(model, given))


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_single_sites_are_cut_with_their_ends(tmp_path: Path, kind: str) -> None:
    model, feeds = conv_chain()
    before = save(model, tmp_path / "float.onnx")
    after = tmp_path / "int8.onnx"
    static(before, feeds, after) if kind == "static" else dynamic(before, after)

    pairs = cut_sites(before, after, ["first", "depthwise", "pointwise"], feeds)

    assert set(pairs.spans) == {"first", "depthwise", "pointwise"}
    for name in pairs.spans:
        (ours, given), (theirs, _) = (pairs.graphs[f"{name}/{variant}"] for variant in ("float32", "quantized"))
        assert all(nearly(a, b) for a, b in zip(outputs(ours, given), outputs(theirs, given), strict=True))
