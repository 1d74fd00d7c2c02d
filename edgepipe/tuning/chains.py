"""Which convolutions are worth computing in 8 bits, given that codes pass from one to the next.

Alone, a convolution on codes pays for turning floats into codes and back, which its neighbours in 8 bits would spare it.
So whole sets are compared: every convolution, and those that win on codes alone; what counts is the time of the regions
that change, everything between the convolutions with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.quantization.cutting import FLOAT, QUANTIZED, cut_regions, real_values
from edgepipe.quantization.nested import Nested
from edgepipe.quantization.static import scale_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from edgepipe.artifact import Artifact
    from edgepipe.quantization.sites import Site

    Feeds = Mapping[str, np.ndarray]
    Graphs = dict[str, tuple[Any, dict[str, np.ndarray]]]
    Ask = Callable[[Graphs], Mapping[str, float]]

CODES = "codes"
WORTH = 0.03  # of the regions' float32 time


def chain_costs(
    artifact: Artifact, sites: Mapping[str, Site], quantized: Callable[[list[str]], Artifact], feeds: Feeds, ask: Ask
) -> dict[str, dict[str, float]]:
    """{convolution: {"float32": ms, "int8-static": ms}}; without the second for those that are to stay float32.

    `quantized` makes an artifact with the named ones in 8 bits, `ask` gives the milliseconds of graphs on the target.
    """
    convolutions = {name: site for name, site in sites.items() if site.operator == "Conv"}
    graphs = alone(artifact, convolutions, feeds)
    ms = ask(graphs)
    found = {name: {"float32": ms[f"{name}/{FLOAT}"]} for name in convolutions if f"{name}/{FLOAT}" in ms}
    winners = [name for name in found if ms[f"{name}/{CODES}"] < ms[f"{name}/{FLOAT}"]]
    best: dict[str, float] = {}
    saved = 0.0
    for names in (list(found), winners):
        if not names:
            continue
        gains, before, after = _regions(artifact, quantized(names), feeds, ask)
        kept = {name: gains[name] for name in names if name in gains}
        if before - after > max(saved, WORTH * before):
            best, saved = kept, before - after
    for name, ratio in best.items():
        found[name]["int8-static"] = found[name]["float32"] * ratio
    return found


def _regions(artifact: Artifact, other: Artifact, feeds: Feeds, ask: Ask) -> tuple[dict[str, float], float, float]:
    """(time on codes over time on floats by node of the regions that win, both totals of those)."""
    cuts = cut_regions(artifact.model.main_file, other.model.main_file, feeds)
    ms = ask(cuts.graphs)
    gains: dict[str, float] = {}
    before, after = 0.0, 0.0
    for name, region in cuts.regions.items():
        floats, codes = ms[f"{name}/{FLOAT}"], ms[f"{name}/{QUANTIZED}"]
        if codes < floats:
            before, after = before + floats, after + codes
            gains |= dict.fromkeys(region.sites, codes / floats)
    return gains, before, after


def alone(artifact: Artifact, sites: Mapping[str, Site], feeds: Feeds) -> Graphs:
    """`<site>/float32` and `<site>/codes`: each convolution by itself, at the shape a real run gives it; the second takes codes
    and gives codes."""
    import numpy as np

    model = Nested(artifact.model.main_file)
    nodes = {node.name: index for index, node in enumerate(model.nodes)}
    reads = {name: model.inputs[nodes[name]][0] for name in sites}
    arrays = real_values(model, set(reads.values()), feeds)
    graphs: Graphs = {}
    for name, site in sites.items():
        if reads[name] in arrays:
            node, values = model.nodes[nodes[name]], arrays[reads[name]].astype(np.float32)
            graphs[f"{name}/{FLOAT}"] = _float(node, site, values)
            graphs[f"{name}/{CODES}"] = _codes(node, site, values)
    return graphs


def _float(node: Any, site: Site, values: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    import numpy as np

    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal(site.shape).astype(np.float32), "b": np.zeros(site.n, np.float32)}
    return _model([_convolution(node, ["x", "w", "b"], "y")], values, constants)


def _codes(node: Any, site: Site, values: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    import numpy as np
    from onnx.helper import make_node

    rng = np.random.default_rng(0)
    scale = scale_of(float(values.min()), float(values.max()))
    constants: dict[str, np.ndarray] = {
        "xs": np.array(scale.scale, np.float32), "xz": np.array(scale.zero_point, np.uint8),
        "wq": rng.integers(-127, 128, site.shape).astype(np.int8), "ws": np.full(site.n, 0.01, np.float32), "wz": np.zeros(site.n, np.int8),
        "bq": np.zeros(site.n, np.int32), "bs": np.full(site.n, 0.01 * scale.scale, np.float32), "bz": np.zeros(site.n, np.int32),
        "ys": np.array(1.0, np.float32), "yz": np.array(128, np.uint8),
    }  # fmt: skip
    nodes = [
        make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
        make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bd"], axis=0),
        _convolution(node, ["xd", "wd", "bd"], "c"),
        make_node("QuantizeLinear", ["c", "ys", "yz"], ["y"]),
    ]
    codes = np.clip(np.rint(values / scale.scale) + scale.zero_point, 0, 255).astype(np.uint8)
    return _model(nodes, codes, constants)


def _convolution(node: Any, inputs: list[str], output: str) -> Any:
    from onnx.helper import make_node

    made = make_node("Conv", inputs, [output], name="convolution")
    made.attribute.extend(node.attribute)
    return made


def _model(nodes: list[Any], values: np.ndarray, constants: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    import onnx
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    graph = helper.make_graph(
        nodes, "convolution", [helper.make_tensor_value_info("x", kind, values.shape)], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=min(onnx.IR_VERSION, 8)), {"x": values}
