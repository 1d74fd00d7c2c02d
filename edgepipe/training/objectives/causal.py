"""causal: each token is to be told from those before it, for models that were made to. Radford et al., "GPT-2", 2019, section 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepipe.errors import PassError
from edgepipe.training.batches import IGNORED
from edgepipe.training.language_head import LanguageHead, TokenLoss, token_loss
from edgepipe.training.pieces import on_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from edgepipe.training.objectives import Pair, Setup


@dataclass(slots=True)
class Causal:
    head: LanguageHead
    loss: TokenLoss
    inside: bool = False
    teaches: bool = False

    def __call__(self, pair: Pair) -> Tensor:
        inputs = pair.batch.unmixed
        vectors = self.head.vectors(inputs)
        return self.loss(vectors[:, :-1], next_tokens(inputs), pair.batch.generator("outputs"))

    def parameters(self) -> dict[str, Parameter]:
        return {}


def next_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """What follows each position but the last, [batch, seq − 1]; IGNORED where padding does, or where padding is."""
    following = inputs["input_ids"][:, 1:]
    mask = inputs.get("attention_mask")
    return following if mask is None else following.masked_fill((mask[:, 1:] * mask[:, :-1]) == 0, IGNORED)


def make(setup: Setup) -> Causal:
    """Raises `PassError` for a model without a language head, and for one that sees what comes after a token."""
    import torch

    head = LanguageHead(setup.student, "causal")
    inputs = on_device(next(setup.train.in_order()), setup.options.device).inputs
    if head.head is None:
        what = "the model has no language head"
    else:
        changed = inputs["input_ids"].clone()
        changed[:, -1] = (changed[:, -1] + 1) % head.vocabulary
        with torch.no_grad():
            before, after = (head.vectors({**inputs, "input_ids": ids})[:, :-1] for ids in (inputs["input_ids"], changed))
        what = "" if torch.allclose(before, after, atol=1e-5) else "the model sees the tokens that it would have to tell"
    if what:
        raise PassError(
            f"causal learns the next token, and {what}", where="recover.objectives", fix="take masked-tokens, or leave causal out"
        )
    return Causal(head, token_loss(head, setup))
