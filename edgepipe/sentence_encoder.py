"""A sentence-transformers model as one torch module, so that pooling and normalisation are part of the graph.

Sentence-BERT: Reimers and Gurevych, arXiv 1908.10084, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class SentenceEncoder(nn.Module):  # type: ignore[misc]  # torch is not read by the type checker: it takes minutes
    """input_ids [batch, seq] → sentence_embedding [batch, hidden]."""

    def __init__(self, encoder: nn.Module, pooling: str, normalize: bool) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # never used, and drawn at random where the checkpoint has none
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize
        self.config = encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> dict[str, Tensor]:
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = (hidden + (mask - 1) * 1e9).max(dim=1).values
        else:
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        if self.normalize:
            pooled = nn.functional.normalize(pooled, p=2, dim=1)
        return {"sentence_embedding": pooled}

    def around(self, encoder: nn.Module) -> SentenceEncoder:
        """The same pooling around another encoder."""
        return SentenceEncoder(encoder, self.pooling, self.normalize)

    def save_pretrained(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)
