"""The hidden width of an encoder: which weights read or write the hidden states, and what is left of them when some dimensions stay.

One choice of dimensions holds for the whole residual stream: embeddings, norms, what every layer reads and writes, what the
head reads. Heads keep their number and size, feed-forward parts their neurons, and the head's own hidden layer its width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError
from edgepipe.factorized import factors_of
from edgepipe.structure import encoder_layers, resize, transformer_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

WHERE = "pass prune-width"
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification", "Model")


def hidden_width(module: Any) -> int:
    return int(encoder_layers(module)[0].ffn_out.weight.shape[0])


def hidden_axes(module: Any) -> dict[str, int]:
    """Parameter → the axis of it that runs along the hidden states. `ModelError` for models where that is not known."""
    from torch import nn

    inner = transformer_of(module)
    layers = encoder_layers(module)
    if factors_of(module):
        raise ModelError("its layers are products of thin ones already", where=WHERE, fix="put factorize after prune-width")
    if not type(inner).__name__.endswith(HEADS):
        what = f"where {type(inner).__name__} reads the hidden states is not known here, so that their width cannot be cut"
        raise ModelError(what, where=WHERE, fix="leave the pass out of the recipe")
    width = hidden_width(module)
    base = getattr(inner, inner.base_model_prefix, inner)
    axes: dict[str, int] = {}
    names = {id(layer): name for name, layer in module.named_modules()}

    def along(layer: Any, axis: int) -> None:
        axes[f"{names[id(layer)]}.weight"] = axis
        if axis == 0 and layer.bias is not None:
            axes[f"{names[id(layer)]}.bias"] = 0

    inside: set[int] = set()
    for each in layers:
        for path in (each.layout.query, each.layout.key, each.layout.value):
            along(each.attention.get_submodule(path), 1)
        along(each.ffn_in, 1)
        for layer in (each.attention_output, each.ffn_out):
            along(layer, 0)
            if adapter := getattr(layer, "adapter", None):
                along(adapter.down, 1)
                along(adapter.up, 0)
        inside |= {id(part) for part in each.layer.modules()}
    for part in base.modules():
        if isinstance(part, nn.LayerNorm) and part.normalized_shape == (width,):
            along(part, 0)
    for name, part in base.embeddings.named_modules():
        if isinstance(part, nn.Embedding) and part.embedding_dim == width:
            axes[f"{names[id(part)]}.weight"] = 1
        elif isinstance(part, nn.Conv2d) and part.out_channels == width:
            along(part, 0)
        path = ".".join(filter(None, (names[id(base.embeddings)], name)))
        for own, parameter in part.named_parameters(recurse=False):  # class token and positions of ViT: [1, n, hidden]
            if parameter.ndim == 3 and parameter.shape[-1] == width:
                axes[f"{path}.{own}"] = 2
    if projection := getattr(base, "embeddings_project", None):  # ELECTRA, whose tables are narrower
        along(projection, 0)
    outside = [part for part in inner.modules() if isinstance(part, nn.Linear) and id(part) not in inside and part is not projection]
    if outside:
        along(outside[0], 1)  # the first: pooler, or the head's dense layer; what follows reads what it gives
    return axes


def keep_hidden(module: nn.Module, axes: Mapping[str, int], kept: Sequence[int]) -> None:
    """Cut the hidden states down to these dimensions, in order."""
    import torch

    index = torch.as_tensor(list(kept))
    for name, axis in axes.items():
        value = module.get_parameter(name).detach().index_select(axis, index)
        resize(module, name, value.shape)
        module.get_parameter(name).data.copy_(value)
