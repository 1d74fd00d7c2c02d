"""Layers that are products of two thinner ones: W ≈ U·V of rank r, for linear layers and embedding tables.

ALBERT's factorized embedding: Lan et al., arXiv 1909.11942, section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def factors_of(module: nn.Module) -> dict[str, int]:
    """Path of every factorized layer → its rank."""
    return {name: _rank(layer) for name, layer in module.named_modules() if getattr(layer, "factorized", False)}


def apply_factors(module: nn.Module, factors: Mapping[str, int]) -> None:
    """Put products of these ranks in place of the layers at these paths. Their weights are to be filled."""
    for name, rank in factors.items():
        replace_layer(module, name, product(module.get_submodule(name), rank))


def parts(layer: Any) -> tuple[Any, ...]:
    """The layers that a linear layer is made of, in the order they are run: two of a product, else itself."""
    return tuple(layer) if getattr(layer, "factorized", False) else (layer,)


def weight_of(layer: Any) -> Tensor:
    """The weight of a linear layer [out, in], of a product's two together."""
    inner, *outer = (part.weight.detach() for part in parts(layer))
    weight: Tensor = outer[0] @ inner if outer else inner
    return weight


def product(layer: Any, rank: int) -> nn.Sequential:
    """A product of two layers that takes what `layer` takes and gives what it gives, with weights of zero.

    Raises `ModelError` for a layer that training added something to, which a product has no place for.
    """
    from torch import nn

    if hasattr(layer, "adapter") or hasattr(layer, "prefix"):
        raise ModelError(
            "a layer with a trained adapter or prefix cannot be written as a product of two",
            where="pass factorize",
            fix="put factorize before recover",
        )
    place: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Embedding):
        made = nn.Sequential(
            nn.Embedding(layer.num_embeddings, rank, padding_idx=layer.padding_idx, **place),
            nn.Linear(rank, layer.embedding_dim, bias=False, **place),
        )
    else:
        made = nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False, **place),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **place),
        )
    made.factorized = True
    return made


def filled(layer: Any, inner: Tensor, outer: Tensor) -> nn.Sequential:
    """`layer` as a product: for a linear one W [out, in] ≈ outer [out, r] · inner [r, in]; for a table [rows, width] ≈
    inner [rows, r] · outerᵀ, with outer [width, r]."""
    import torch
    from torch import nn

    made = product(layer, outer.shape[1])
    with torch.no_grad():
        made[0].weight.copy_(inner)
        made[1].weight.copy_(outer)
        if not isinstance(layer, nn.Embedding) and layer.bias is not None:
            made[1].bias.copy_(layer.bias)
    return made


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, own = name.rpartition(".")
    setattr(module.get_submodule(path), own, layer)


def _rank(layer: Any) -> int:
    return int(layer[1].in_features)
