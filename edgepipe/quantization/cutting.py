"""Regions as small models of their own, float32 and quantized side by side, with inputs as one real run has them."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.quantization.nested import Nested
from edgepipe.quantization.regions import Region, find_regions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from edgepipe.quantization.nested import Value

    Graphs = dict[str, tuple[Any, dict[str, np.ndarray]]]

FLOAT, QUANTIZED = "float32", "quantized"
SMALL = 1024  # values
TYPES = {"float": "float32", "double": "float64"}  # the profile's names of types, where numpy has another


@dataclass(frozen=True, slots=True)
class Cuts:
    """Graphs to ask the costs of, by `<region>/<variant>`, and why the other regions have none."""

    regions: dict[str, Region]
    graphs: Graphs
    uncut: dict[str, str]  # float32 node → reason


def cut_regions(before: Path, after: Path, feeds: Mapping[str, np.ndarray]) -> Cuts:
    """Both models' regions as graphs `<region>/float32` and `<region>/quantized`, named after the region's first node.

    `feeds` are one sample's inputs of the float32 model, which runs once, here, for the shapes: give a small image for a
    model of large ones. A region in a branch that the sample does not take has no shapes, and is left uncut.
    """
    ours, theirs = Nested(before), Nested(after)
    found = find_regions(ours, theirs)
    arrays = real_values(ours, {value for region in found for value in region.inputs}, feeds)
    regions: dict[str, Region] = {}
    graphs: Graphs = {}
    uncut: dict[str, str] = {}
    for region in found:
        unknown = next((value[1] for value in region.inputs if value not in arrays), "")
        trouble = region.trouble or (f"the value {unknown} is not reached" if unknown else "")
        if trouble:
            uncut |= dict.fromkeys(region.sites, trouble)
            continue
        name = region.sites[0]
        regions[name] = region
        given = {value: arrays[value] for value in region.inputs}
        for variant, model, nodes in ((FLOAT, ours, region.before), (QUANTIZED, theirs, region.after)):
            graphs[f"{name}/{variant}"] = standalone(model, nodes, given, region.outputs)
    return Cuts(regions, graphs, uncut)


def standalone(
    model: Nested, nodes: Iterable[int], given: Mapping[Value, np.ndarray], outputs: Iterable[Value]
) -> tuple[Any, dict[str, np.ndarray]]:
    """(an ONNX model of those nodes with its weights, its inputs). Every given value is an input, read or not."""
    import onnx
    from onnx import helper

    chosen = sorted(set(nodes))
    inside = {value for index in chosen for value in model.outputs[index]}
    read = dict.fromkeys(value for index in chosen for value in model.inputs[index] if value not in inside and value not in given)
    constants = [model.tensor(value) for value in read if value in model.constants]
    made_of = [model.producer[value] for value in read if value not in model.constants and value in model.producer]  # Constant nodes
    graph = helper.make_graph(
        [model.nodes[index] for index in (*dict.fromkeys(made_of), *chosen)],
        "region",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for (_, name), array in given.items()],
        [helper.make_empty_tensor_value_info(name) for _, name in outputs],
        constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid(entry.domain, entry.version) for entry in model.model.opset_import]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=min(model.model.ir_version, onnx.IR_VERSION))
    return made, {name: array for (_, name), array in given.items()}


def real_values(model: Nested, wanted: Iterable[Value], feeds: Mapping[str, np.ndarray]) -> dict[Value, np.ndarray]:
    """What the values are in one unoptimised run. Inside bodies a run tells shapes and types only, so floats there are
    random, and what is no float stays unknown."""
    import numpy as np
    import onnx
    import onnxruntime

    asked = set(wanted)
    found = {value: np.asarray(feeds[value[1]]) for value in asked if value[0] == 0 and value[1] in feeds}
    outside = sorted(name for scope, name in asked if scope == 0 and (scope, name) not in found)
    probed = onnx.ModelProto()
    probed.CopyFrom(model.model)
    for tensor in probed.graph.initializer:  # shapes are inferred from small ones, which must not lie in a file for that
        if tensor.data_location == onnx.TensorProto.EXTERNAL and math.prod(tensor.dims) <= SMALL:
            tensor.CopyFrom(model.tensor((0, tensor.name)))
    known = {value.name for value in probed.graph.output}
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outside if name not in known)
    with tempfile.TemporaryDirectory(prefix="edgepipe-regions-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found |= (
            {(0, name): np.asarray(array) for name, array in zip(outside, session.run(outside, dict(feeds)), strict=True)}
            if outside
            else {}
        )
        if not outside:
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    shapes = _shapes(model, events)
    rng = np.random.default_rng(0)
    for value in sorted(asked - set(found)):
        dtype, shape = shapes.get(value, ("", ()))
        if dtype.startswith("float"):
            found[value] = rng.standard_normal(shape).astype(dtype)
    return found


def _shapes(model: Nested, events: Iterable[Mapping[str, Any]]) -> dict[Value, tuple[str, tuple[int, ...]]]:
    """(type, shape) of what nodes read and give, from the runtime's profile."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_name.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["args"])
    found: dict[Value, tuple[str, tuple[int, ...]]] = {}
    for index, node in enumerate(model.nodes):
        ran = by_name.get(node.name, ()) if node.name else ()
        for told in list(ran)[:1]:
            read = [model.resolve(model.scopes[index], name) for name in node.input if name]
            for values, types in ((read, told["input_type_shape"]), (model.outputs[index], told["output_type_shape"])):
                for value, entry in zip(values, types, strict=False):
                    ((dtype, shape),) = entry.items()
                    found[value] = TYPES.get(dtype, dtype), tuple(shape)
    return found
