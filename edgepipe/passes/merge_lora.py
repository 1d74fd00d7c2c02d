"""merge-lora: fold LoRA adapters into the base model's weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1: W = W0 + BA·α/r.
Merged in float32 whatever the base's dtype: a merge in half precision loses updates smaller than its step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class MergeLora(PassOptions):
    weights: tuple[float, ...] = Field(default=(), description="how much of each adapter is merged, in order (default: all of each)")


@register_pass(
    "merge-lora",
    takes={"model": "torch", "adapter": "peft"},
    gives={"model": "torch"},
    options=MergeLora,
    before=("prune-heads", "prune-ffn", "export-onnx"),
    checks=(Check("equal-outputs", 1e-4), Check("same-signature")),
    libraries=("torch", "transformers", "peft"),
    baseline=True,
)
def merge_lora(artifact: Artifact, options: MergeLora, ctx: Context) -> Artifact:
    """Fold LoRA adapters into the weights, in float32; outputs must stay equal on real inputs."""
    from edgepipe.adapters import note_untied, untie
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import transformer_of

    ctx.progress("loading base and adapters")
    module: Any = load_torch(artifact, adapter_weights=options.weights)
    wrapped = transformer_of(module)
    ctx.progress("merging")
    untie(wrapped)
    merged = wrapped.merge_and_unload(safe_merge=True, adapter_names=list(wrapped.base_model.active_adapters))
    note_untied(merged)
    merged = merged if wrapped is module else module.around(merged)
    roles = tuple(role for role, component in artifact.components.items() if component.format == "peft")
    return artifact.with_component("model", save_torch(merged, artifact, ctx.workdir), drop=roles)
