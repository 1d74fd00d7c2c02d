"""The planner: model × profile → recipe, with a reason and the profile's fact on every line, and what it left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgepipe.config import Recipe
from edgepipe.cost.table import load_table
from edgepipe.errors import UsageError
from edgepipe.weights import all_nodes, load_onnx, safetensors_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.cost.table import CostTable
    from edgepipe.profile import Profile

TOKENS = 128  # that kernel costs are looked up for
MAPPED_SHARE = 0.02  # of the device's memory: smaller models are not worth a second file
WORTH_QUANTIZING = 0.05  # of the weights; below that the file hardly shrinks


def plan(artifact: Artifact, profile: Profile) -> Recipe:
    """The recipe for this model on this profile. Raises `UsageError` for a table of kernel costs that is damaged."""
    costs = load_table(profile)
    steps: list[dict[str, Any]] = []
    left_out = [
        "prune-heads, prune-ffn: cutting weights costs accuracy that only re-training earns back; ask for them in a recipe",
    ]
    adapters = [role for role, component in artifact.components.items() if component.format == "peft"]
    if adapters:
        steps.append(
            _step(
                "merge-lora",
                f"{len(adapters)} adapter{'s' if len(adapters) > 1 else ''}: merged weights need no extra products at run time",
            )
        )
    else:
        left_out.append("merge-lora: no adapter is given")
    torch_in = artifact.model.format == "torch"
    if torch_in:
        steps.append(_step("export-onnx", f"{profile.runtime.name} {profile.runtime.version} on {profile.name} runs ONNX (runtime.name)"))
    else:
        left_out.append("export-onnx: the model is ONNX already")
    if is_quantized(artifact):
        left_out.append("optimize-graph, quantize-dynamic: the model is quantized already")
    else:
        where = f"on {profile.cpu.model} (kernel costs, {costs.source})" if costs else "on this machine"
        steps.append(_step("optimize-graph", f"constants folded, and of the fusions those that pay {where}"))
        share = quantizable_share(artifact)
        if share >= WORTH_QUANTIZING:
            steps.append(_quantize(profile, _quoted(costs, artifact, profile, "int8-dynamic", "int8 MatMul")))
        else:
            left_out.append(
                f"quantize-dynamic: only {share:.0%} of the weights are in matrix products or tables, and convolutions "
                f"with activation scales taken at run time lose to float32 on {profile.cpu.model} (cpu.model)"
            )
    if _maps_weights(profile, artifact, steps):
        large = f"{MAPPED_SHARE:.0%} of {profile.memory.ram_bytes / 1e9:.1f} GB (memory.ram_bytes)"
        steps.append(_step("map-weights", f"weights over {large} are mapped from their file instead of read: a lower peak"))
    left_out.append(_four_bit(profile, _quoted(costs, artifact, profile, "int4", "MatMulNBits")))
    if not steps:
        raise UsageError(
            "there is nothing to do: the model is ONNX and quantized already", where="plan", fix="name the passes you want with --recipe"
        )
    return Recipe.model_validate({"step": steps, "left_out": left_out})


def _step(name: str, reason: str, **options: Any) -> dict[str, Any]:
    return {"pass": name, "reason": reason, "options": options}


def _maps_weights(profile: Profile, artifact: Artifact, steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether weights in a file of their own are worth a second file. No browser maps files; CoreML takes no such weights."""
    if profile.runtime.name != "onnxruntime" or profile.cpu.model.startswith("apple-"):
        return False
    each = 1 if any(step["pass"] == "quantize-dynamic" for step in steps) else 4
    return artifact.model.parameters * each > MAPPED_SHARE * profile.memory.ram_bytes


def _quoted(costs: CostTable | None, artifact: Artifact, profile: Profile, precision: str, title: str) -> str:
    """What the device's kernel costs say of a precision, at the tabled product that is nearest to the model's heaviest."""
    shape = _heaviest_product(artifact)
    found = costs.speedup("matmul", precision, (TOKENS, *shape)) if costs and shape else None
    if costs is None or found is None:
        return ""
    (_, k, n), speedup = found
    return f"{title} {k}×{n}: {speedup:.1f} × float32's speed on {profile.cpu.model} (kernel costs, {costs.source})"


def _heaviest_product(artifact: Artifact) -> tuple[int, int] | None:
    """(k, n) of the largest weight of a matrix product; tables of embeddings are none."""
    if artifact.model.format == "onnx":
        graph = load_onnx(artifact.model.main_file).graph
        sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2}
        shapes = [sizes[name] for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input if name in sizes]
    else:
        infos = [info for ref in artifact.model.files if ref.path.endswith(".safetensors") for info in safetensors_header(ref.location)]
        # torch keeps [out, in]
        shapes = [(info.shape[1], info.shape[0]) for info in infos if len(info.shape) == 2 and "embed" not in info.name]
    return max(shapes, key=lambda shape: shape[0] * shape[1], default=None)


def _quantize(profile: Profile, quoted: str) -> dict[str, Any]:
    cpu = profile.cpu
    if cpu.int8_saturates:
        reason = f"int8 is 4 × smaller; {cpu.model} has no VNNI, so u8 × s8 sums saturate at 16 bits and weights get 7 bits (cpu.isa)"
        return _step("quantize-dynamic", reason, per_channel=True, reduce_range=True)
    if cpu.int8_dot_product:
        feature = next(flag for flag in ("i8mm", "asimddp", "avx512_vnni", "avx_vnni", "wasm_relaxed_simd") if flag in cpu.isa)
        reason = f"int8 is 4 × smaller, and {cpu.model} multiplies it with dot products ({feature} in cpu.isa): full range is exact"
    elif cpu.arch == "wasm32":
        reason = f"int8 is 4 × smaller to download; {profile.title} has 128-bit SIMD without dot products (cpu.isa), which sums in 32 bits"
    else:
        reason = f"int8 is 4 × smaller; {cpu.model} has no dot products (no asimddp in cpu.isa), so the gain in speed is small; sums are 32 bits wide, so full range is exact"
    reason += f"; {quoted}" if quoted else ""
    return _step("quantize-dynamic", reason, per_channel=True, reduce_range=False)


def _four_bit(profile: Profile, quoted: str) -> str:
    why = "no pass for it yet" if profile.cpu.int8_dot_product else "needs int8 dot products to pay, which are not in cpu.isa"
    return f"4-bit weights: {why}" + (f"; {quoted}" if quoted else "")


def is_quantized(artifact: Artifact) -> bool:
    from edgepipe.passes.quantize_dynamic import QUANTIZED

    if artifact.model.format != "onnx":
        return False
    integer = {*QUANTIZED, "QLinearConv", "QLinearMatMul", "DequantizeLinear"}
    return any(node.op_type in integer for node in all_nodes(load_onnx(artifact.model.main_file).graph))


def quantizable_share(artifact: Artifact) -> float:
    """Share of the weights that dynamic int8 reaches: those of matrix products, recurrent layers and tables."""
    if artifact.model.format != "onnx":
        return 1.0 if artifact.program["preprocess"]["kind"] != "image" else _linear_share(artifact)
    from edgepipe.passes.quantize_dynamic import OPERATORS

    graph = load_onnx(artifact.model.main_file).graph
    sizes: dict[str, int] = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    sizes |= {
        node.output[0]: math.prod(a.t.dims) for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")
    }
    reached = {name for node in graph.node if node.op_type in OPERATORS for name in node.input if sizes.get(name, 0) > 1}
    return sum(sizes[name] for name in reached) / max(1, artifact.model.parameters)


def _linear_share(artifact: Artifact) -> float:
    """Of a torch image model: the share of parameters in two-dimensional weights."""
    infos = [info for ref in artifact.model.files if ref.path.endswith(".safetensors") for info in safetensors_header(ref.location)]
    return sum(info.parameters for info in infos if len(info.shape) == 2) / max(1, sum(info.parameters for info in infos))
