"""prune-width: cut dimensions of the hidden states, the same ones in every layer.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679, section 2.2. Every
layer norm's statistics change with it: accuracy falls far and comes back by training (`recover`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.errors import UsageError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.data import Split


class PruneWidth(PassOptions):
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of the hidden dimensions to cut (default: 0.25)")
    width: int | None = Field(default=None, ge=1, description="how many dimensions stay, instead of a ratio")
    multiple_of: int = Field(default=16, gt=0, description="a width that a ratio gives lands on a multiple of this, which kernels like")
    importance: Literal["activation", "taylor", "magnitude"] = Field(
        default="activation",
        description="what matters: what layer norms give on calibration data, how the loss would move (taylor), or weights alone (magnitude)",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.width is not None and self.ratio is not None:
            raise ValueError("width and ratio say the same thing: give one of them")
        return self

    @property
    def needed_data(self) -> tuple[Split, ...]:
        return () if self.importance == "magnitude" else ("calibration",)


@register_pass(
    "prune-width",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=PruneWidth,
    after=("merge-lora",),
    before=("factorize", "quantization-aware-training", "export-onnx"),
    optional_data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def prune_width(artifact: Artifact, options: PruneWidth, ctx: Context) -> Artifact:
    """Cut the hidden dimensions that matter least out of every weight; train afterwards, for every layer norm changes."""
    from edgepipe.importance import most_important
    from edgepipe.importance.hidden import hidden_importance
    from edgepipe.linear_layers import refuse_tied
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.width import hidden_axes, hidden_width, keep_hidden

    module = load_torch(artifact)
    axes = hidden_axes(module)
    for name in axes:
        refuse_tied(module, name, "pass prune-width")
    whole = hidden_width(module)
    width = _width(whole, options)
    kept = most_important(hidden_importance(options.importance, module, axes, artifact, ctx), width)
    keep_hidden(module, axes, kept)
    ctx.record("hidden width", width)
    component = save_torch(module, artifact, ctx.workdir)
    return artifact.with_component("model", replace(component, signature=_narrower(component.signature, artifact, whole, width)))


def _narrower(signature: Mapping[str, Any], artifact: Artifact, whole: int, width: int) -> Mapping[str, Any]:
    """The signature of a sentence encoder, whose output is as wide as its hidden states."""
    if artifact.program["task"] != "sentence-similarity":
        return signature
    outputs = [{**entry, "shape": [width if size == whole else size for size in entry["shape"]]} for entry in signature["outputs"]]
    return {**signature, "outputs": outputs}


def _width(whole: int, options: PruneWidth) -> int:
    if options.width is not None:
        width = options.width
    else:
        kept = whole * (1 - (0.25 if options.ratio is None else options.ratio)) / options.multiple_of
        width = max(1, round(kept)) * options.multiple_of
    if width >= whole:
        raise UsageError(
            f"the hidden states are {whole} wide, so that nothing would go",
            where="prune-width.width" if options.width else "pass prune-width",
            fix=f"give a width below {whole}" if options.width else "raise the ratio, or lower multiple_of",
        )
    return width
