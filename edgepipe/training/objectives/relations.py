"""relations: how queries, keys and values of the last layer relate to each other, over relation heads of their own.

Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", arXiv 2012.15828, section 3: queries, keys and values
are each cut into as many relation heads for both models, so that neither widths nor heads need be the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from edgepipe.training.pairs import both, relation, relation_divergence

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup


@dataclass(slots=True)
class Relations:
    inside: bool = True
    teaches: bool = True

    def __call__(self, pair: Pair) -> Tensor:
        import torch

        found = []
        for part in ("queries", "keys", "values"):
            ours, theirs, shown = both(getattr(pair.student, part)[-1], getattr(pair.teacher, part)[-1], pair.batch)
            heads = gcd(gcd(ours.shape[-1], theirs.shape[-1]), pair.teacher.heads[-1])
            found.append(relation_divergence(relation(ours, ours, heads, shown), relation(theirs, theirs, heads, shown), shown))
        return torch.stack(found).mean(0)

    def parameters(self) -> dict[str, Parameter]:
        return {}


def make(setup: Setup) -> Relations:
    return Relations()
