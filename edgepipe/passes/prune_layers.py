"""prune-layers: take whole layers out.

By block influence: Men et al., arXiv 2403.03853, section 3. Spread: Sanh et al., "DistilBERT", arXiv 1910.01108, section 3
(one layer out of two). First: Sajjad et al., arXiv 2004.03844, section 3.1, who find that upper layers are missed least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.errors import UsageError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.data import Split


class PruneLayers(PassOptions):
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of the layers to cut (default: half of them)")
    keep: int | None = Field(default=None, ge=1, description="how many layers stay, instead of a ratio")
    layers: tuple[int, ...] = Field(default=(), description="which layers stay, counted from 0, instead of a ratio")
    importance: Literal["block-influence", "spread", "first", "last"] = Field(
        default="block-influence",
        description="which stay: those that turn hidden states most (needs calibration data), evenly spread ones, the first, the last",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(given is not None and given != () for given in (self.ratio, self.keep, self.layers)) > 1:
            raise ValueError("ratio, keep and layers say the same thing: give one of them")
        if self.layers != tuple(sorted(set(self.layers))) or min(self.layers, default=0) < 0:
            raise ValueError("layers are given once each, in their order, counted from 0: layers = [0, 2, 5]")
        return self

    @property
    def needed_data(self) -> tuple[Split, ...]:
        return ("calibration",) if self.importance == "block-influence" and not self.layers else ()


@register_pass(
    "prune-layers",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneLayers,
    after=("merge-lora",),
    before=("export-onnx",),
    optional_data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def prune_layers(artifact: Artifact, options: PruneLayers, ctx: Context) -> Artifact:
    """Take out whole layers, those that change the hidden states least; transformers loads the result as it is."""
    from edgepipe.layers import keep_layers
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.structure import encoder_layers

    module = load_torch(artifact)
    kept = _kept(len(encoder_layers(module)), options, module, artifact, ctx)
    ctx.record("layers kept", kept)
    keep_layers(module, kept)
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))


def _kept(layers: int, options: PruneLayers, module: Any, artifact: Artifact, ctx: Context) -> list[int]:
    if options.layers:
        if options.layers[-1] >= layers:
            raise UsageError(
                f"there is no layer {options.layers[-1]}: the model has {layers}",
                where="prune-layers.layers",
                fix=f"count from 0 to {layers - 1}",
            )
        count = len(options.layers)
    else:
        count = options.keep or max(1, layers - round((0.5 if options.ratio is None else options.ratio) * layers))
    if count >= layers:
        what = f"the model has {layers} layer{'s' * (layers != 1)}, so that none would go"
        raise UsageError(what, where="prune-layers.keep" if options.keep else "prune-layers", fix="keep fewer, or leave the pass out")
    if options.layers:
        return list(options.layers)
    if options.importance == "spread":
        from edgepipe.layers import spread

        return spread(layers, count)
    if options.importance != "block-influence":
        return list(range(count)) if options.importance == "first" else list(range(layers - count, layers))
    import numpy as np

    from edgepipe.importance import most_important
    from edgepipe.importance.block_influence import block_influence

    influence = block_influence(module, artifact, ctx)
    ctx.record("block influence", [round(each, 5) for each in influence])
    return most_important(np.array(influence), count)
