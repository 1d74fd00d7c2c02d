"""The planner: model × profile → recipe, with a reason and the profile's fact on every line, and what it left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.config import Recipe, Step
from edgepipe.weights import all_nodes, load_onnx

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.profile import Profile


def plan(artifact: Artifact, profile: Profile) -> Recipe:
    """The recipe for this model on this profile."""
    steps: list[dict[str, Any]] = []
    left_out = [
        "prune-heads, prune-ffn: cutting weights costs accuracy that only re-training earns back; ask for them in a recipe",
    ]
    adapters = [role for role, component in artifact.components.items() if component.format == "peft"]
    if adapters:
        steps.append(_step("merge-lora", f"{len(adapters)} adapter{'s' if len(adapters) > 1 else ''}: merged weights need no extra products at run time"))
    else:
        left_out.append("merge-lora: no adapter is given")
    torch_in = artifact.model.format == "torch"
    if torch_in:
        steps.append(_step("export-onnx", f"{profile.runtime.name} {profile.runtime.version} on {profile.name} runs ONNX (runtime.name)"))
    else:
        left_out.append("export-onnx: the model is ONNX already")
    kinds = _operators(artifact)
    if "quantized" in kinds:
        left_out += ["optimize-graph, quantize-dynamic: the model is quantized already"]
    else:
        steps.append(_step("optimize-graph", "constants folded, and of the fusions those that were measured to pay on this machine"))
        if kinds & {"MatMul", "Gemm", "LSTM", "torch"}:
            steps.append(_quantize(profile))
        else:
            left_out.append(f"quantize-dynamic: the graph has no matrix products with weights, and ConvInteger loses to Conv on {profile.cpu.model} (cpu.model)")
    left_out.append(_four_bit(profile))
    if not steps:
        steps.append(_step("optimize-graph", "nothing else applies"))
    return Recipe.model_validate({"step": steps, "left_out": left_out})


def _step(name: str, reason: str, **options: Any) -> dict[str, Any]:
    return {"pass": name, "reason": reason, "options": options}


def _quantize(profile: Profile) -> dict[str, Any]:
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
    return _step("quantize-dynamic", reason, per_channel=True, reduce_range=False)


def _four_bit(profile: Profile) -> str:
    why = "needs int8 dot products to pay, which are not in cpu.isa" if not profile.cpu.int8_dot_product else "no pass for it yet"
    return f"4-bit weights: {why}"


def _operators(artifact: Artifact) -> set[str]:
    """Operator types of an ONNX model, `quantized` when some are integer ones; `torch` for a torch model."""
    if artifact.model.format == "torch":
        return {"torch"}
    from edgepipe.passes.quantize_dynamic import QUANTIZED

    graph = load_onnx(artifact.model.main_file).graph
    weights = {tensor.name for tensor in graph.initializer} | {out for node in graph.node if node.op_type == "Constant" for out in node.output}
    found = set()
    for node in all_nodes(graph):
        if node.op_type in (*QUANTIZED, "QLinearConv", "QLinearMatMul", "DequantizeLinear"):
            found.add("quantized")
        if node.op_type not in ("MatMul", "Gemm") or any(name in weights for name in node.input[1:2]):
            found.add(node.op_type)
    return found
