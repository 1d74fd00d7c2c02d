"""prune-ffn: cut the feed-forward neurons that matter least.

Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv 1906.10771, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgepipe.passes import Check, register_pass
from edgepipe.passes.ranked_units import RankedUnits

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class PruneFfn(RankedUnits):
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of all feed-forward neurons to cut (default: 0.25)")
    keep: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="how many neurons stay in each layer, the first layer first, instead of a ratio"
    )
    multiple_of: int = Field(default=16, gt=0, description="widths that a ratio gives land on multiples of this, which kernels like")


@register_pass(
    "prune-ffn",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneFfn,
    after=("merge-lora",),
    before=("export-onnx",),
    optional_data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def prune_ffn(artifact: Artifact, options: PruneFfn, ctx: Context) -> Artifact:
    """Cut the feed-forward neurons that matter least; the weights are physically removed."""
    from edgepipe.importance import choose_counts, choose_kept, unit_importance
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import encoder_layers

    module = load_torch(artifact)
    scores = [layer["ffn"] for layer in unit_importance(options.importance, module, artifact, ctx)]
    if options.keep:
        kept_everywhere = choose_counts(scores, options.keep, "neurons", "prune-ffn.keep")
    else:
        ratio = 0.25 if options.ratio is None else options.ratio
        kept_everywhere = choose_kept(scores, ratio, per_layer=options.scope == "layer", multiple_of=options.multiple_of)
    for layer, kept in zip(encoder_layers(module), kept_everywhere, strict=True):
        layer.keep_ffn(kept)
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))
