"""Student and teacher side by side: which layers learn from which, which positions are the same, how positions relate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.training.losses import SMALLEST, mean_of_rows

if TYPE_CHECKING:
    from torch import Tensor

    from edgepipe.training.batches import Batch


def layer_pairs(ours: int, theirs: int) -> list[tuple[int, int]]:
    """(student's layer, teacher's layer), both counted from 1; the last learns from the last."""
    return [(layer, max(1, round(layer * theirs / ours))) for layer in range(1, ours + 1)]


def both(ours: Tensor, theirs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Both [batch, seq, …] over the positions that are the same for both, and which of them count, [batch, seq]: no padding."""
    import torch

    if batch.aligned is not None:
        return *batch.aligned.gathered(ours, theirs), batch.aligned.shown
    length = min(ours.shape[1], theirs.shape[1])
    mask = batch.inputs.get("attention_mask")
    shown = ours.new_ones(ours.shape[0], length, dtype=torch.bool) if mask is None else mask[:, :length].bool()  # images have none
    return ours[:, :length], theirs[:, :length], shown


def relation(first: Tensor, second: Tensor, heads: int, shown: Tensor) -> Tensor:
    """softmax(A·Bᵀ / √d) of [batch, seq, width] cut into heads: [batch, heads, seq, seq]; positions not shown are not looked at."""
    import torch

    a, b = (value.unflatten(-1, (heads, -1)).transpose(1, 2) for value in (first, second))
    scores = a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(~shown[:, None, None, :], torch.finfo(scores.dtype).min), -1)


def relation_divergence(ours: Tensor, theirs: Tensor, shown: Tensor) -> Tensor:
    """KL(teacher ‖ student) of [batch, heads, seq, seq], averaged over heads and shown positions: [batch]."""
    each = (theirs * (theirs.clamp(min=SMALLEST).log() - ours.clamp(min=SMALLEST).log())).sum(-1).mean(1)
    return mean_of_rows(each, shown)
