"""masked-tokens: tokens that were hidden are to be told from the rest.

Devlin et al., "BERT", arXiv 1810.04805, section 3.1. An encoder without a language head scores tokens by the table that embeds
them and a bias of its own; BERT's layer between the two is not there, as nothing of it is left in such a model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.errors import PassError
from edgepipe.probes import encoder_for
from edgepipe.training.language_head import LanguageHead, TokenLoss, token_loss
from edgepipe.training.masking import MaskTokens, Strategy, mask_tokens, masked
from edgepipe.training.pieces import on_device

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup


@dataclass(slots=True)
class MaskedTokens:
    head: LanguageHead
    loss: TokenLoss
    tokens: MaskTokens
    strategy: Strategy
    rate: float
    inside: bool = False
    teaches: bool = False

    def __call__(self, pair: Pair) -> Tensor:
        batch, inputs = pair.batch, pair.batch.unmixed
        assert batch.words is not None
        hidden, targets = masked(
            inputs["input_ids"], batch.words, self.tokens, self.strategy, self.rate, random.Random(f"{batch.seed}/masks")
        )
        return self.loss(self.head.vectors({**inputs, "input_ids": hidden}), targets, batch.generator("outputs"))

    def parameters(self) -> dict[str, Parameter]:
        return self.head.parameters("masked-tokens")


def make(setup: Setup) -> MaskedTokens:
    """Raises `PassError` for a model without tokens or a tokenizer without a mask."""
    head = LanguageHead(setup.student, "masked-tokens")
    tokens = mask_tokens(encoder_for(setup.artifact).tokenizer)
    if tokens is None:
        raise PassError(
            "masked-tokens hides tokens, and the tokenizer has none to put in their place ([MASK] or <mask>)",
            where="recover.objectives",
            fix="leave masked-tokens out; a model that predicts the next token learns by causal",
        )
    head.check(on_device(next(setup.train.in_order()), setup.options.device).inputs, "masked-tokens")
    return MaskedTokens(head, token_loss(head, setup), tokens, setup.options.masking, setup.options.mask_rate)
