"""Memory that fits: the least a model needs where it runs, so that one that cannot fit is refused before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ResourceError

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact, Component
    from edgepipe.profile import Profile

RUNTIME_BYTES = 20_000_000  # private memory of Python with numpy and onnxruntime before a model is loaded: 22.1 MB measured
SMALLEST_BITS = 4  # per weight: what compression can bring a model to at the most


@dataclass(frozen=True, slots=True)
class Need:
    """The least memory that loading and running takes, in bytes; the peak is above it."""

    weights_bytes: int
    activations_bytes: int
    runtime_bytes: int = RUNTIME_BYTES

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.activations_bytes + self.runtime_bytes


def least_memory(artifact: Artifact, *, compressed: bool = True) -> Need:
    """What the artifact needs at the least. `compressed` False: it is still to be, so weights count 4 bits each.

    Weights are counted once (tables that are mapped and only looked up in, not at all), and of activations the inputs
    and outputs of one node at the longest input. Nothing runs and no weights are read.
    """
    components = artifact.components.values()
    if not compressed:
        return Need(sum(component.parameters for component in components) * SMALLEST_BITS // 8, 0)
    weights = sum(component.size_bytes - _looked_up(component) for component in components)
    return Need(weights, _largest_node(artifact) if artifact.program["kind"] == "single" and artifact.model.format == "onnx" else 0)


def check_fits(artifact: Artifact, profile: Profile, *, compressed: bool = True) -> None:
    """Raises `ResourceError` (exit 6) when the model cannot run in the device's memory, whatever else lives there.

    Not exit 13: that is a budget which a measured peak broke, and there is nothing to measure here.
    """
    need, ram = least_memory(artifact, compressed=compressed), profile.memory.ram_bytes
    if need.total_bytes <= ram:
        return
    state = "" if compressed else f", even at {SMALLEST_BITS} bits a weight"
    raise ResourceError(
        f"the model needs at least {need.total_bytes / 1e6:,.0f} MB to load and run{state} (weights {need.weights_bytes / 1e6:,.0f},"
        f" activations {need.activations_bytes / 1e6:,.0f}, runtime {need.runtime_bytes / 1e6:,.0f}); {profile.title} has {ram / 1e6:,.0f} MB",
        where=", ".join(str(component.main_file) for component in artifact.components.values()),
        fix="compress it further, shorten its inputs, or choose a device with more memory",
    )


def _looked_up(component: Component) -> int:
    """Bytes of tables in a file of their own of which Gather reads rows: pages that are not read stay out of memory."""
    import onnx

    from edgepipe.weights import all_nodes, load_onnx

    if component.format != "onnx":
        return 0
    graph = load_onnx(component.main_file).graph
    uses = [(name, node.op_type == "Gather" and index == 0) for node in all_nodes(graph) for index, name in enumerate(node.input)]
    read = {name for name, looked_up in uses if not looked_up}
    tables = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL and t.name not in read]
    return sum(int(entry.value) for tensor in tables for entry in tensor.external_data if entry.key == "length")


def _largest_node(artifact: Artifact) -> int:
    """Bytes of the inputs and outputs of the node that has most of them, at the longest input; values of unknown shape count nothing."""
    import onnx

    from edgepipe.probes import fixed_feeds
    from edgepipe.weights import load_onnx

    shapes = {name: value.shape for name, value in fixed_feeds(artifact, 1, artifact.program["preprocess"].get("max_length", 1)).items()}
    model = load_onnx(artifact.model.main_file)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > 1024:  # large ones say nothing about shapes
            for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(kind)
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx raises errors of several kinds; a bound may leave activations out
        return 0
    weights = {tensor.name for tensor in model.graph.initializer}
    known = {value.name: _bytes(value) for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    names = [{*node.input, *node.output} - weights for node in model.graph.node]
    return max((sum(known.get(name, 0) for name in group) for group in names), default=0)


def _bytes(value: Any) -> int:
    import onnx

    kind = value.type.tensor_type
    if not kind.elem_type or kind.elem_type == onnx.TensorProto.STRING or any(dim.dim_value <= 0 for dim in kind.shape.dim):
        return 0
    count = math.prod(dim.dim_value for dim in kind.shape.dim)
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)
