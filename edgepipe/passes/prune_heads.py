"""prune-heads: cut the attention heads that matter least.

Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from edgepipe.passes import Check, register_pass
from edgepipe.passes.ranked_units import RankedUnits

if TYPE_CHECKING:
    from edgepipe.artifact import Artifact
    from edgepipe.context import Context


class PruneHeads(RankedUnits):
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of all attention heads to cut (default: 0.25)")
    keep: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="how many heads stay in each layer, the first layer first, instead of a ratio"
    )


@register_pass(
    "prune-heads",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneHeads,
    after=("merge-lora",),
    before=("export-onnx",),
    optional_data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def prune_heads(artifact: Artifact, options: PruneHeads, ctx: Context) -> Artifact:
    """Cut the attention heads that matter least; the weights are physically removed."""
    from edgepipe.importance import choose_counts, choose_kept, unit_importance
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import encoder_layers

    module = load_torch(artifact)
    scores = [layer["heads"] for layer in unit_importance(options.importance, module, artifact, ctx)]
    if options.keep:
        kept_everywhere = choose_counts(scores, options.keep, "heads", "prune-heads.keep")
    else:
        ratio = 0.25 if options.ratio is None else options.ratio
        kept_everywhere = choose_kept(scores, ratio, per_layer=options.scope == "layer")
    for layer, kept in zip(encoder_layers(module), kept_everywhere, strict=True):
        layer.keep_heads(kept)
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))
