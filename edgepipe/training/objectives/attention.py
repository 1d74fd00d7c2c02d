"""attention: where each position looks, averaged over heads, so that models with fewer heads can learn it too.

Jiao et al., "TinyBERT", arXiv 1909.10351, section 3.1, equation 7; as a divergence of distributions (Wang et al., "MiniLM",
arXiv 2002.10957, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.training.pairs import both, layer_pairs, relation, relation_divergence

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup


@dataclass(slots=True)
class Attention:
    inside: bool = True
    teaches: bool = True

    def __call__(self, pair: Pair) -> Tensor:
        import torch

        student, teacher = pair.student, pair.teacher
        found = []
        for own, other in layer_pairs(len(student.queries), len(teacher.queries)):
            queries, wanted_queries, shown = both(student.queries[own - 1], teacher.queries[other - 1], pair.batch)
            keys, wanted_keys, _ = both(student.keys[own - 1], teacher.keys[other - 1], pair.batch)
            ours = relation(queries, keys, student.heads[own - 1], shown).mean(1, keepdim=True)
            theirs = relation(wanted_queries, wanted_keys, teacher.heads[other - 1], shown).mean(1, keepdim=True)
            found.append(relation_divergence(ours, theirs, shown))
        return torch.stack(found).mean(0)

    def parameters(self) -> dict[str, Parameter]:
        return {}


def make(setup: Setup) -> Attention:
    return Attention()
