"""Which linear layers of a torch model a pass works on, by patterns of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError, UsageError, nearest
from edgepipe.structure import encoder_layers, layers_are_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def linear_layers(module: nn.Module, patterns: Sequence[str], where: str) -> dict[str, Any]:
    """Name → linear layer, of those that a pattern names; without any, those inside an encoder's layers, or all of another model.

    Raises `UsageError` for a pattern without a layer, `ModelError` where there is none at all, or a weight that another layer
    shares: what is done to one would be done to the other.
    """
    from torch import nn

    every = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(f'no linear layer is named "{pattern}"', where=where, fix=nearest(pattern, every)[:300])
    found = {name: layer for name, layer in every.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not patterns:
        inside = _inside_encoder(module)
        found = {name: layer for name, layer in every.items() if inside is None or id(layer) in inside}
    if not found:
        raise ModelError("the model has no linear layers", where=where, fix="leave the pass out of the recipe")
    for name in found:
        refuse_tied(module, f"{name}.weight", where)
    return found


def refuse_tied(module: nn.Module, weight: str, where: str) -> None:
    """`ModelError` naming the other layer where two share this weight."""
    own = module.get_parameter(weight)
    for name, other in module.named_parameters(remove_duplicate=False):
        if other is own and name != weight:
            raise ModelError(
                f"{weight} is tied to {name}: they are one weight, and what is done to one would be done to the other",
                where=where,
                fix="leave that layer out, or untie them in the model and its config (tie_word_embeddings)",
            )


def _inside_encoder(module: nn.Module) -> set[int] | None:
    """Ids of all modules inside the layers of an encoder whose layout is known; None for another model."""
    if not layers_are_known(module):
        return None
    return {id(part) for each in encoder_layers(module) for part in each.layer.modules()}
