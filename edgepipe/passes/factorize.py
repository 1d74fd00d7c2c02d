"""factorize: put products of two thin matrices in place of weights.

Plain: the truncated singular value decomposition. Activation-aware: Wang et al., "SVD-LLM", arXiv 2403.07378, section 3.2.
Embedding: Lan et al., "ALBERT", arXiv 1909.11942, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.errors import ModelError, UsageError
from edgepipe.passes import Check, PassOptions, register_pass

if TYPE_CHECKING:
    from typing import Self

    from edgepipe.artifact import Artifact
    from edgepipe.context import Context
    from edgepipe.data import Split


class Factorize(PassOptions):
    ratio: float | None = Field(
        default=None, gt=0, lt=1, description="share of each layer's weights to save (default: 0.25, where nothing else is asked for)"
    )
    rank: int | None = Field(default=None, ge=1, description="rank of every layer, instead of a ratio")
    energy: float | None = Field(
        default=None, gt=0, le=1, description="share of each layer's squared singular values to keep, instead of a ratio"
    )
    embedding: int | float | None = Field(
        default=None, gt=0, description="also the token embedding table: its rank, or a share of its width as rank (0.25)"
    )
    method: Literal["svd", "activation"] = Field(
        default="svd", description="nearest by weights, or by what layers give on calibration data (activation)"
    )
    layers: tuple[str, ...] = Field(
        default=(), description="names of linear layers, as patterns (default: all inside the encoder's layers)"
    )
    multiple_of: int = Field(default=8, ge=1, description="ranks that are not given land on multiples of this")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(given is not None for given in (self.ratio, self.rank, self.energy)) > 1:
            raise ValueError("ratio, rank and energy say the same thing: give one of them")
        if isinstance(self.embedding, float) and self.embedding >= 1:
            raise ValueError("embedding is a rank (64) or a share of the table's width below 1 (0.25)")
        if self.layers and not self.of_layers:
            raise ValueError("layers are named, but not how far to go: give ratio, rank or energy")
        return self

    @property
    def of_layers(self) -> bool:
        """Whether linear layers are factorized: not where only the embedding is asked for."""
        return self.embedding is None or any(given is not None for given in (self.ratio, self.rank, self.energy))

    @property
    def needed_data(self) -> tuple[Split, ...]:
        return ("calibration",) if self.method == "activation" else ()


@register_pass(
    "factorize",
    takes={"model": "torch"},
    gives={"model": "torch"},
    options=Factorize,
    after=("merge-lora", "prune-layers", "prune-heads", "prune-ffn", "prune-width", "prune-vocab"),
    before=("quantization-aware-training", "export-onnx"),
    optional_data=("calibration",),
    checks=(Check("smaller"), Check("same-signature"), Check("loads")),
    libraries=("torch", "transformers"),
)
def factorize(artifact: Artifact, options: Factorize, ctx: Context) -> Artifact:
    """Write weights as products of two thin ones where that saves parameters: fewer weights and fewer operations."""
    from edgepipe.loader import load_torch
    from edgepipe.saving import save_torch

    module = load_torch(artifact)
    done: dict[str, Any] = {}
    if options.embedding is not None:
        done |= _factorize_table(module, options, artifact, ctx)
    if options.of_layers:
        done |= _factorize_layers(module, options, artifact, ctx)
    ctx.record("factorized", done)
    return artifact.with_component("model", save_torch(module, artifact, ctx.workdir))


def _factorize_layers(module: Any, options: Factorize, artifact: Artifact, ctx: Context) -> dict[str, Any]:
    """Name → rank and relative error, of every layer whose product is smaller than itself."""
    from edgepipe.factorized import factors_of, filled, replace_layer
    from edgepipe.importance.moments import second_moments
    from edgepipe.linear_layers import linear_layers
    from edgepipe.low_rank import decompose

    products = factors_of(module)
    found = linear_layers(module, options.layers, "factorize.layers")
    layers = {name: layer for name, layer in found.items() if name.rpartition(".")[0] not in products}
    moments = second_moments(module, layers, artifact, ctx, "activation-aware factors") if options.method == "activation" else {}
    done = {}
    for number, (name, layer) in enumerate(layers.items()):
        ctx.progress("factorizing", number, len(layers))
        worth = (layer.in_features * layer.out_features - 1) // (layer.in_features + layer.out_features)  # the highest rank that saves
        if worth < 1 or (options.rank or 0) > worth:
            continue
        parts = decompose(layer.weight, moments.pop(name, None))
        rank = _rank(layer, options, parts)
        if rank <= worth:
            replace_layer(module, name, filled(layer, parts.inner[:rank], parts.outer[:, :rank]))
            done[name] = {"rank": rank, "error": round(parts.error(rank), 4)}
    if not done:
        raise ModelError(
            "at this rank no layer's product is smaller than the layer",
            where="pass factorize",
            fix="a product of rank r saves where r · (in + out) < in · out: lower the rank or the energy, or raise the ratio",
        )
    return done


def _rank(layer: Any, options: Factorize, parts: Any) -> int:
    if options.rank:
        return options.rank
    step = options.multiple_of
    if options.energy is not None:
        return -(-int(parts.rank_for(options.energy)) // step) * step
    kept = 1 - (0.25 if options.ratio is None else options.ratio)
    rank = int(kept * layer.in_features * layer.out_features / (layer.in_features + layer.out_features))
    return max(rank // step * step, min(step, rank), 1)


def _factorize_table(module: Any, options: Factorize, artifact: Artifact, ctx: Context) -> dict[str, Any]:
    from edgepipe.factorized import filled, replace_layer
    from edgepipe.linear_layers import refuse_tied
    from edgepipe.low_rank import decompose_table

    name, table = _token_table(module)
    refuse_tied(module, f"{name}.weight", "factorize.embedding")
    rows, width = table.weight.shape
    wanted = options.embedding or 0
    rank = wanted if isinstance(wanted, int) else max(1, round(wanted * width / options.multiple_of) * options.multiple_of)
    if rank * (rows + width) >= rows * width:
        raise UsageError(
            f"a table of {rows} × {width} is no smaller as a product of rank {rank}",
            where="factorize.embedding",
            fix=f"give a rank up to {(rows * width - 1) // (rows + width)}",
        )
    frequency = _frequency(rows, artifact, ctx) if options.method == "activation" else None
    parts = decompose_table(table.weight, frequency)
    replace_layer(module, name, filled(table, parts.inner[:rank].T, parts.outer[:, :rank]))
    return {name: {"rank": rank, "error": round(parts.error(rank), 4)}}


def _token_table(module: Any) -> tuple[str, Any]:
    """The table that token numbers go into, and its path."""
    from torch import nn

    from edgepipe.structure import transformer_of

    inner = transformer_of(module)
    table = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    name = next((name for name, layer in module.named_modules() if layer is table), "")
    if not isinstance(table, nn.Embedding) or not name:
        raise ModelError(
            "the model has no token embedding table that could be factorized", where="factorize.embedding", fix="leave embedding out"
        )
    return name, table


def _frequency(rows: int, artifact: Artifact, ctx: Context) -> Any:
    """How often each token stands in the calibration data, and one more, so that those it does not have count too."""
    import torch

    from edgepipe.importance.calibration import calibration_batches

    counts = torch.ones(rows)
    for batch in calibration_batches(artifact, ctx, "activation-aware factors"):
        tokens = batch.inputs["input_ids"]
        mask = batch.inputs.get("attention_mask", torch.ones_like(tokens))
        counts += torch.bincount(tokens[mask.bool()], minlength=rows)
    return counts
