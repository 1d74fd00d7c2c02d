"""hidden: what leaves the student's layers is to be what leaves the teacher's, layer k of n by layer k · N / n of N.

Jiao et al., "TinyBERT", arXiv 1909.10351, section 3.1 (equation 8: a learned projection where widths differ); the squared
distance is taken relative to the teacher's square, so that layers weigh alike (Sun et al., "Patient Knowledge Distillation",
arXiv 1908.09355, section 3.2, normalise too).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.structure import hidden_width
from edgepipe.training.losses import relative_square
from edgepipe.training.pairs import both, layer_pairs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup


@dataclass(slots=True)
class HiddenStates:
    projection: Any  # student width → teacher width; None where they are the same
    inside: bool = True
    teaches: bool = True

    def __call__(self, pair: Pair) -> Tensor:
        import torch

        ours, theirs = pair.student.hidden, pair.teacher.hidden
        found = []
        for own, other in [(0, 0), *layer_pairs(len(ours) - 1, len(theirs) - 1)]:
            mine, wanted, shown = both(ours[own], theirs[other], pair.batch)
            found.append(relative_square(mine if self.projection is None else self.projection(mine), wanted, shown))
        return torch.stack(found).mean(0)

    def parameters(self) -> dict[str, Parameter]:
        return {} if self.projection is None else dict(self.projection.named_parameters(prefix="hidden.projection"))


def make(setup: Setup) -> HiddenStates:
    """The projection starts as the identity on the dimensions that both have."""
    from torch import nn

    ours, theirs = hidden_width(setup.student), hidden_width(setup.teacher)
    if ours == theirs:
        return HiddenStates(None)
    projection = nn.Linear(ours, theirs, bias=False)
    nn.init.eye_(projection.weight)
    return HiddenStates(projection)
