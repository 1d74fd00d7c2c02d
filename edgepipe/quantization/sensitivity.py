"""How far a model's outputs move when one layer alone is quantized, for each layer in turn.

One session serves all layers: each weight is an input of the graph whose default is the float32 weight, and each layer's
activation passes an If that rounds it when its flag is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.errors import DataError, PassError, UsageError
from edgepipe.quantization.changed_model import editable, name_nodes, open_changed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    Feeds = Mapping[str, np.ndarray]

OPSET = 11  # the first with DynamicQuantizeLinear
FLAG = "edgepipe_rounds:"


@dataclass(frozen=True, slots=True)
class Probe:
    """A layer, and what quantizing it would make of its weight and of the activation that it takes.

    `dequantized` gives the rounded weight in the shape the model stores, and is asked once, when the layer's turn comes.
    The activation is rounded to uint8 in a fixed range, or in each sample's own ("dynamic"), or not at all (None).
    """

    node: str
    weight: str
    dequantized: Callable[[], np.ndarray]
    activation: str | None = None
    range: tuple[float, float] | Literal["dynamic"] | None = None


@dataclass(frozen=True, slots=True)
class Divergence:
    """Between the outputs of the float32 model and of the model with one layer quantized, over samples.

    Of several outputs, a sample counts the one that moved most.
    """

    cosine: float  # mean of 1 − cos
    normalised_mse: float  # mean of |a − b|² / |a|²
    worst_cosine: float  # of any sample
    samples: int


def sensitivities(
    model_path: Path,
    sites: Sequence[Probe],
    feeds: Sequence[Feeds],
    *,
    threads: int = 1,
    disabled_optimizers: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Divergence]:
    """The divergence of each layer by node name; layers in the body of an If, Loop or Scan are left out.

    Raises `UsageError` for a rounded weight of another shape, `PassError` for an opset below 11.
    """
    if not feeds:
        raise DataError("there are no samples to compare outputs on", where="calibration data", fix="give it samples")
    model = editable(model_path)
    shapes = _weights_as_inputs(model, {site.weight for site in sites})
    nodes = name_nodes(model)
    found = [site for site in sites if site.node in nodes and site.weight in shapes]
    for index, site in enumerate(found):
        if site.activation is not None and site.range is not None:
            _round_on_demand(model, nodes[site.node], site, f"{FLAG}{index}")
    outputs = [value.name for value in model.graph.output]
    session = open_changed(model, model_path.parent, threads=threads, disabled_optimizers=disabled_optimizers)
    expected = [session.run(outputs, dict(sample)) for sample in feeds]
    result = {}
    for index, site in enumerate(found):
        if progress:
            progress("measuring sensitivity", index, len(found))
        changed = _changed_inputs(site, shapes[site.weight], index)
        gaps = [_gap(known, session.run(outputs, {**sample, **changed})) for sample, known in zip(feeds, expected, strict=True)]
        cosines, errors = zip(*gaps, strict=True)
        result[site.node] = Divergence(sum(cosines) / len(gaps), sum(errors) / len(gaps), max(cosines), len(gaps))
    return result


def _weights_as_inputs(model: Any, names: set[str]) -> dict[str, tuple[int, ...]]:
    """Make main-graph constants inputs with a default; gives the shape of each that is there."""
    import onnx

    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] in names]:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.node.remove(node)
    shapes = {}
    for tensor in graph.initializer:
        if tensor.name in names:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
            shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def _round_on_demand(model: Any, node: Any, site: Probe, flag: str) -> None:
    """Have `node` take its activation through an If, whose condition is an input that is false by default."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if opset < OPSET:
        raise PassError(
            f"opset {opset} is too old for measuring sensitivity, which needs {OPSET}",
            where="the model",
            fix=f"export it with opset {OPSET} or newer",
        )
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(False), flag))
    graph.input.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, []))
    taken = f"{flag}:taken"
    plain = helper.make_graph(
        [helper.make_node("Identity", [site.activation], [f"{flag}:plain"])], "plain", [], [_untyped(f"{flag}:plain")]
    )
    rounded = helper.make_graph(_rounding(site, flag), "rounded", [], [_untyped(f"{flag}:rounded")])
    branch = helper.make_node("If", [flag], [taken], name=flag, then_branch=rounded, else_branch=plain)
    graph.node.insert(list(graph.node).index(node), branch)
    for place, name in enumerate(node.input):
        if name == site.activation:
            node.input[place] = taken


def _untyped(name: str) -> Any:
    """A value whose type the runtime finds."""
    import onnx

    return onnx.ValueInfoProto(name=name)


def _rounding(site: Probe, flag: str) -> list[Any]:
    import numpy as np
    import onnx
    from onnx.helper import make_node

    codes, scale, zero, result = (f"{flag}:{part}" for part in ("codes", "scale", "zero", "rounded"))
    back = make_node("DequantizeLinear", [codes, scale, zero], [result])
    if site.range == "dynamic":
        return [make_node("DynamicQuantizeLinear", [site.activation], [codes, scale, zero]), back]
    assert isinstance(site.range, tuple)
    low, high = min(site.range[0], 0.0), max(site.range[1], 0.0)
    step = np.float32((high - low) / 255) or np.float32(1)
    place = np.uint8(np.clip(np.rint(-low / step), 0, 255))
    constants = [
        make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(value), name))
        for name, value in ((scale, step), (zero, place))
    ]
    return [*constants, make_node("QuantizeLinear", [site.activation, scale, zero], [codes]), back]


def _changed_inputs(site: Probe, shape: tuple[int, ...], index: int) -> dict[str, np.ndarray]:
    import numpy as np

    weight = np.ascontiguousarray(site.dequantized(), np.float32)
    if weight.shape != shape:
        raise UsageError(
            f"a rounded weight of shape {list(weight.shape)} for one of {list(shape)}", where=f'node "{site.node}"', fix="give it as stored"
        )
    flag = {f"{FLAG}{index}": np.array(True)} if site.activation is not None and site.range is not None else {}
    return {site.weight: weight, **flag}


def _gap(expected: Sequence[Any], actual: Sequence[Any]) -> tuple[float, float]:
    """(1 − cosine, normalised squared error) of the float output that moved most."""
    import numpy as np

    worst = (0.0, 0.0)
    for known, given in zip(expected, actual, strict=True):
        if not isinstance(known, np.ndarray) or known.dtype.kind != "f" or known.size == 0:
            continue
        if known.shape != given.shape or not np.isfinite(given).all():
            return 2.0, float("inf")
        a, b = known.astype(np.float64).ravel(), given.astype(np.float64).ravel()
        size, other = float(a @ a), float(b @ b)
        cosine = float(a @ b) / (size * other) ** 0.5 if size > 0 and other > 0 else float(size == other)
        error = float(((a - b) ** 2).sum())
        worst = max(worst, (max(0.0, 1 - cosine), error / size if size > 0 else error))
    return worst
