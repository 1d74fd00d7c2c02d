"""movement: all weights, and which of them stay: those that training moves away from zero.

Sanh, Wolf and Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv 2005.07683, section 4: a weight W is used as
W · M, with M 1 for the highest scores of its matrix; a score's gradient is that of its mask (straight through). The share that
stays falls to `density` along a cubic (section 5), over the middle of training. What leaves is sparse, and no faster on a CPU:
it is smaller only when it is compressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepipe.training.methods import Method
from edgepipe.training.methods.layers import weight_layers
from edgepipe.training.methods.parametrized import parametrize

if TYPE_CHECKING:
    from torch import Tensor

    from edgepipe.training.methods import Setup

BEGIN, END = 0.1, 0.7  # shares of the steps between which weights go


def make(setup: Setup) -> Method:
    import torch
    from torch import nn

    class Masked(nn.Module):  # type: ignore[misc]  # as in sentence_encoder.py
        """A weight times the mask of the scores that were highest when `choose` was called last."""

        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.scores, self.mask = nn.Parameter(torch.zeros_like(weight)), torch.ones_like(weight)

        def choose(self, density: float) -> None:
            self.mask = highest(self.scores.detach(), density).to(self.scores.dtype)

        def forward(self, weight: Tensor) -> Tensor:
            return weight * (self.mask + self.scores - self.scores.detach())

    module = setup.module
    weights = dict(module.named_parameters())
    made = {f"{name}.weight": Masked(layer.weight) for name, layer in weight_layers(module).items()}
    made = {name: each for name, each in made.items() if name in weights}  # of tied ones the first
    undo = parametrize(module, made)
    trained = {**weights, **{f"{name}.scores": each.scores for name, each in made.items()}}

    def form(share: float) -> bool:
        for each in made.values():
            each.choose(density_at(share, setup.options.density))
        return share >= END

    def finished() -> Any:
        undo()
        return module

    return Method(module, lambda _: trained, finished, form)


def density_at(share: float, last: float) -> float:
    """The share of weights that stay when so much of training is done."""
    left = 1 - min(1.0, max(0.0, (share - BEGIN) / (END - BEGIN)))
    return last + (1 - last) * left**3


def highest(scores: Tensor, density: float) -> Tensor:
    """Where the highest scores are, exactly as many as the share says and at least one. Equals: the first ones."""
    import torch

    count = max(1, round(density * scores.numel()))
    if count == scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    lowest = flat.kthvalue(flat.numel() - count + 1).values
    kept = flat > lowest
    kept[(flat == lowest).nonzero().flatten()[: count - int(kept.sum())]] = True
    return kept.view_as(scores)
