"""Weights that are made anew, from what is trained, whenever a layer looks at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn
    from torch.nn import Parameter


def owners(module: nn.Module, parameter: Parameter) -> list[tuple[Any, str]]:
    """The layers that hold a parameter, and the name by which each does: several where weights are tied."""
    return [(layer, name) for layer in module.modules() for name, own in layer.named_parameters(recurse=False) if own is parameter]


def parametrize(module: nn.Module, made: Mapping[str, nn.Module]) -> Callable[[], None]:
    """Have the parameters of these names come out of modules that take what they are now. Gives what undoes it, and leaves in each
    what its module made last."""
    import torch
    from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

    places = {name: owners(module, module.get_parameter(name)) for name in made}
    values = {name: module.get_parameter(name) for name in made}
    for name, each in made.items():
        for layer, own in places[name]:
            register_parametrization(layer, own, each)

    def undo() -> None:
        for name, each in made.items():
            with torch.no_grad():
                values[name].copy_(each(values[name]))
            for layer, own in places[name]:
                remove_parametrizations(layer, own, leave_parametrized=False)

    return undo
