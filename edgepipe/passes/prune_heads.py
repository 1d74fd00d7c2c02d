"""prune-heads: cut the attention heads that matter least.

Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class PruneHeads(PassOptions):
    ratio: float = Field(default=0.25, gt=0, lt=1, description="share of all attention heads to cut")
    scope: Literal["global", "layer"] = Field(default="global", description="rank heads over the whole model, or within each layer")


@register_pass(
    "prune-heads",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneHeads,
    after=("merge-lora",),
    before=("export-onnx",),
    data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def prune_heads(artifact: Artifact, options: PruneHeads, ctx: Context) -> Artifact:
    """Cut the attention heads with the least first-order importance; the weights are physically removed."""
    from edgepipe.importance import choose_kept, taylor_importance
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import encoder_layers

    module = load_torch(artifact)
    scores = [layer["heads"] for layer in taylor_importance(module, artifact, ctx)]
    for layer, kept in zip(encoder_layers(module), choose_kept(scores, options.ratio, per_layer=options.scope == "layer"), strict=True):
        layer.keep_heads(kept)
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))
