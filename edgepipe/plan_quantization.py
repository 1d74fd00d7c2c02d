"""The planner's part on quantization: which schemes the device's own kernel costs speak for, with their numbers.

What is planned here from the table of kernel costs is measured on the model's own layers when it is built (`tune`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgepipe.quantization.sites import QUANTIZED, SMALLEST_TABLE
from edgepipe.weights import all_nodes, load_onnx, safetensors_header

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.cost.table import CostTable
    from edgepipe.profile import Profile

TOKENS = 128  # that kernel costs are looked up for
SIDE = 28  # of the images that they are looked up for
PAYS = 1.03  # times float32's speed: what counting is uncertain by
Shape = tuple[int, ...]


def step(name: str, reason: str, **options: Any) -> dict[str, Any]:
    return {"pass": name, "reason": reason, "options": options}


def quantization(
    artifact: Artifact, profile: Profile, costs: CostTable | None, *, calibrated: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """(steps, what was left out and why)."""
    weights = weights_of(artifact)
    steps: list[dict[str, Any]] = []
    left_out: list[str] = []
    kinds = {"product": ("MatMul", "Gemm", "Attention"), "convolution": ("Conv",), "recurrent": ("LSTM",), "table": ("Gather",)}
    schemes: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for kind in (kind for kind in kinds if weights.get(kind)):
        scheme, why, without = _scheme(kind, weights[kind], profile, costs, calibrated=calibrated)
        left_out += without
        schemes.setdefault(scheme, []).extend(kinds[kind])
        reasons.setdefault(scheme, []).append(why)
    for scheme in ("quantize-static", "quantize-dynamic", "quantize-weights"):
        if scheme in schemes:
            options: dict[str, Any] = {"operators": schemes[scheme]}
            if scheme == "quantize-weights":
                options |= {"bits": 8, "group_size": 0, "kernel": "float32", "operators": [*schemes[scheme], "ConvTranspose"]}
            steps.append(step(scheme, "; ".join(reasons[scheme]), **options))
    if steps and profile.cpu.int8_saturates:
        left_out.append(
            f"full range for all weights: {profile.cpu.model} has no VNNI, so sums of u8 × s8 saturate at 16 bits (cpu.isa); layers that do get 7 bits"
        )
    return steps, left_out


def _scheme(kind: str, shapes: list[Shape], profile: Profile, costs: CostTable | None, *, calibrated: bool) -> tuple[str, str, list[str]]:
    """(pass, reason, what was left out) for layers of one kind, by the costs of the kernel nearest to the largest of them."""
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    if kind == "table":
        return "quantize-dynamic", "tables in 8 bits are 4 × smaller, and looked up, not computed", []
    if kind == "recurrent":
        return "quantize-dynamic", "recurrent layers have int8 kernels with scales taken at run time only", []
    kernel, shape = ("matmul", (TOKENS, *largest)) if kind == "product" else ("conv", _convolution(largest))
    static, dynamic, four = (_quoted(costs, kernel, precision, shape) for precision in ("int8-static", "int8-dynamic", "int4"))
    noun = "products" if kind == "product" else "convolutions"
    left_out = []
    if four and kind == "product":
        left_out.append(f"4-bit kernels: {four[1]} on {profile.cpu.model}; taken where the size budget asks for 4 bits")
    if calibrated and (static is None or static[0] >= PAYS):
        told = f": {static[1]} on {profile.cpu.model} (kernel costs, {costs.source})" if static and costs else ""
        if dynamic:
            left_out.append(f"scales taken at run time for {noun}: {dynamic[1]}, and neighbours in a batch would move the outputs")
        return "quantize-static", f"int8 {noun} with scales from calibration data{told}", left_out
    if kind == "product" and (dynamic is None or dynamic[0] >= PAYS):
        told = f": {dynamic[1]} on {profile.cpu.model} (kernel costs, {costs.source})" if dynamic and costs else ""
        return "quantize-dynamic", f"int8 {noun} with scales taken at run time{told}", left_out
    best = static if calibrated else dynamic
    why = f"int8 is {best[1]}" if best else "scales taken at run time cost more than they gain, and there is no calibration data"
    return "quantize-weights", f"{noun} in float32, their weights stored in 8 bits and expanded at load: {why}", left_out


def _convolution(weight: Shape) -> Shape:
    """(channels in, out, side, kernel, groups) of a weight [in / groups · kernel², out]."""
    inside, out, size, groups = (*weight, 1, 1)[:4] if len(weight) < 4 else weight[:4]
    return (inside * groups, out, SIDE, size, groups)


def _quoted(costs: CostTable | None, kernel: str, precision: str, shape: Shape) -> tuple[float, str] | None:
    found = costs.speedup(kernel, precision, shape) if costs else None
    if found is None:
        return None
    size = "×".join(map(str, found[0][1:])) if kernel == "matmul" else f"{found[0][3]}×{found[0][3]}, {found[0][0]}→{found[0][1]}"
    return found[1], f"{precision} {size} {found[1]:.1f} × float32's speed"


def is_quantized(artifact: Artifact) -> bool:
    """Whether nothing is left to quantize: the graph has quantized nodes, and no float32 weights beside them."""
    if artifact.model.format != "onnx":
        return False
    nodes = Counter(node.op_type for node in all_nodes(load_onnx(artifact.model.main_file).graph))
    return any(nodes[name] for name in QUANTIZED) and not any(weights_of(artifact).values())


def weights_of(artifact: Artifact) -> dict[str, list[Shape]]:
    """Shapes of float32 weights by kind: products [k, n], convolutions [in / groups, out, kernel, groups], tables, recurrent."""
    if artifact.model.format == "onnx":
        return _onnx_weights(artifact)
    found: dict[str, list[Shape]] = {}
    image = artifact.program["preprocess"]["kind"] == "image"
    for ref in artifact.model.files:
        for info in safetensors_header(ref.location) if ref.path.endswith(".safetensors") else ():
            if len(info.shape) == 4:
                groups = info.shape[0] if info.shape[1] == 1 and info.shape[0] > 1 else 1
                found.setdefault("convolution", []).append((info.shape[1], info.shape[0], info.shape[2], groups))
            elif len(info.shape) == 2:  # torch keeps [out, in]
                kind = "table" if "embed" in info.name and not image else "product"
                found.setdefault(kind, []).append((info.shape[1], info.shape[0]))
    return found


def _onnx_weights(artifact: Artifact) -> dict[str, list[Shape]]:
    model = load_onnx(artifact.model.main_file)
    dims: dict[str, Shape] = {}
    found: dict[str, list[Shape]] = {}
    for graph in _graphs(model.graph):
        dims |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == 1}
        dims |= {n.output[0]: tuple(a.t.dims) for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.t.data_type == 1}
    for node in all_nodes(model.graph):
        shape = dims.get(node.input[1], ()) if len(node.input) > 1 else ()
        if node.op_type in ("MatMul", "Gemm", "Attention") and len(shape) == 2:
            found.setdefault("product", []).append(shape)
        elif node.op_type == "Conv" and len(shape) >= 3:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            found.setdefault("convolution", []).append((shape[1], shape[0], shape[2], groups))
        elif node.op_type == "LSTM" and shape:
            found.setdefault("recurrent", []).append(shape[1:])
        elif node.op_type == "Gather" and len(table := dims.get(node.input[0], ())) == 2 and table[0] * table[1] >= SMALLEST_TABLE:
            found.setdefault("table", []).append(table)
    return found


def _graphs(graph: Any) -> list[Any]:
    inner = [
        one for node in graph.node for a in node.attribute for one in (*([a.g] if a.HasField("g") else ()), *a.graphs)
    ]  # fmt: skip
    return [graph, *(below for one in inner for below in _graphs(one))]
