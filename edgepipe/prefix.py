"""Keys and values in front of a text's own that every position of it can look at, trained and without a token.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv 2101.00190, section 4. Nothing that they
could be merged into: they are saved, and exported, as a part of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class PrefixedLinear(nn.Linear):  # type: ignore[misc]  # as in sentence_encoder.py
    """A projection to keys or values, [batch, seq, width] → [batch, length + seq, width]."""

    prefix: nn.Parameter  # [length, width]
    padded: bool  # whether its input has room for the prefix already

    def forward(self, value: Tensor) -> Tensor:
        if self.padded:
            value = value[:, len(self.prefix) :]
        own = super().forward(value)
        return torch.cat([self.prefix.to(own.dtype).expand(own.shape[0], -1, -1), own], 1)


def add_prefix(attention: nn.Module, key: nn.Linear, value: nn.Linear, prefixes: tuple[Tensor, Tensor]) -> None:
    """Give an attention layer more keys and values, each [length, width], in place: `key` and `value` are what makes its own."""
    padded = hasattr(attention, "k_lin")  # DistilBERT's, which sizes its mask by the keys that it is given
    for layer, prefix in zip((key, value), prefixes, strict=True):
        layer.prefix, layer.padded = nn.Parameter(prefix), padded
        layer.__class__ = PrefixedLinear
    attention.prefix_length = len(prefixes[0])
    attention.register_forward_pre_hook(_made_room, with_kwargs=True)


def _made_room(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What an attention layer is called with, for more keys: a mask that shows the prefix to every position."""
    from torch.nn.functional import pad

    length = attention.prefix_length
    if kwargs.get("attention_mask") is not None:  # [batch, 1, 1 or seq, seq], added to the scores
        kwargs = {**kwargs, "attention_mask": pad(kwargs["attention_mask"], (length, 0))}
    if kwargs.get("mask") is not None:  # DistilBERT's [batch, seq], 0 where nothing is shown
        kwargs = {**kwargs, "mask": pad(kwargs["mask"], (length, 0), value=1)}
        kwargs |= {name: pad(kwargs[name], (0, 0, length, 0)) for name in ("key", "value")}
    return args, kwargs
