"""The planner: model × profile → recipe, with a reason and the profile's fact on every line, and what it left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.config import Budget, Recipe
from edgepipe.cost.table import load_table
from edgepipe.errors import UsageError
from edgepipe.plan_pruning import SPARSITY, pruning
from edgepipe.plan_quantization import is_quantized, quantization
from edgepipe.plan_quantization import step as _step

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edgepipe.artifact import Artifact
    from edgepipe.data import Split
    from edgepipe.profile import Profile

TOKENS = 128  # that kernel costs are looked up for
MAPPED_SHARE = 0.02  # of the device's memory: smaller models are not worth a second file


def plan(artifact: Artifact, profile: Profile, *, splits: Collection[Split] = (), budget: Budget | None = None) -> Recipe:
    """The recipe for this model on this profile; `splits`: the data there is. Raises `UsageError` for a table of kernel costs that is damaged."""
    costs = load_table(profile)
    steps: list[dict[str, Any]] = []
    left_out: list[str] = []
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
        pruned, without = pruning(artifact, profile, costs, budget or Budget(), splits)
        steps += pruned
        left_out += [*without, SPARSITY]
        steps.append(_step("export-onnx", f"{profile.runtime.name} {profile.runtime.version} on {profile.name} runs ONNX (runtime.name)"))
    else:
        left_out.append("export-onnx: the model is ONNX already")
    tuned = False
    if is_quantized(artifact):
        left_out.append("optimize-graph, quantization: the model is quantized already")
    else:
        where = f"on {profile.cpu.model} (kernel costs, {costs.source})" if costs else "on this machine"
        steps.append(_step("optimize-graph", f"constants folded, and of the fusions those that pay {where}"))
        found, without = quantization(artifact, profile, costs, calibrated="calibration" in splits)
        steps += found
        left_out += without
        tuned = bool(found)
    if _maps_weights(profile, artifact, steps):
        large = f"{MAPPED_SHARE:.0%} of {profile.memory.ram_bytes / 1e9:.1f} GB (memory.ram_bytes)"
        steps.append(_step("map-weights", f"weights over {large} are mapped from their file instead of read: a lower peak"))
    if not steps:
        raise UsageError(
            "there is nothing to do: the model is ONNX and quantized already", where="plan", fix="name the passes you want with --recipe"
        )
    return Recipe.model_validate({"step": steps, "left_out": left_out, "tune": tuned})


def _maps_weights(profile: Profile, artifact: Artifact, steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether weights in a file of their own are worth a second file. No browser maps files; CoreML takes no such weights."""
    if profile.runtime.name != "onnxruntime" or profile.cpu.model.startswith("apple-"):
        return False
    each = 1 if any(step["pass"].startswith("quantize") for step in steps) else 4
    return artifact.model.parameters * each > MAPPED_SHARE * profile.memory.ram_bytes
