"""An ONNX graph as a phone's runtime shows it to its providers: optimised at the basic level, with types, shapes and arithmetic."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.accelerators import Graph, Tensor
from edgepipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepipe.artifact import Artifact


@dataclass(frozen=True, slots=True)
class Optimised:
    model: Any
    graph: Graph
    work: Mapping[str, int]  # operations of the node that makes a value, where it was run


def optimised(artifact: Artifact, shapes: Mapping[str, tuple[int, ...]], feeds: Mapping[str, Any]) -> Optimised:
    """The model after the runtime's basic optimisations, with `shapes` fixed; run once where there are `feeds`."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed, optimize_model

    from edgepipe.weights import all_tensors, load_onnx

    source = artifact.model.main_file
    external = {tensor.name for tensor in all_tensors(load_onnx(source)) if tensor.data_location == onnx.TensorProto.EXTERNAL}
    with tempfile.TemporaryDirectory(prefix="edgepipe-mobile-") as folder:
        path, basic = Path(folder) / "fixed.onnx", Path(folder) / "basic.onnx"
        try:
            if shapes:
                model = load_onnx(source, data=True)
                for name, shape in shapes.items():
                    make_input_shape_fixed(model.graph, name, list(shape))
                onnx.save_model(model, path, save_as_external_data=True, location="fixed.data")
            optimize_model(path if shapes else source, basic, use_external_initializers=True)
            model = onnx.shape_inference.infer_shapes(onnx.load(str(basic), load_external_data=False), data_prop=True)
            ran, work = _run(basic, feeds) if feeds else ({}, {})
        except ModelError:
            raise
        except Exception as error:  # the runtime's errors have no base of their own
            where = f"{source} with inputs of {dict(shapes)}" if shapes else str(source)
            raise ModelError(
                f"cannot be prepared for phones: {str(error).splitlines()[0]}", where=where, fix="export the model again"
            ) from None
    return Optimised(model, _graph(model, external, ran), work)


def _run(path: Path, feeds: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Type and shape of every value, and operations of every node by the value it makes, from one run."""
    import onnx
    import onnxruntime

    from edgepipe.cost.flops import node_flops

    model = onnx.load(str(path), load_external_data=False)
    for index, node in enumerate(model.graph.node):  # names are optional, and need not be unique
        node.name = f"node-{index}"
    named = path.with_name("named.onnx")
    onnx.save(model, str(named))
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_name("profile"))
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(named), options, providers=["CPUExecutionProvider"])
    session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = {node.name: node for node in model.graph.node}
    tensors, work = {}, {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") != "Node" or name not in nodes or name == event["name"]:
            continue
        made = [output for output in nodes[name].output if output]
        for output, entry in zip(made, event["args"].get("output_type_shape", []), strict=False):
            dtype, shape = next(iter(entry.items()))
            tensors[output] = Tensor({"float": "float32", "double": "float64"}.get(dtype, dtype), tuple(shape))
        if made:
            work[made[0]] = node_flops(event["args"])
    return tensors, work


def _graph(model: Any, external: set[str], ran: Mapping[str, Tensor]) -> Graph:
    from onnx import helper

    values = dict(ran)
    for info in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        kind = info.type.tensor_type
        if not kind.elem_type:
            continue
        dims = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim) if kind.HasField("shape") else None
        if info.name not in values:
            values[info.name] = Tensor(helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)
    for tensor in model.graph.initializer:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        values[tensor.name] = Tensor(dtype, tuple(tensor.dims), constant=True, external=tensor.name in external)
    producers = {output: node for node in model.graph.node for output in node.output}
    return Graph(values, producers, {entry.domain or "ai.onnx": entry.version for entry in model.opset_import})
