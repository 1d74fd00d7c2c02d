"""Losses over a large vocabulary that score the right token and a sample of the others only.

Softmax over both, the score of each drawn token less the logarithm of how often it is expected in the sample, so that the sum comes
near that over the vocabulary: Bengio and Senécal, 2008; Jean et al., "On Using Very Large Target Vocabulary for Neural Machine
Translation", arXiv 1412.2007, section 3; the right token is always there and needs no correction (Rawat et al., arXiv 1907.10747,
section 2.2). Noise-contrastive estimation, data or noise: Gutmann and Hyvärinen, AISTATS 2010; Mnih and Teh, arXiv 1206.6426, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

FLATTENED = 0.75  # power of the counts, so that rare tokens are drawn too: Mikolov et al., arXiv 1310.4546, section 2.2


def unigram(counts: Tensor) -> Tensor:
    """Chances of tokens to be drawn, [vocabulary], by how often each stands in the data; one that never does has some too."""
    weights = (counts.double() + 1) ** FLATTENED
    return weights / weights.sum()


@dataclass(frozen=True, slots=True)
class SampledOutputs:
    count: int  # tokens that are drawn for a batch, with replacement; all its positions share them
    estimate: Literal["softmax", "nce"]
    chances: Tensor  # [vocabulary]

    def losses(
        self, vectors: Tensor, targets: Tensor, rows: Callable[[Tensor], tuple[Tensor, Tensor | float]], generator: Generator
    ) -> Tensor:
        """[positions], from vectors [positions, width] and targets [positions]; `rows` gives weights and biases of tokens."""
        import torch
        from torch.nn import functional

        drawn = torch.multinomial(self.chances, self.count, replacement=True, generator=generator).to(targets.device)
        expected = (self.chances.log() + math.log(self.count)).float().to(targets.device)  # log of how often the sample holds a token
        weights, bias = rows(drawn)
        others = (vectors @ weights.T + bias).float() - expected[drawn]
        weights, bias = rows(targets)
        right = ((vectors * weights).sum(-1) + bias).float()
        if self.estimate == "nce":
            return functional.softplus(expected[targets] - right) + functional.softplus(others).sum(1)
        others = others.masked_fill(drawn == targets[:, None], -math.inf)  # drawn by accident
        return torch.cat([right[:, None], others], 1).logsumexp(1) - right
