"""fish: the weights with the most Fisher information, and the head.

Sung, Nair and Raffel, "Training Neural Networks with Fixed Sparse Masks", arXiv 2111.09839, section 3: the empirical Fisher
information is the mean squared gradient of single samples, here of the loss that is trained, and needs but a few hundred of
them. Only the values of chosen weights are trained, so that the optimiser's states are small too.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from edgepipe.training.loop import repeatable
from edgepipe.training.methods import Method, head_of, only
from edgepipe.training.methods.parametrized import parametrize
from edgepipe.training.pieces import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.batches import Batch, Batches
    from edgepipe.training.methods import Setup

    Loss = Callable[[Batch], Tensor]

SAMPLES = 256  # section 4.2: more find no better masks


def make(setup: Setup) -> Method:
    from torch import nn

    class Scattered(nn.Module):  # type: ignore[misc]  # as in sentence_encoder.py
        """A weight with trained values at some places."""

        def __init__(self, weight: Tensor, places: Tensor) -> None:
            super().__init__()
            self.places, self.values = places, nn.Parameter(weight.detach().flatten()[places])

        def forward(self, weight: Tensor) -> Tensor:
            return weight.flatten().scatter(0, self.places, self.values).view_as(weight)

    module, head, undo = setup.module, head_of(setup.module), []

    def begin(loss: Loss) -> Mapping[str, Parameter]:
        rest = {name: parameter for name, parameter in module.named_parameters() if name not in head}
        only(module, rest)
        with repeatable(setup.options.seed):
            information = fisher_information(rest, loss, setup.train)
        made = {name: Scattered(rest[name], places) for name, places in largest(information, setup.options.share).items()}
        undo.append(parametrize(module, made))
        return only(module, {**{f"{name}.values": each.values for name, each in made.items()}, **head})

    def finished() -> Any:
        undo[0]()
        return module

    return Method(module, begin, finished)


def fisher_information(parameters: Mapping[str, Parameter], loss: Loss, train: Batches) -> dict[str, Tensor]:
    """Of every weight, in its shape: Σ over samples of the squared gradient."""
    import torch

    found = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    rows = (row for batch in train.epoch(0) for row in pieces(batch, batch.rows))
    for row in islice(rows, SAMPLES):
        gradients = torch.autograd.grad(loss(row).sum(), list(parameters.values()), allow_unused=True)
        for sums, gradient in zip(found.values(), gradients, strict=True):
            if gradient is not None:
                sums += gradient.square()
    return found


def largest(information: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Places, in the flat weight, of the share of all weights with the most of it; at least one. Equals: the first ones."""
    import torch

    everything = torch.cat([value.flatten() for value in information.values()])
    count = max(1, round(share * everything.numel()))
    chosen = torch.zeros(everything.numel(), dtype=torch.bool, device=everything.device)
    chosen[everything.argsort(descending=True, stable=True)[:count]] = True
    parts = chosen.split([value.numel() for value in information.values()])
    return {name: part.nonzero().flatten() for name, part in zip(information, parts, strict=True) if part.any()}
