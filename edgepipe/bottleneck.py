"""A linear layer with a bottleneck behind it: y = W·x + b, and then y + up(relu(down(y))).

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751, section 2.1. There is a nonlinearity in it,
so that it cannot be merged into the layer: it is saved, and exported, as a part of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Bottleneck(nn.Module):  # type: ignore[misc]  # as in sentence_encoder.py
    """[…, width] → […, width]."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, value: Tensor) -> Tensor:
        return value + self.up(nn.functional.relu(self.down(value)))


class AdaptedLinear(nn.Linear):  # type: ignore[misc]
    """A linear layer that hands what it gives to its `adapter`."""

    adapter: nn.Module

    def forward(self, value: Tensor) -> Tensor:
        return self.adapter(super().forward(value))


def add_adapter(layer: nn.Linear, adapter: nn.Module) -> None:
    """Make a plain linear layer an adapted one, in place: its weights stay the same objects."""
    layer.adapter = adapter
    layer.__class__ = AdaptedLinear


def empty_bottleneck(width: int, size: int, like: Tensor) -> Bottleneck:
    """One whose weights are to be filled."""
    place = {"device": like.device, "dtype": like.dtype}
    return Bottleneck(nn.Linear(width, size, **place), nn.Linear(size, width, **place))
