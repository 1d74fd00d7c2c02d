"""Scores of tokens: by the model's own language head, or by its table of token embeddings where it has none.

A table that scores what it embeds: Press and Wolf, arXiv 1608.05859. Only the positions that are asked for are scored.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgepipe.errors import PassError
from edgepipe.factorized import parts
from edgepipe.structure import transformer_of
from edgepipe.training.batches import IGNORED
from edgepipe.training.losses import mean_of_rows
from edgepipe.training.views import token_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Generator, Tensor, nn
    from torch.nn import Parameter

    from edgepipe.training.objectives import Setup
    from edgepipe.training.sampled_softmax import SampledOutputs


class LanguageHead:
    """What turns token numbers into vectors [batch, seq, width], and those into scores. `bias` is its own where the model has no head."""

    def __init__(self, module: nn.Module, objective: str) -> None:
        """Raises `PassError` for a model that embeds no tokens."""
        import torch

        self._module, self._table = transformer_of(module), token_table(module)
        if self._table is None:
            raise PassError(
                f"{objective} learns from tokens, and the model has no table of token embeddings",
                where="recover.objectives",
                fix=f"leave {objective} out",
            )
        self.head = self._module.get_output_embeddings()
        self.vocabulary = parts(self._table)[0].num_embeddings if self.head is None else parts(self.head)[-1].out_features
        self.bias = torch.nn.Parameter(torch.zeros(self.vocabulary)) if self.head is None else None

    def vectors(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[batch, seq, width], what scores are made from."""
        if self.head is None:
            base = getattr(self._module, self._module.base_model_prefix, self._module)
            found: Tensor = base(**inputs).last_hidden_state
        else:
            with _passing_on(self.head):
                found = self._module(**inputs).logits
        return found

    def rows(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """Weights [tokens, width] and biases [tokens] of some tokens, or of all."""
        import torch

        if self.head is None:
            assert self.bias is not None
            if tokens is None:
                tokens = torch.arange(self.vocabulary, device=self.bias.device)
            return self._table(tokens), self.bias[tokens]
        *inner, outer = parts(self.head)
        weights = outer.weight if tokens is None else outer.weight[tokens]
        bias = 0.0 if outer.bias is None else outer.bias if tokens is None else outer.bias[tokens]
        return weights @ inner[0].weight if inner else weights, bias

    def parameters(self, name: str) -> dict[str, Parameter]:
        return {} if self.bias is None else {f"{name}.bias": self.bias}

    def check(self, inputs: Mapping[str, Tensor], objective: str) -> None:
        """`PassError` where what leaves the model has another width than its table."""
        import torch

        with torch.no_grad():
            vectors = self.vectors(inputs)
            weights, _ = self.rows(torch.zeros(1, dtype=torch.int64, device=vectors.device))
        if vectors.shape[-1] != weights.shape[-1]:
            raise PassError(
                f"{objective} scores tokens by the table that embeds them, and the model's layers are {vectors.shape[-1]} wide, "
                f"the table {weights.shape[-1]}",
                where="recover.objectives",
                fix=f"leave {objective} out",
            )


class TokenLoss:
    """Cross-entropy of tokens, over the whole vocabulary or over a sample of it."""

    def __init__(self, head: LanguageHead, sampled: SampledOutputs | None) -> None:
        self._head, self._sampled = head, sampled

    def __call__(self, vectors: Tensor, targets: Tensor, generator: Generator) -> Tensor:
        """[batch], from vectors [batch, seq, width] and targets [batch, seq]: the mean over positions that have a target."""
        from torch.nn import functional

        shown = targets != IGNORED
        picked, wanted = vectors[shown], targets[shown]
        if self._sampled:
            each = self._sampled.losses(picked, wanted, self._head.rows, generator)
        else:
            weights, bias = self._head.rows()
            each = functional.cross_entropy((picked @ weights.T + bias).float(), wanted, reduction="none")
        return mean_of_rows(each.new_zeros(targets.shape).masked_scatter(shown, each), shown)


def token_loss(head: LanguageHead, setup: Setup) -> TokenLoss:
    from edgepipe.training.sampled_softmax import SampledOutputs, unigram

    count = setup.options.output_sampling
    if count is None:
        return TokenLoss(head, None)
    if count >= head.vocabulary:
        raise PassError(
            f"{count} tokens cannot be sampled of a vocabulary of {head.vocabulary}",
            where="recover.output_sampling",
            fix="sample fewer, or leave it out: the whole vocabulary is scored then",
        )
    return TokenLoss(head, SampledOutputs(count, setup.options.output_estimate, unigram(setup.train.token_counts(head.vocabulary))))


@contextmanager
def _passing_on(layer: Any) -> Iterator[None]:
    """Meanwhile, a layer gives what it is given."""
    layer.forward = lambda value: value
    try:
        yield
    finally:
        del layer.forward
