"""Which layers a method works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.additions import additions_of
from edgepipe.errors import PassError
from edgepipe.structure import LAYOUTS, encoder_layers, layers_are_known

if TYPE_CHECKING:
    from edgepipe.structure import EncoderLayer

WHERE = "recover.train"


def weight_layers(module: Any) -> dict[str, Any]:
    """Name → plain linear layer or convolution without groups: those inside an encoder's layers, or all of another model but its
    last, which is its head. Raises `PassError` where there is none."""
    from torch import nn

    every = {
        name: layer
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
    }
    if layers_are_known(module):
        inside = {id(part) for each in encoder_layers(module) for part in each.layer.modules()}
        found = {name: layer for name, layer in every.items() if id(layer) in inside}
    else:
        found = dict(list(every.items())[:-1])
    if not found:
        raise PassError("the model has no weight matrices but its head's", where=WHERE, fix='train = "full" trains every model')
    return found


def layers_for(addition: str, module: Any) -> list[EncoderLayer]:
    """The layers of an encoder that get an adapter or a prefix. Raises `PassError` where they are not known, or have one."""
    if not layers_are_known(module):
        raise PassError(
            f"the layers of a model of this kind are not known, and every one of them would get its {addition}",
            where=WHERE,
            fix=f'known: {", ".join(sorted(LAYOUTS))}; train = "full" and "lora" serve every model',
        )
    layers = encoder_layers(module)
    if addition in additions_of(layers):
        raise PassError(
            f"the model has an earlier training's {addition} already", where=WHERE, fix='train = "full" trains it with the rest'
        )
    return layers
