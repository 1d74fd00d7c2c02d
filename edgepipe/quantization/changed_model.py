"""Sessions of changed copies of a model: the graph is changed in memory, weights in external files stay where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.driver import driver_module
from edgepipe.weights import load_onnx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INLINE_VALUES = 256  # shape inference reads small tensors, such as axes, and cannot read them from a file
OLDEST_IR = 4  # below it, initializers are inputs


def editable(path: Path) -> Any:
    """The model's graph without its large external weights, to be changed and given to `open_changed`."""
    import math

    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    from edgepipe.weights import all_tensors

    model = load_onnx(path)
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL and math.prod(tensor.dims) <= INLINE_VALUES:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            tensor.ClearField("external_data")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, OLDEST_IR)
    return model


def name_nodes(model: Any) -> dict[str, Any]:
    """Nodes of the main graph by name; those without one are named as `graph.Graph` names them."""
    from edgepipe.weights import all_nodes

    seen: set[str] = set()
    for node in all_nodes(model.graph):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}:{node.output[0]}"
        seen.add(node.name)
    return {node.name: node for node in model.graph.node}


def open_changed(
    model: Any,
    folder: Path,
    *,
    threads: int,
    disabled_optimizers: Sequence[str] = (),
    basic: bool = False,
    plain: bool = False,
    exact: bool = False,
    arena: bool = True,
    prepacked: bool = False,
) -> Any:
    """A session of `editable`'s result, whose external weights lie in `folder`; the model given is emptied.

    `basic` leaves out fusions that would keep a value inside one kernel, `plain` all rewriting; without `arena` memory is
    given back after each run; `exact` is that of `open_session` in devices/driver.py; `prepacked` has kernels lay weights out as
    they like them, which copies them.
    """
    import onnxruntime

    options, disabled = driver_module().session_options(threads, disabled_optimizers, not plain, exact)
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    # Unpacked, external weights are mapped and take no memory of the process: 0.04 instead of 1.1 GB for a model of 1.07 GB.
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepacked)))
    if basic and not plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    text = model.SerializeToString()
    model.Clear()  # or weights inside the graph would be held once more while the runtime reads them
    return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
