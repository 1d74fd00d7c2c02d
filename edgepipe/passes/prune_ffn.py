"""prune-ffn: cut the feed-forward neurons that matter least.

Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv 1906.10771, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class PruneFfn(PassOptions):
    ratio: float = Field(default=0.25, gt=0, lt=1, description="share of all feed-forward neurons to cut")
    scope: Literal["global", "layer"] = Field(default="global", description="rank neurons over the whole model, or within each layer")
    multiple_of: int = Field(default=16, gt=0, description="widths land on multiples of this, which kernels like")


@register_pass(
    "prune-ffn",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneFfn,
    after=("merge-lora",),
    before=("export-onnx",),
    data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def prune_ffn(artifact: Artifact, options: PruneFfn, ctx: Context) -> Artifact:
    """Cut the feed-forward neurons with the least first-order importance; the weights are physically removed."""
    from edgepipe.importance import choose_kept, taylor_importance
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import encoder_layers

    module = load_torch(artifact)
    scores = [layer["ffn"] for layer in taylor_importance(module, artifact, ctx)]
    kept_everywhere = choose_kept(scores, options.ratio, per_layer=options.scope == "layer", multiple_of=options.multiple_of)
    for layer, kept in zip(encoder_layers(module), kept_everywhere, strict=True):
        layer.keep_ffn(kept)
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))
