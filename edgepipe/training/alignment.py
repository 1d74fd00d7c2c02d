"""Which positions of a sample are the same for two tokenizers: tokens that begin at the same character of the text.

A word that a cut vocabulary splits further is compared at its first piece, the rest of it not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Alignment:
    """Positions of the student's inputs and of the teacher's that belong together, [batch, n] each; `shown` marks those that are
    no filling. `whole` [batch]: every token has its like. `tokens` [batch]: how many the teacher has."""

    ours: Tensor
    theirs: Tensor
    shown: Tensor
    whole: Tensor
    tokens: Tensor

    def gathered(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Values [batch, seq, width] at the positions, [batch, n, width] each."""
        return _at(ours, self.ours), _at(theirs, self.theirs)

    def mixed(self, order: Tensor) -> Alignment:
        """Of rows that are each mixed with another: positions count where every token of both has its like."""
        both = self.whole & self.whole[order]
        return replace(self, shown=self.shown & both[:, None], whole=both)

    @property
    def share(self) -> float:
        """Of the teacher's tokens, those that have their like."""
        return float(self.shown.sum()) / max(1, int(self.tokens.sum()))


def align(ours: Sequence[Any], theirs: Sequence[Any]) -> Alignment | None:
    """Of encodings by two tokenizers, one a row; None for what is no text."""
    import torch

    if not hasattr(ours[0], "offsets"):
        return None
    pairs = [_pairs(a, b) for a, b in zip(ours, theirs, strict=True)]
    length = max(len(row) for row in pairs)
    rows = torch.tensor([[*row, *[(0, 0)] * (length - len(row))] for row in pairs])
    shown = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in pairs])
    whole = torch.tensor([len(row) == len(a.ids) == len(b.ids) for row, a, b in zip(pairs, ours, theirs, strict=True)])
    return Alignment(rows[..., 0], rows[..., 1], shown, whole, torch.tensor([len(b.ids) for b in theirs]))


def _pairs(ours: Any, theirs: Any) -> list[tuple[int, int]]:
    places = {key: index for index, key in enumerate(_keys(theirs))}
    return [(index, places[key]) for index, key in enumerate(_keys(ours)) if key in places]


def _keys(encoding: Any) -> list[tuple[int | None, int]]:
    """(text, first character) of each token; special tokens, which stand for none, are counted."""
    special = 0
    keys: list[tuple[int | None, int]] = []
    for text, (start, _) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        keys.append((None, special) if text is None else (text, start))
        special += text is None
    return keys


def _at(values: Tensor, positions: Tensor) -> Tensor:
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
