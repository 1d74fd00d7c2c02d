"""sparsify: set weights of linear layers to zero, anywhere or N of every M.

Magnitude: Han et al., arXiv 1506.02626. Wanda: Sun et al., arXiv 2306.11695, section 3. SparseGPT: Frantar and Alistarh,
arXiv 2301.00774, section 3. Every layer's inputs are those of the model before the pass, from one run over the data; the
papers run it layer by layer.

No CPU kernel of ONNX Runtime gains from zeros: the model is as large and as slow as before. What shrinks is what an
archive or a download holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgepipe.errors import ModelError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.data import Split


class Sparsify(PassOptions):
    ratio: float | None = Field(default=None, gt=0, lt=1, description="share of each layer's weights that become zero (default: 0.5)")
    pattern: str | None = Field(
        default=None,
        description='how many of how many weights in a row stay, instead of a ratio: "2:4", "4:8"',
        pattern=r"^[1-9]\d*:[1-9]\d*$",
    )
    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        default="sparsegpt", description="which weights go; wanda and sparsegpt look at calibration data, sparsegpt also moves the others"
    )
    layers: tuple[str, ...] = Field(
        default=(), description="names of linear layers, as patterns (default: all inside the encoder's layers)"
    )
    damping: float = Field(default=0.01, gt=0, le=1, description="of sparsegpt: added to the diagonal of the inputs' second moments")

    @field_validator("pattern")
    @classmethod
    def _some_stay_and_some_go(cls, value: str | None) -> str | None:
        if value is not None and int(value.partition(":")[0]) >= int(value.partition(":")[2]):
            raise ValueError("fewer weights stay than there are: 2:4 keeps two of every four")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pattern and self.ratio is not None:
            raise ValueError("ratio and pattern say the same thing: give one of them")
        return self

    @property
    def needed_data(self) -> tuple[Split, ...]:
        return () if self.method == "magnitude" else ("calibration",)


@register_pass(
    "sparsify",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=Sparsify,
    after=(
        "merge-lora",
        "prune-layers",
        "prune-heads",
        "prune-ffn",
        "prune-width",
        "prune-vocab",
        "prune-channels",
        "factorize",
        "recover",  # training would fill the zeros again
        "quantization-aware-training",
    ),
    before=("export-onnx",),
    optional_data=("calibration",),
    checks=(Check("sparsity"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def sparsify(artifact: Artifact, options: Sparsify, ctx: Context) -> Artifact:
    """Set weights to zero: the model compresses better, but is no smaller on disk and no faster on any CPU."""
    import torch

    from edgepipe.linear_layers import linear_layers
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch
    from edgepipe.sparsity import Pattern

    module = load_torch(artifact)
    layers = linear_layers(module, options.layers, "sparsify.layers")
    pattern = Pattern.of(options.pattern) if options.pattern else Pattern(0.5 if options.ratio is None else options.ratio)
    for name, layer in layers.items():
        if pattern.group and layer.in_features % pattern.group:
            raise ModelError(
                f"{name} reads {layer.in_features} values, which is no multiple of {pattern.group}",
                where="sparsify.pattern",
                fix="name the layers that it fits with layers = [...], or give a ratio",
            )
    sparse = _method(options, layers, module, artifact, ctx)
    for number, (name, layer) in enumerate(layers.items()):
        ctx.progress("setting weights to zero", number, len(layers))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(sparse(name, layer.weight.numpy(), pattern)))
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))


def _method(options: Sparsify, layers: dict[str, Any], module: Any, artifact: Artifact, ctx: Context) -> Any:
    """(name, weight, pattern) → the weight with zeros. Where no sample reaches a layer, its inputs count alike."""
    import numpy as np

    from edgepipe.importance.moments import second_moments
    from edgepipe.sparsity.magnitude import magnitude
    from edgepipe.sparsity.sparsegpt import sparsegpt
    from edgepipe.sparsity.wanda import wanda

    if options.method == "magnitude":
        return lambda name, weight, pattern: magnitude(weight, pattern)
    moments = second_moments(module, layers, artifact, ctx, options.method, diagonal=options.method == "wanda")
    if options.method == "wanda":
        squares = {name: found.numpy() for name, found in moments.items()}
        return lambda name, weight, pattern: wanda(weight, squares.get(name, np.ones(weight.shape[1], np.float32)), pattern)

    def moved(name: str, weight: Any, pattern: Any) -> Any:
        seen = moments.pop(name).numpy() if name in moments else np.eye(weight.shape[1], dtype=np.float32)
        return sparsegpt(weight, seen, pattern, damping=options.damping)

    return moved
